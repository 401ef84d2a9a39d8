package webhook

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/medicalink/postroom/internal/egress"
	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/endpoint"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

const canary = "canary-4711"

// patient lets a busy machine take its time.
var patient = egress.Config{Timeout: time.Minute, DialTimeout: time.Minute, TLSTimeout: time.Minute, HeaderTimeout: time.Minute}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// setup is a receiver on loopback, a registry that has it as "lab", and the channel.
type setup struct {
	*Channel
	redis  *rediskit.Client
	server *httptest.Server
	logged *bytes.Buffer

	mu    sync.Mutex // owns what follows
	at    time.Time
	calls []call
}

type call struct {
	header http.Header
	body   []byte
}

func newSetup(t *testing.T, handler http.HandlerFunc, keys ...rediskit.Secret) *setup {
	t.Helper()
	s := &setup{redis: testenv.Redis(t).Open(t), at: time.Now(), logged: new(bytes.Buffer)}
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.calls = append(s.calls, call{r.Header, body})
		s.mu.Unlock()
		if handler != nil {
			handler(w, r)
		}
	}))
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	roots, patient := x509.NewCertPool(), patient
	roots.AddCert(s.server.Certificate())
	patient.RootCAs = roots
	client, err := egress.New(patient)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	registry := endpoint.NewRegistry(s.redis, "")
	if len(keys) == 0 {
		keys = []rediskit.Secret{NewSecret()}
	}
	s.Channel, err = New(client, registry)
	if err != nil {
		t.Fatal(err)
	}
	s.timeout = time.Minute
	s.now = func() time.Time {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.at
	}
	s.add(t, "lab", s.server.URL+"/"+canary, keys...)
	return s
}

func (s *setup) add(t *testing.T, id, url string, keys ...rediskit.Secret) {
	t.Helper()
	e := endpoint.Endpoint{ID: id, Kind: endpoint.Standard, URL: rediskit.Secret(url), Allow: loopback, Concurrency: 2}
	for _, k := range keys {
		e.Keys = append(e.Keys, endpoint.Key{Secret: k})
	}
	if _, err := s.registry.Add(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

func (s *setup) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = s.at.Add(d)
}

func (s *setup) received() []call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

func (s *setup) lab(t *testing.T) endpoint.Endpoint {
	t.Helper()
	e, err := endpoint.NewRegistry(s.redis, "").Get(t.Context(), "lab")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// send delivers a message and returns the error, which must not show any secret.
func (s *setup) send(t *testing.T) *notifier.Error {
	t.Helper()
	return s.sendTo(t, "lab")
}

func (s *setup) sendTo(t *testing.T, target string) *notifier.Error {
	t.Helper()
	ctx := zerolog.New(s.logged).WithContext(t.Context())
	err := s.Deliver(ctx, &notifier.Message{ID: id, Target: target, Kind: "lab.result.ready", Payload: payload})
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*notifier.Error](err)
	if !ok {
		t.Fatalf("no *notifier.Error: %v", err)
	}
	if !slices.Contains(Reasons(), e.Reason) {
		t.Errorf("%s is not among the reasons", e.Reason)
	}
	for _, secret := range []string{canary, "127.0.0.1", "1f81eb52", "whsec"} {
		if text := err.Error() + s.logged.String(); strings.Contains(text, secret) {
			t.Errorf("shows %s: %s", secret, text)
		}
	}
	return e
}

func TestChannel_Deliver(t *testing.T) {
	t.Parallel()
	secret, private := NewSecret(), newPrivateKey(t)
	s := newSetup(t, nil, secret, private)
	for range 2 {
		if err := s.send(t); err != nil {
			t.Fatal(err)
		}
	}
	library, err := standardwebhooks.NewWebhook(string(secret))
	if err != nil {
		t.Fatal(err)
	}
	calls := s.received()
	if len(calls) != 2 {
		t.Fatalf("%d calls", len(calls))
	}
	for _, c := range calls {
		if !bytes.Equal(c.body, payload) || c.header.Get(HeaderID) != id || c.header.Get("Content-Type") != "application/json" {
			t.Errorf("received %v\n%s", c.header, c.body)
		}
		if err := library.Verify(c.body, c.header); err != nil {
			t.Error(err)
		}
		for _, k := range []rediskit.Secret{secret, rediskit.Secret(PublicKey(private))} {
			if err := Verify(c.body, c.header, time.Now(), k); err != nil {
				t.Error(err)
			}
		}
	}
	if n := len(s.targets.byID); n != 0 {
		t.Errorf("%d healthy endpoints are kept in memory", n)
	}
}

// The bytes go out as they are, though another encoder would write them in another way.
func TestChannel_Deliver_keepsTheBytes(t *testing.T) {
	t.Parallel()
	s := newSetup(t, nil)
	odd := []byte("{ \"b\":1e0,\n\"a\":\"\\u003c<\" }")
	if err := s.Deliver(t.Context(), &notifier.Message{ID: id, Target: "lab", Payload: odd}); err != nil {
		t.Fatal(err)
	}
	if got := s.received()[0].body; !bytes.Equal(got, odd) {
		t.Errorf("received %s", got)
	}
}

// While a key is exchanged both verify; after the grace only the new one does.
func TestChannel_Deliver_rotation(t *testing.T) {
	t.Parallel()
	before, after := NewSecret(), NewSecret()
	s := newSetup(t, nil, before)
	if _, err := s.registry.RotateKey(t.Context(), "lab", after, time.Hour); err != nil {
		t.Fatal(err)
	}
	verdicts := func() (old, fresh error) {
		t.Helper()
		if err := s.send(t); err != nil {
			t.Fatal(err)
		}
		calls := s.received()
		c := calls[len(calls)-1]
		return Verify(c.body, c.header, s.now(), before), Verify(c.body, c.header, s.now(), after)
	}
	if old, fresh := verdicts(); old != nil || fresh != nil {
		t.Errorf("within the grace: old key %v, new key %v", old, fresh)
	}
	s.pass(time.Hour + time.Minute) // its end is by Redis's clock, a moment later than ours
	if old, fresh := verdicts(); !errors.Is(old, ErrSignature) || fresh != nil {
		t.Errorf("after the grace: old key %v, new key %v", old, fresh)
	}
}

func TestChannel_Deliver_statuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		code   int
		fault  notifier.Fault
		reason string
	}{
		{301, notifier.Temporary, ReasonRedirected},
		{307, notifier.Temporary, ReasonRedirected},
		{400, notifier.Temporary, ReasonRejected},
		{401, notifier.Temporary, ReasonRejected},
		{404, notifier.Temporary, ReasonRejected},
		{410, notifier.Gone, ReasonGone},
		{429, notifier.Temporary, ReasonRateLimited},
		{500, notifier.Temporary, ReasonServerError},
		{502, notifier.Temporary, ReasonUnavailable},
		{503, notifier.Temporary, ReasonUnavailable},
		{504, notifier.Temporary, ReasonUnavailable},
		{599, notifier.Temporary, ReasonServerError},
		{200, 0, ""},
		{204, 0, ""},
		{299, 0, ""},
	} {
		t.Run(fmt.Sprint(tt.code), func(t *testing.T) {
			t.Parallel()
			s := newSetup(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(tt.code)
			})
			err := s.send(t)
			if n := len(s.received()); n != 1 {
				t.Errorf("%d calls", n)
			}
			if tt.reason == "" {
				if err != nil || !s.lab(t).FailingSince.IsZero() {
					t.Errorf("%v", err)
				}
				return
			}
			if err == nil || err.Fault != tt.fault || err.Reason != tt.reason || err.Code != tt.code {
				t.Fatalf("%+v", err)
			}
			e := s.lab(t)
			if gone := tt.fault == notifier.Gone; (e.Disabled != nil) != gone || e.FailingSince.IsZero() != gone {
				t.Errorf("disabled %+v, failing since %s", e.Disabled, e.FailingSince)
			}
		})
	}
}

func TestChannel_Deliver_gone(t *testing.T) {
	t.Parallel()
	s := newSetup(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) })
	if err := s.send(t); err == nil || err.Fault != notifier.Gone || err.Reason != ReasonGone {
		t.Fatalf("%+v", err)
	}
	if err := s.send(t); err == nil || err.Fault != notifier.Gone || err.Reason != ReasonDisabled || len(s.received()) != 1 {
		t.Errorf("afterwards: %+v, %d calls", err, len(s.received()))
	}
	if !strings.Contains(s.logged.String(), `"endpoint":"lab"`) || s.lab(t).Disabled.Reason != endpoint.DisabledGone {
		t.Errorf("logged %q", s.logged.String())
	}
}

func TestChannel_Deliver_retryAfter(t *testing.T) {
	t.Parallel()
	s := newSetup(t, nil)
	var header string
	code := http.StatusTooManyRequests
	s.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		w.Header().Set("Retry-After", header)
		w.WriteHeader(code)
	})
	for _, tt := range []struct {
		header     string
		code       int
		want, held time.Duration
	}{
		{"120", 429, 2 * time.Minute, 2 * time.Minute},
		{"DATE", 503, 2 * time.Minute, 2 * time.Minute},
		{"90", 502, 90 * time.Second, 90 * time.Second},
		{"90", 504, 90 * time.Second, 90 * time.Second},
		{"99999999999999999999", 429, MaxRetryAfter, maxAsked},
		{"whenever", 429, 0, firstPause * 4 / 5},
		{"90", 500, 0, 0}, // says nothing there
	} {
		s.mu.Lock()
		header, code = tt.header, tt.code
		if header == "DATE" {
			s.at = s.at.Truncate(time.Second)
			header = s.at.Add(2 * time.Minute).UTC().Format(http.TimeFormat)
		}
		s.mu.Unlock()
		s.targets.forget("lab")
		err := s.send(t)
		if err == nil || err.Fault != notifier.Temporary || err.After != tt.want {
			t.Fatalf("%d with %q: %+v, want a wait of %s", tt.code, tt.header, err, tt.want)
		}
		// Others wait as well: what it asked for, at most an hour.
		err = s.send(t)
		if tt.held == 0 {
			if err == nil || err.Fault != notifier.Temporary {
				t.Errorf("%d with %q: the next one is held: %+v", tt.code, tt.header, err)
			}
			continue
		}
		if err == nil || err.Fault != notifier.Held || err.Reason != ReasonBreakerOpen || err.After < tt.held || err.After > max(tt.held, 2*firstPause)+2*turn {
			t.Errorf("%d with %q: the next one: %+v, want it held for %s", tt.code, tt.header, err, tt.held)
		}
	}
}

// An endpoint that is down for an hour gets a probe now and then, costs the messages
// nothing meanwhile, and everything again when it is back.
func TestChannel_Deliver_breaker(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	down := true
	s := newSetup(t, func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if down {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	tried, held := 0, 0
	for range 60 * 60 { // one message a second
		err := s.send(t)
		switch {
		case err == nil:
			t.Fatal("delivered while it is down")
		case err.Fault == notifier.Temporary:
			tried++
		case err.Fault == notifier.Held && err.Reason == ReasonBreakerOpen && err.After > 0 && err.After <= maxPause*6/5+2*turn:
			held++
		default:
			t.Fatalf("%+v", err)
		}
		s.pass(time.Second)
	}
	// Five to open, then probes after 5, 10, 20, … 300, 300 s, give or take a fifth.
	if tried < faultsToOpen+10 || tried > faultsToOpen+25 || held != 60*60-tried {
		t.Errorf("%d tries and %d held in an hour", tried, held)
	}
	if s.lab(t).FailingSince.IsZero() {
		t.Error("the registry does not know")
	}

	mu.Lock()
	down = false
	mu.Unlock()
	s.pass(maxPause * 6 / 5)
	for range 3 {
		if err := s.send(t); err != nil {
			t.Fatalf("after it came back: %+v", err)
		}
	}
	if e := s.lab(t); !e.FailingSince.IsZero() || e.Disabled != nil {
		t.Errorf("after it came back: %+v", e)
	}
}

// Of many messages that wait for an open breaker, one is the probe.
func TestChannel_Deliver_probesWithOne(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}), make(chan struct{})
	first := true
	s := newSetup(t, nil)
	s.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		wait := !first
		first = false
		s.mu.Unlock()
		if wait {
			arrived <- struct{}{}
			<-release
			return
		}
		w.WriteHeader(http.StatusTooManyRequests)
	})
	if err := s.send(t); err == nil {
		t.Fatal("delivered")
	}
	s.pass(2 * firstPause)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.send(t); err != nil {
			t.Errorf("the probe: %+v", err)
		}
	})
	<-arrived
	if err := s.Deliver(t.Context(), &notifier.Message{ID: id, Target: "lab", Payload: payload}); err == nil {
		t.Error("a second probe went out")
	} else if e, ok := errors.AsType[*notifier.Error](err); !ok || e.Fault != notifier.Held || e.Reason != ReasonBreakerOpen {
		t.Errorf("beside the probe: %v", err)
	}
	close(release)
	wg.Wait()
}

func TestChannel_Deliver_limitsConcurrency(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}), make(chan struct{})
	s := newSetup(t, func(http.ResponseWriter, *http.Request) { arrived <- struct{}{}; <-release })
	var wg sync.WaitGroup
	for range 2 { // as setup.add says
		wg.Go(func() {
			if err := s.Deliver(t.Context(), &notifier.Message{ID: id, Target: "lab", Payload: payload}); err != nil {
				t.Error(err)
			}
		})
		<-arrived
	}
	if err := s.send(t); err == nil || err.Fault != notifier.Held || err.Reason != ReasonBusy || err.After <= 0 {
		t.Errorf("the third: %+v", err)
	}
	close(release)
	wg.Wait()
	go func() { <-arrived }()
	if err := s.send(t); err != nil {
		t.Errorf("when there is room again: %+v", err)
	}
}

func TestChannel_Deliver_timeout(t *testing.T) {
	t.Parallel()
	s := newSetup(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	s.timeout = 50 * time.Millisecond
	if err := s.send(t); err == nil || err.Fault != notifier.Temporary || err.Reason != ReasonTimeout {
		t.Errorf("%+v", err)
	}
	if s.lab(t).FailingSince.IsZero() {
		t.Error("not recorded as a failure")
	}
}

// An attempt that we break off says nothing about the endpoint.
func TestChannel_Deliver_cancelled(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{})
	s := newSetup(t, func(_ http.ResponseWriter, r *http.Request) { close(arrived); <-r.Context().Done() })
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Deliver(ctx, &notifier.Message{ID: id, Target: "lab", Payload: payload}); err != context.Canceled { //nolint:errorlint // exactly that
			t.Errorf("%v", err)
		}
	})
	<-arrived
	cancel()
	wg.Wait()
	if !s.lab(t).FailingSince.IsZero() || len(s.targets.byID) != 0 {
		t.Error("recorded as a failure")
	}
}

// An answer without end is cut off, and counts by its status.
func TestChannel_Deliver_endlessAnswer(t *testing.T) {
	t.Parallel()
	chunk := bytes.Repeat([]byte(canary), 1000)
	s := newSetup(t, func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	if err := s.send(t); err != nil {
		t.Errorf("%+v", err)
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	long := bytes.NewReader(make([]byte, 64<<10))
	drain(long)
	if got := long.Size() - int64(long.Len()); got != maxAnswer {
		t.Errorf("read %d bytes of an answer, want %d", got, maxAnswer)
	}
}

// A message that began before the breaker opened does not close it when it arrives.
func TestPass_end_late(t *testing.T) {
	t.Parallel()
	all := targets{now: time.Now, byID: make(map[string]*target)}
	late, held := all.begin("lab", 2)
	if held != nil {
		t.Fatal(held.reason)
	}
	asked, held := all.begin("lab", 2)
	if held != nil {
		t.Fatal(held.reason)
	}
	asked.end(outcomeTrip, time.Minute)
	late.end(outcomeAlive, 0)
	if _, held := all.begin("lab", 2); held == nil || held.reason != ReasonBreakerOpen {
		t.Errorf("the next one: %+v", held)
	}
}

func TestChannel_Deliver_unreachable(t *testing.T) {
	t.Parallel()
	s := newSetup(t, nil)
	s.add(t, "port", "https://127.0.0.1:1/", NewSecret())
	s.add(t, "plain", strings.Replace(s.server.URL, "https", "http", 1), NewSecret())
	if err := s.sendTo(t, "port"); err == nil || err.Fault != notifier.Temporary || err.Reason != ReasonConnect {
		t.Errorf("nobody listens: %+v", err)
	}
	if err := s.sendTo(t, "plain"); err == nil || err.Reason != ReasonRejected || err.Code != http.StatusBadRequest {
		t.Errorf("http to https: %+v", err)
	}
	// A client that does not trust the receiver.
	untrusting, err := egress.New(patient)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(untrusting.Close)
	s.client = untrusting
	if err := s.send(t); err == nil || err.Fault != notifier.Temporary || err.Reason != ReasonTLS {
		t.Errorf("a certificate of nobody: %+v", err)
	}
}

// The registry's own guard can be passed by a name, or by a record that is older than
// the rules.
func TestChannel_Deliver_forbidden(t *testing.T) {
	t.Parallel()
	s := newSetup(t, nil)
	s.add(t, "url", "https://127.0.0.1/", NewSecret())
	record, err := s.redis.HGet(t.Context(), "postroom:endpoint:{url}", "record").Result()
	if err != nil {
		t.Fatal(err)
	}
	record = strings.Replace(record, "127.0.0.0/8", "10.0.0.0/8", 1)
	if err := s.redis.HSet(t.Context(), "postroom:endpoint:{url}", "record", record).Err(); err != nil {
		t.Fatal(err)
	}
	if err := s.sendTo(t, "url"); err == nil || err.Fault != notifier.Permanent || err.Reason != ReasonForbidden {
		t.Errorf("a URL that may not be called: %+v", err)
	}
	// localhost is a name as soon as there is an allow-list, and resolves to loopback.
	e := endpoint.Endpoint{
		ID: "name", Kind: endpoint.Standard, URL: "https://localhost/", Keys: []endpoint.Key{{Secret: NewSecret()}},
		Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	}
	if _, err := s.registry.Add(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if err := s.sendTo(t, "name"); err == nil || err.Fault != notifier.Temporary || err.Reason != ReasonForbidden {
		t.Errorf("a name that leads where it must not: %+v", err)
	}
}

func TestChannel_Deliver_invalid(t *testing.T) {
	t.Parallel()
	s := newSetup(t, nil)
	if _, err := s.registry.Add(t.Context(), endpoint.Endpoint{ID: "chat", Kind: endpoint.Slack, URL: "https://chat.example.com/"}); err != nil {
		t.Fatal(err)
	}
	s.add(t, "keyless", s.server.URL, "whsec_none")
	for name, tt := range map[string]struct {
		m      notifier.Message
		fault  notifier.Fault
		reason string
	}{
		"unknown endpoint":   {notifier.Message{ID: id, Target: "nobody", Payload: payload}, notifier.Gone, ReasonUnregistered},
		"no endpoint id":     {notifier.Message{ID: id, Payload: payload}, notifier.Gone, ReasonUnregistered},
		"a chat":             {notifier.Message{ID: id, Target: "chat", Payload: payload}, notifier.Gone, ReasonUnregistered},
		"no payload":         {notifier.Message{ID: id, Target: "lab"}, notifier.Permanent, ReasonInvalid},
		"no id":              {notifier.Message{Target: "lab", Payload: payload}, notifier.Permanent, ReasonInvalid},
		"a key that is none": {notifier.Message{ID: id, Target: "keyless", Payload: payload}, notifier.Held, ReasonKey},
	} {
		err := s.Deliver(t.Context(), &tt.m)
		if e, ok := errors.AsType[*notifier.Error](err); !ok || e.Fault != tt.fault || e.Reason != tt.reason {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(s.received()) != 0 {
		t.Error("something was sent")
	}
}

// Without the registry nothing is lost and nothing is sent.
func TestChannel_Deliver_withoutRedis(t *testing.T) {
	t.Parallel()
	s := newSetup(t, nil)
	if err := s.redis.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.send(t); err == nil || err.Fault != notifier.Held || err.Reason != ReasonRegistry {
		t.Errorf("%+v", err)
	}
}

// After five days without a delivery it is over, and the operator is told.
func TestChannel_Deliver_disablesAfterFiveDays(t *testing.T) {
	t.Parallel()
	s := newSetup(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	if err := s.send(t); err == nil || err.Fault != notifier.Temporary {
		t.Fatalf("%+v", err)
	}
	since := time.Now().Add(-endpoint.FailingLimit - time.Minute).UnixMilli() // the clock is Redis's
	if err := s.redis.HSet(t.Context(), "postroom:endpoint:{lab}", "failing", since).Err(); err != nil {
		t.Fatal(err)
	}
	if err := s.send(t); err == nil || err.Fault != notifier.Gone || err.Reason != ReasonDisabled || err.Code != http.StatusNotFound {
		t.Fatalf("%+v", err)
	}
	if d := s.lab(t).Disabled; d == nil || d.Reason != endpoint.DisabledFailing {
		t.Errorf("disabled: %+v", d)
	}
	if got := s.logged.String(); !strings.Contains(got, `"level":"warn"`) || !strings.Contains(got, `"endpoint":"lab"`) {
		t.Errorf("logged %q", got)
	}
}

func TestSchedule(t *testing.T) {
	t.Parallel()
	var sum time.Duration
	for _, d := range Schedule() {
		sum += d
	}
	if want := 75*time.Hour + 35*time.Minute + 5*time.Second; sum != want {
		t.Errorf("the last try is after %s, the specification's after %s", sum, want)
	}
}

func TestLog(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		ctx := t.Context()
		l := NewLog(client, client.Service())
		const records = 2*logPage + 5
		for i := range records {
			r := Record{Notification: fmt.Sprint(i), Outcome: OutcomeDelivered, Code: 200, Job: []byte(`{"v":1}`)}
			if i%2 == 1 {
				r.Outcome, r.Reason, r.Code = OutcomeFailed, ReasonServerError, 500
			}
			if err := l.Append(ctx, "lab", r); err != nil {
				t.Fatal(err)
			}
		}
		read := func(from, to time.Time) (list []Record) {
			t.Helper()
			for r, err := range l.Range(ctx, "lab", from, to) {
				if err != nil {
					t.Fatal(err)
				}
				list = append(list, r)
			}
			return list
		}
		all := read(time.Time{}, time.Time{})
		if len(all) != records {
			t.Fatalf("%d records", len(all))
		}
		for i, r := range all {
			if r.Notification != fmt.Sprint(i) || r.Time.IsZero() || string(r.Job) != `{"v":1}` || (r.Outcome == OutcomeFailed) != (r.Code == 500) {
				t.Fatalf("record %d: %+v", i, r)
			}
		}
		first, last := all[0].Time, all[records-1].Time
		if got := read(first, last); len(got) != records {
			t.Errorf("%d records from the first to the last", len(got))
		}
		if got := read(last.Add(time.Millisecond), time.Time{}); len(got) != 0 {
			t.Errorf("%d records after the last", len(got))
		}
		if got := read(time.Time{}, first.Add(-time.Millisecond)); len(got) != 0 {
			t.Errorf("%d records before the first", len(got))
		}
		if ttl, err := client.PTTL(ctx, l.key("lab")).Result(); err != nil || ttl <= 0 || ttl > LogRetention {
			t.Errorf("it lives for %s, %v", ttl, err)
		}
		if err := l.Delete(ctx, "lab"); err != nil || len(read(time.Time{}, time.Time{})) != 0 {
			t.Errorf("after the deletion: %v", err)
		}
	})
}

// Neither number nor age of the records grows without end.
func TestLog_isBounded(t *testing.T) {
	t.Parallel()
	client := testenv.Redis(t).Open(t)
	ctx, l := t.Context(), NewLog(client, "")
	old := time.Now().Add(-LogRetention - time.Hour).UnixMilli()
	// In one script, which a repeated call does not add to.
	const fill = `if redis.call('EXISTS', KEYS[1]) == 1 then return end
for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], ARGV[2] == '*' and '*' or ARGV[2] .. '-' .. i, 'notification', 'x') end`
	for _, args := range [][]any{{"old", 1000, old}, {"long", LogLength + 1000, "*"}} {
		if err := client.Eval(ctx, fill, []string{l.key(fmt.Sprint(args[0]))}, args[1:]...).Err(); err != nil && !errors.Is(err, redis.Nil) {
			t.Fatal(err)
		}
	}
	for id, most := range map[string]int64{"old": 101, "long": LogLength + 101} { // both trim by nodes of 100
		if err := l.Append(ctx, id, Record{Notification: "y", Outcome: OutcomeDelivered}); err != nil {
			t.Fatal(err)
		}
		if n, err := client.XLen(ctx, l.key(id)).Result(); err != nil || n > most {
			t.Errorf("%s: %d records, %v", id, n, err)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	private, err := NewPrivateKey()
	if err != nil {
		b.Fatal(err)
	}
	for name, key := range map[string]rediskit.Secret{"v1": NewSecret(), "v1a": private} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := Sign(payload, id, time.Now(), key); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
