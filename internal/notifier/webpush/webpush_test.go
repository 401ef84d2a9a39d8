package webpush

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/egress"
	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/exchange"
	"github.com/medicalink/postroom/internal/testenv"
)

// decrypt is what a browser does, step by step as RFC 8291 and RFC 8188 write it down.
func (k browserKeys) decrypt(t *testing.T, body []byte) []byte {
	t.Helper()
	if len(body) < headerLen+tagLen+1 || body[20] != keyLen {
		t.Fatalf("a body of %d bytes with a key of %d", len(body), body[20])
	}
	salt, size, public, record := body[:16], binary.BigEndian.Uint32(body[16:20]), body[21:headerLen], body[headerLen:]
	if int(size) < len(record) || len(body) > recordSize {
		t.Fatalf("a record of %d bytes of at most %d, in a body of %d", len(record), size, len(body))
	}
	sender, err := ecdh.P256().NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := k.private.ECDH(sender)
	if err != nil {
		t.Fatal(err)
	}
	hash := func(key []byte, parts ...string) []byte {
		mac := hmac.New(sha256.New, key)
		for _, part := range parts {
			mac.Write([]byte(part))
		}
		return mac.Sum(nil)
	}
	ikm := hash(hash(k.auth, string(secret)), "WebPush: info\x00", string(k.p256dh), string(public), "\x01")
	prk := hash(salt, string(ikm))
	block, err := aes.NewCipher(hash(prk, "Content-Encoding: aes128gcm\x00\x01")[:16])
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	text, err := aead.Open(nil, hash(prk, "Content-Encoding: nonce\x00\x01")[:12], record, nil)
	if err != nil {
		t.Fatalf("decrypt: %v", err)
	}
	text = []byte(strings.TrimRight(string(text), "\x00"))
	if len(text) == 0 || text[len(text)-1] != 2 {
		t.Fatal("not the last record")
	}
	return text[:len(text)-1]
}

// pushService takes messages as one does, over HTTP/2.
type pushService struct {
	*httptest.Server
	mu       sync.Mutex
	requests []*http.Request
	bodies   [][]byte
}

func newPushService(t *testing.T, answer http.HandlerFunc) *pushService {
	t.Helper()
	s := &pushService{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		s.mu.Lock()
		s.requests, s.bodies = append(s.requests, r), append(s.bodies, body)
		s.mu.Unlock()
		answer(w, r)
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *pushService) taken() ([]*http.Request, [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests, s.bodies
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// fixture is a channel whose push service is on this machine.
type fixture struct {
	*Channel
	service *pushService
	redis   *testenv.RedisServer
}

func setup(t *testing.T, answer http.HandlerFunc) *fixture {
	t.Helper()
	f := &fixture{service: newPushService(t, answer), redis: testenv.Redis(t)}
	f.Channel = f.channel(t, "127.0.0.0/8")
	return f
}

func (f *fixture) channel(t *testing.T, allow ...string) *Channel {
	t.Helper()
	subscriptions, err := NewSubscriptions(f.redis.Open(t), "")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(f.service.Certificate())
	client, err := egress.New(egress.Config{RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	var prefixes []netip.Prefix
	for _, prefix := range allow {
		prefixes = append(prefixes, netip.MustParsePrefix(prefix))
	}
	c, err := New(Config{Key: newKeyOf(t), Subject: "mailto:it@clinic.example"}, subscriptions, client.HTTP(prefixes))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// subscribe adds a browser with an endpoint at the push service.
func (f *fixture) subscribe(t *testing.T, user, path string) (Subscription, browserKeys) {
	t.Helper()
	keys := newBrowserKeys(t)
	sub, err := f.subscriptions.Add(t.Context(), user, keys.subscription(f.service.URL+path))
	if err != nil {
		t.Fatal(err)
	}
	return sub, keys
}

func message(sub Subscription) *notifier.Message {
	return &notifier.Message{
		ID: someID, Target: sub.ID, User: "u-1", Kind: "lab.result.ready", Title: "New result", Body: "Log in to see it.",
		Action: "https://app.example/results/7",
	}
}

func wantFault(t *testing.T, err error, fault notifier.Fault, reason string) {
	t.Helper()
	e, ok := errors.AsType[*notifier.Error](err)
	if !ok || e.Fault != fault || e.Reason != reason || !slices.Contains(Reasons(), reason) {
		t.Fatalf("got %v, want %v %s", err, fault, reason)
	}
	for _, secret := range []string{"127.0.0.1", "secret", "https", "u-1", "result"} {
		if strings.Contains(e.Error(), secret) {
			t.Errorf("the error shows %q: %v", secret, e)
		}
	}
}

func TestChannel_Deliver(t *testing.T) {
	t.Parallel()
	f := setup(t, status(http.StatusCreated))
	sub, keys := f.subscribe(t, "u-1", "/send/secret")
	m := message(sub)
	m.Urgent, m.Collapse, m.Expires = true, "results of today", time.Now().Add(90*time.Second)
	if err := f.Deliver(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	requests, bodies := f.service.taken()
	if len(requests) != 1 {
		t.Fatalf("%d requests", len(requests))
	}
	r := requests[0]
	if r.Method != http.MethodPost || r.URL.Path != "/send/secret" || r.ProtoMajor != 2 {
		t.Errorf("%s %s %s", r.Method, r.URL.Path, r.Proto)
	}
	claims, key := verify(t, r.Header.Get("Authorization"))
	if claims["aud"] != f.service.URL || claims["sub"] != "mailto:it@clinic.example" || key != f.signer.key.PublicKey() {
		t.Errorf("VAPID %v of %s", claims, key)
	}
	for name, want := range map[string]string{
		"Content-Encoding": "aes128gcm", "Content-Type": "application/octet-stream", "Urgency": "high",
	} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := r.Header.Get("TTL"); got != "89" && got != "88" && got != "90" {
		t.Errorf("TTL: %q", got)
	}
	if got := r.Header.Get("Topic"); len(got) != 32 || strings.Trim(got, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		t.Errorf("Topic: %q", got)
	}
	const want = `{"id":"` + someID + `","kind":"lab.result.ready","title":"New result","body":"Log in to see it.","action":"https://app.example/results/7"}`
	if got := keys.decrypt(t, bodies[0]); string(got) != want {
		t.Errorf("the browser reads %s", got)
	}

	m = message(sub)
	if err := f.Deliver(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	requests, _ = f.service.taken()
	r = requests[1]
	if _, topic := r.Header["Topic"]; topic || r.Header.Get("Urgency") != "normal" || r.Header.Get("TTL") != "604800" {
		t.Errorf("a plain message: %v", r.Header)
	}
}

func TestTTL(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, tt := range []struct {
		expires time.Time
		want    time.Duration
	}{
		{time.Time{}, 7 * 24 * time.Hour},
		{now.Add(time.Hour), time.Hour},
		{now.Add(90 * 24 * time.Hour), 28 * 24 * time.Hour},
		{now.Add(-time.Hour), 0},
	} {
		if got := ttl(&notifier.Message{Expires: tt.expires}, now); got != tt.want {
			t.Errorf("expires %v: %v, want %v", tt.expires, got, tt.want)
		}
	}
}

func TestTopic(t *testing.T) {
	t.Parallel()
	a, b := newBrowserKeys(t).subscription("https://push.example/a"), newBrowserKeys(t).subscription("https://push.example/b")
	again := a
	if topic(&a, "visit-7") != topic(&again, "visit-7") || topic(&a, "visit-7") == topic(&a, "visit-8") {
		t.Error("the topic does not follow the key")
	}
	if topic(&a, "visit-7") == topic(&b, "visit-7") {
		t.Error("the push service sees who has the same visit")
	}
}

func TestChannel_Deliver_answers(t *testing.T) {
	t.Parallel()
	answer := func(w http.ResponseWriter, r *http.Request) {
		var code int
		_, _ = fmt.Sscanf(r.URL.Path, "/secret/%d", &code)
		w.Header().Set("Retry-After", "30")
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(code)
		_, _ = io.WriteString(w, `{"reason":"secret"}`)
	}
	f := setup(t, answer)
	for _, tt := range []struct {
		code   int
		fault  notifier.Fault
		reason string
		after  time.Duration
		gone   bool
	}{
		{code: 200},
		{code: 201},
		{code: 202},
		{code: 204},
		{code: 307, fault: notifier.Permanent, reason: exchange.ReasonRedirected},
		{code: 400, fault: notifier.Permanent, reason: exchange.ReasonRejected},
		{code: 401, fault: notifier.Held, reason: ReasonVAPIDRefused},
		{code: 403, fault: notifier.Held, reason: ReasonVAPIDRefused},
		{code: 404, fault: notifier.Gone, reason: ReasonUnsubscribed, gone: true},
		{code: 410, fault: notifier.Gone, reason: ReasonUnsubscribed, gone: true},
		{code: 413, fault: notifier.Permanent, reason: exchange.ReasonTooLarge},
		{code: 429, fault: notifier.Held, reason: exchange.ReasonRateLimited, after: 30 * time.Second},
		{code: 500, fault: notifier.Temporary, reason: exchange.ReasonServerError, after: 30 * time.Second},
		{code: 503, fault: notifier.Temporary, reason: exchange.ReasonServerError, after: 30 * time.Second},
	} {
		t.Run(fmt.Sprint(tt.code), func(t *testing.T) {
			t.Parallel()
			sub, _ := f.subscribe(t, "u-1", fmt.Sprintf("/secret/%d", tt.code))
			err := f.Deliver(t.Context(), message(sub))
			if tt.reason == "" {
				if err != nil {
					t.Error(err)
				}
			} else {
				wantFault(t, err, tt.fault, tt.reason)
				if e, _ := errors.AsType[*notifier.Error](err); e.Code != tt.code || e.After != tt.after {
					t.Errorf("code %d after %v", e.Code, e.After)
				}
			}
			_, err = f.subscriptions.Get(t.Context(), "u-1", sub.ID)
			if gone := errors.Is(err, ErrNoSubscription); gone != tt.gone {
				t.Errorf("removed: %v, want %v", gone, tt.gone)
			}
		})
	}
}

func TestChannel_Deliver_noSubscription(t *testing.T) {
	t.Parallel()
	f := setup(t, status(http.StatusCreated))
	sub, _ := f.subscribe(t, "u-1", "/secret")
	for name, change := range map[string]func(m *notifier.Message){
		"unknown":        func(m *notifier.Message) { m.Target = strings.Repeat("0", 32) },
		"no id":          func(m *notifier.Message) { m.Target = "*" },
		"another's":      func(m *notifier.Message) { m.User = "u-2" },
		"nobody's":       func(m *notifier.Message) { m.User = "" },
		"it is the user": func(m *notifier.Message) { m.User, m.Target = sub.ID, "u-1" },
	} {
		m := message(sub)
		change(m)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantFault(t, f.Deliver(t.Context(), m), notifier.Gone, ReasonNoSubscription)
			if requests, _ := f.service.taken(); len(requests) != 0 {
				t.Errorf("%d requests were made", len(requests))
			}
		})
	}
}

// The endpoint is what a user sent: it must not lead the workers inside.
func TestChannel_Deliver_forbiddenEndpoint(t *testing.T) {
	t.Parallel()
	f := setup(t, status(http.StatusCreated))
	c := f.channel(t) // as in production: no exceptions
	sub, _ := f.subscribe(t, "u-1", "/secret")
	wantFault(t, c.Deliver(t.Context(), message(sub)), notifier.Gone, exchange.ReasonForbidden)
	if requests, _ := f.service.taken(); len(requests) != 0 {
		t.Error("it was called")
	}
	if got := ids(t, f.subscriptions, "u-1"); got != nil {
		t.Errorf("still there: %v", got)
	}
}

func TestChannel_Deliver_noAnswer(t *testing.T) {
	t.Parallel()
	f := setup(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	sub, _ := f.subscribe(t, "u-1", "/secret")
	wantFault(t, f.Deliver(t.Context(), message(sub)), notifier.Unknown, exchange.ReasonNoAnswer)
	f.service.Close()
	f.Channel = f.channel(t, "127.0.0.0/8") // one that has no connection left over from before
	wantFault(t, f.Deliver(t.Context(), message(sub)), notifier.Temporary, "connect")
	f.redis.Kill()
	wantFault(t, f.Deliver(t.Context(), message(sub)), notifier.Held, ReasonRegistry)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Deliver(over, message(sub)); !errors.Is(err, context.Canceled) {
		t.Errorf("the context is over: %v", err)
	}
	if _, err := f.Targets(t.Context(), "u-1"); err == nil {
		t.Error("Targets without Redis: no error")
	}
}

// One message to many browsers at once; the race detector watches the message.
func TestChannel_Deliver_concurrently(t *testing.T) {
	t.Parallel()
	f := setup(t, status(http.StatusCreated))
	browsers := map[string]browserKeys{}
	for i := range MaxPerUser {
		path := fmt.Sprintf("/secret/%d", i)
		_, browsers[path] = f.subscribe(t, "u-1", path)
	}
	targets, err := f.Targets(t.Context(), "u-1")
	if err != nil || len(targets) != MaxPerUser {
		t.Fatalf("%d targets, %v", len(targets), err)
	}
	shared := message(Subscription{})
	shared.Body = strings.Repeat("🩺", 1200) // is cut
	var wg sync.WaitGroup
	for _, target := range targets {
		wg.Go(func() {
			m := *shared
			m.Target = target
			if err := f.Deliver(t.Context(), &m); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	requests, bodies := f.service.taken()
	if len(requests) != MaxPerUser {
		t.Fatalf("%d requests", len(requests))
	}
	tokens := map[string]bool{}
	for i, r := range requests {
		tokens[r.Header.Get("Authorization")] = true
		var p payload
		if err := json.Unmarshal(browsers[r.URL.Path].decrypt(t, bodies[i]), &p); err != nil || !strings.HasSuffix(p.Body, "🩺…") {
			t.Errorf("%s reads %.40q, %v", r.URL.Path, p.Body, err)
		}
	}
	if len(tokens) != 1 {
		t.Errorf("%d tokens for one push service", len(tokens))
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	subscriptions, err := NewSubscriptions(testenv.Redis(t).Open(t), "")
	if err != nil {
		t.Fatal(err)
	}
	good := Config{Key: newKeyOf(t), Subject: "mailto:it@clinic.example"}
	if _, err := New(good, subscriptions, http.DefaultClient); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{}, nil, nil); err == nil || !strings.Contains(err.Error(), "VAPID_PRIVATE_KEY") || !strings.Contains(err.Error(), "subject") {
		t.Errorf("an empty config: %v", err)
	}
	if _, err := New(good, nil, http.DefaultClient); err == nil {
		t.Error("without subscriptions: no error")
	}
	if _, err := New(good, subscriptions, nil); err == nil {
		t.Error("without a client: no error")
	}
}
