package devbox

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/egress"
	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/endpoint"
	"github.com/medicalink/postroom/internal/notifier/webhook"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
)

// Every channel goes from the queue through the real worker to the receiver, as it
// would to a partner's.
func TestReceiver(t *testing.T) {
	t.Parallel()
	b, base := newBox(t)
	receipt, err := b.producer.SendNotification(t.Context(), tasks.Notification{
		Kind: "lab.result.ready", User: demoUser, Title: "Ada's result", Body: "It is in her record.", Sensitivity: tasks.SensitivityPersonal,
		Channels: []tasks.Channel{tasks.ChannelWebhook, tasks.ChannelChat, tasks.ChannelSMS}, Webhook: demoWebhook, Chat: demoChat, Phone: demoPhone,
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "all have arrived", func() bool { return len(b.receiver.list()) == 3 })
	got := map[tasks.Channel]arrival{}
	for _, a := range getJSON[struct {
		Arrivals []arrival `json:"arrivals"`
	}](t, base+"/api/arrivals").Arrivals {
		got[a.Channel] = a
	}
	hook := got[tasks.ChannelWebhook]
	if hook.Verified == nil || !*hook.Verified || hook.Text != "lab.result.ready" || hook.Target != demoWebhook || !strings.Contains(hook.Body, receipt.ID) {
		t.Errorf("the webhook is %+v", hook)
	}
	const text = "Ada's result\nIt is in her record."
	if a := got[tasks.ChannelChat]; a.Text != text || a.Target != demoChat || a.Verified != nil {
		t.Errorf("the chat message is %+v", a)
	}
	if a := got[tasks.ChannelSMS]; !strings.Contains(a.Text, "Ada's result") || a.Target != demoPhone || a.Verified != nil {
		t.Errorf("the text message is %+v", a)
	}
	if now, _ := b.changes.state(); now.Arrivals != 3 {
		t.Errorf("the pages were told of %d", now.Arrivals)
	}
}

func TestReceiver_refuses(t *testing.T) {
	t.Parallel()
	r := &receiver{secret: webhook.NewSecret(), token: "t0ken", changed: func() {}}
	const id = "0199b2c0-0000-7000-8000-000000000001"
	sign := func(body string, key rediskit.Secret) http.Header {
		header, err := webhook.Sign([]byte(body), id, time.Now(), key)
		if err != nil {
			t.Fatal(err)
		}
		return header
	}
	const body = `{"type":"lab.result.ready"}`
	basic := func(password string) http.Header {
		req := httptest.NewRequest(http.MethodPost, "/", nil)
		req.SetBasicAuth(smsAccount, password)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return req.Header
	}
	const messages = "/2010-04-01/Accounts/" + smsAccount + "/Messages.json"
	verified := func(a arrival) string {
		if a.Verified == nil {
			return "unsigned"
		}
		return fmt.Sprint(*a.Verified)
	}
	for _, tt := range []struct {
		name, path, body string
		header           http.Header
		status           int
		want             string // of what is recorded, empty if nothing is
	}{
		{"signed", "/webhook", body, sign(body, r.secret), 204, "true"},
		{"another's key", "/webhook", body, sign(body, webhook.NewSecret()), 401, "false"},
		{"another body", "/webhook", body, sign("{}", r.secret), 401, "false"},
		{"unsigned", "/webhook", "no JSON", nil, 401, "false"},
		{"too large", "/webhook", strings.Repeat("x", maxBody+1), nil, 200, ""},
		{"chat", "/chat/t0ken", `{"title":"a"}`, nil, 204, "unsigned"},
		{"chat without JSON", "/chat/t0ken", `a`, nil, 400, ""},
		{"no chat", "/chat/other", `{"title":"a"}`, nil, 404, ""},
		{"SMS", messages, "To=%2B12025550123&Body=a", basic("t0ken"), 201, "unsigned"},
		{"SMS of another account", messages, "To=%2B12025550123&Body=a", basic("other"), 401, ""},
		{"SMS without a form", messages, "%", basic("t0ken"), 400, ""},
	} {
		before := r.lastID
		req := httptest.NewRequest(http.MethodPost, tt.path, strings.NewReader(tt.body))
		if tt.header != nil {
			req.Header = tt.header
		}
		rec := httptest.NewRecorder()
		r.handler().ServeHTTP(rec, req)
		got := ""
		if r.lastID != before {
			got = verified(r.list()[0])
		}
		if rec.Code != tt.status || got != tt.want {
			t.Errorf("%s: %d, recorded %q, want %d and %q", tt.name, rec.Code, got, tt.status, tt.want)
		}
	}
}

func TestReceiver_isBounded(t *testing.T) {
	t.Parallel()
	r := &receiver{changed: func() {}}
	for range keepArrivals + 5 {
		r.add(arrival{})
	}
	if l := r.list(); len(l) != keepArrivals || l[0].ID != keepArrivals+5 {
		t.Errorf("%d are kept, the newest is %d", len(l), l[0].ID)
	}
}

// An endpoint that somebody has registered in this Redis is not called.
func TestReceiver_callsNobodyElse(t *testing.T) {
	t.Parallel()
	b, _ := newBox(t)
	called := make(chan string, 2)
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		called <- r.URL.Path
	}))
	defer other.Close()
	registry := endpoint.NewRegistry(b.rdb, "")
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	for _, e := range []endpoint.Endpoint{
		{ID: "partner", Kind: endpoint.Standard, URL: rediskit.Secret(other.URL + "/hook"), Keys: []endpoint.Key{{Secret: webhook.NewSecret()}}, Allow: loopback},
		{ID: "team", Kind: endpoint.JSON, URL: rediskit.Secret(other.URL + "/chat"), Allow: loopback},
	} {
		if _, err := registry.Add(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	// The endpoints are good: without the receiver's rule they are called.
	client, err := egress.New(egress.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	direct, err := webhook.New(client, registry)
	if err != nil {
		t.Fatal(err)
	}
	m := notifier.Message{ID: "0199b2c0-0000-7000-8000-000000000001", Target: "partner", Title: "a", Payload: []byte(`{}`)}
	if err := direct.Deliver(t.Context(), &m); err != nil || <-called != "/hook" {
		t.Fatalf("called directly: %v", err)
	}
	channels, err := b.receiver.channels(b.rdb, "")
	if err != nil {
		t.Fatal(err)
	}
	for channel, target := range map[tasks.Channel]string{tasks.ChannelWebhook: "partner", tasks.ChannelChat: "team"} {
		m.Target = target
		if e, ok := errors.AsType[*notifier.Error](channels[channel].Deliver(t.Context(), &m)); !ok || e.Fault != notifier.Permanent {
			t.Errorf("%s to %s: %v, want a refusal for good", channel, target, e)
		}
	}
	select {
	case path := <-called:
		t.Errorf("%s was called", path)
	default:
	}
}
