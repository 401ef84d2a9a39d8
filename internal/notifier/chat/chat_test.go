package chat

import (
	"context"
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
	"github.com/medicalink/postroom/internal/notifier/endpoint"
	"github.com/medicalink/postroom/internal/notifier/exchange"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

// services answers as the services do.
type services struct {
	*httptest.Server
	mu     sync.Mutex
	bodies map[string][]string // by path and query
}

func newServices(t *testing.T, answer func(w http.ResponseWriter, path string)) *services {
	t.Helper()
	s := &services{bodies: map[string][]string{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s, %v", r.Method, r.Header.Get("Content-Type"), err)
		}
		s.mu.Lock()
		s.bodies[r.URL.RequestURI()] = append(s.bodies[r.URL.RequestURI()], string(body))
		s.mu.Unlock()
		answer(w, r.URL.Path)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *services) got(path string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bodies[path]
}

func setup(t *testing.T) (*Channel, *testenv.RedisServer) {
	t.Helper()
	server := testenv.Redis(t)
	client, err := egress.New(egress.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	c, err := New(client, endpoint.NewRegistry(server.Open(t), ""))
	if err != nil {
		t.Fatal(err)
	}
	return c, server
}

func (c *Channel) add(t *testing.T, id string, kind endpoint.Kind, url string) {
	t.Helper()
	_, err := c.registry.Add(t.Context(), endpoint.Endpoint{
		ID: id, Kind: kind, URL: rediskit.Secret(url), Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func message(id string) *notifier.Message {
	return &notifier.Message{ID: someID, Target: id, User: "u-1", Kind: "lab.result.ready", Title: "New result", Body: "Log in.", Action: "https://app.example/"}
}

func wantFault(t *testing.T, err error, fault notifier.Fault, reason string) {
	t.Helper()
	e, ok := errors.AsType[*notifier.Error](err)
	if !ok || e.Fault != fault || e.Reason != reason || !slices.Contains(Reasons(), reason) {
		t.Fatalf("got %v, want %v %s", err, fault, reason)
	}
	for _, secret := range []string{"127.0.0.1", "secret", "http:", "u-1", "New result"} {
		if strings.Contains(e.Error(), secret) {
			t.Errorf("the error shows %q: %v", secret, e)
		}
	}
}

func TestChannel_Deliver(t *testing.T) {
	t.Parallel()
	c, _ := setup(t)
	s := newServices(t, func(w http.ResponseWriter, path string) {
		switch path {
		case "/services/T0/B0/secret":
			_, _ = io.WriteString(w, "ok")
		case "/workflows/secret":
			w.WriteHeader(http.StatusAccepted)
		case "/api/webhooks/1/secret":
			_, _ = io.WriteString(w, `{"id":"1","content":"…"}`)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	})
	for i, tt := range []struct {
		kind     endpoint.Kind
		path     string
		asked    string
		contains string
	}{
		{endpoint.Slack, "/services/T0/B0/secret", "/services/T0/B0/secret", `"text":"New result"`},
		{endpoint.Teams, "/workflows/secret?sig=x", "/workflows/secret?sig=x", `"type":"AdaptiveCard"`},
		{endpoint.Discord, "/api/webhooks/1/secret?thread_id=7", "/api/webhooks/1/secret?thread_id=7&wait=true", `"content":"**New result**`},
		{endpoint.JSON, "/hook/secret", "/hook/secret", `"id":"` + someID + `"`},
	} {
		id := fmt.Sprint("chat-", i)
		c.add(t, id, tt.kind, s.URL+tt.path)
		if err := c.Deliver(t.Context(), message(id)); err != nil {
			t.Errorf("%s: %v", tt.kind, err)
		}
		if got := s.got(tt.asked); len(got) != 1 || !strings.Contains(got[0], tt.contains) || !json.Valid([]byte(got[0])) {
			t.Errorf("%s: got %q", tt.kind, got)
		}
	}
}

func TestChannel_Deliver_answers(t *testing.T) {
	t.Parallel()
	c, _ := setup(t)
	type answer struct {
		kind   endpoint.Kind
		status int
		body   string
		fault  notifier.Fault
		reason string
		after  time.Duration
	}
	answers := []answer{
		{endpoint.Slack, 404, "no_service", notifier.Gone, ReasonGone, 0},
		{endpoint.Slack, 404, "channel_not_found", notifier.Gone, ReasonGone, 0},
		{endpoint.Slack, 410, "channel_is_archived", notifier.Gone, ReasonGone, 0},
		{endpoint.Slack, 403, "invalid_token\n", notifier.Gone, ReasonGone, 0},
		{endpoint.Slack, 403, "action_prohibited", notifier.Permanent, exchange.ReasonRejected, 0},
		{endpoint.Slack, 400, "invalid_payload", notifier.Permanent, exchange.ReasonRejected, 0},
		{endpoint.Slack, 429, "rate_limited", notifier.Held, exchange.ReasonRateLimited, 3 * time.Second},
		{endpoint.Slack, 500, "rollup_error", notifier.Temporary, exchange.ReasonServerError, 3 * time.Second},
		{endpoint.Slack, 503, "no_service", notifier.Temporary, exchange.ReasonServerError, 3 * time.Second},
		{endpoint.Teams, 404, `{"error":{"code":"WorkflowNotFound"}}`, notifier.Gone, ReasonGone, 0},
		{endpoint.Teams, 400, `{"error":{"code":"WorkflowTriggerIsNotEnabled"}}`, notifier.Permanent, exchange.ReasonRejected, 0},
		{endpoint.Teams, 401, `{"error":{"code":"DirectApiAuthorizationRequired"}}`, notifier.Permanent, exchange.ReasonRejected, 0},
		{endpoint.Teams, 413, "", notifier.Permanent, exchange.ReasonTooLarge, 0},
		{endpoint.Teams, 502, "", notifier.Temporary, exchange.ReasonServerError, 3 * time.Second},
		{endpoint.Discord, 404, `{"message":"Unknown Webhook","code":10015}`, notifier.Gone, ReasonGone, 0},
		{endpoint.Discord, 401, `{"message":"Invalid Webhook Token","code":50027}`, notifier.Gone, ReasonGone, 0},
		{endpoint.Discord, 400, `{"code":50035}`, notifier.Permanent, exchange.ReasonRejected, 0},
		{endpoint.Discord, 429, `{"message":"…","retry_after":64.57,"global":false}`, notifier.Held, exchange.ReasonRateLimited, 64570 * time.Millisecond},
		{endpoint.Discord, 429, `{"retry_after":0.5}`, notifier.Held, exchange.ReasonRateLimited, 3 * time.Second},
		{endpoint.Discord, 429, `{"retry_after":1e300}`, notifier.Held, exchange.ReasonRateLimited, 24 * time.Hour},
		{endpoint.Discord, 429, `{"retry_after":-1}`, notifier.Held, exchange.ReasonRateLimited, 3 * time.Second},
		{endpoint.Discord, 429, `banned`, notifier.Held, exchange.ReasonRateLimited, 3 * time.Second},
		{endpoint.JSON, 404, "", notifier.Permanent, exchange.ReasonRejected, 0},
		{endpoint.JSON, 410, "", notifier.Gone, ReasonGone, 0},
		{endpoint.JSON, 307, "", notifier.Permanent, exchange.ReasonRedirected, 0},
	}
	s := newServices(t, func(w http.ResponseWriter, path string) {
		var i int
		if _, err := fmt.Sscanf(path, "/secret/%d", &i); err != nil {
			t.Error(err)
		}
		w.Header().Set("Retry-After", "3")
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(answers[i].status)
		_, _ = io.WriteString(w, answers[i].body)
	})
	for i, tt := range answers {
		t.Run(fmt.Sprint(tt.kind, " ", tt.status, " ", i), func(t *testing.T) {
			t.Parallel()
			id := fmt.Sprint("chat-", i)
			c.add(t, id, tt.kind, fmt.Sprintf("%s/secret/%d", s.URL, i))
			err := c.Deliver(t.Context(), message(id))
			wantFault(t, err, tt.fault, tt.reason)
			if e, _ := errors.AsType[*notifier.Error](err); e.After != tt.after || e.Code != tt.status {
				t.Errorf("after %v, code %d", e.After, e.Code)
			}
			e, err := c.registry.Get(t.Context(), id)
			if err != nil || (e.Disabled != nil) != (tt.fault == notifier.Gone) {
				t.Errorf("disabled: %v, %v", e.Disabled, err)
			}
			if failing := !e.FailingSince.IsZero(); failing != (tt.fault == notifier.Permanent || tt.fault == notifier.Temporary) {
				t.Errorf("failing: %v", failing)
			}
		})
	}
}

func TestChannel_Deliver_noEndpoint(t *testing.T) {
	t.Parallel()
	c, server := setup(t)
	s := newServices(t, func(http.ResponseWriter, string) { t.Error("called") })
	c.add(t, "disabled", endpoint.Slack, s.URL+"/secret")
	if err := c.registry.Disable(t.Context(), "disabled", "moved"); err != nil {
		t.Fatal(err)
	}
	_, err := c.registry.Add(t.Context(), endpoint.Endpoint{
		ID: "webhook", Kind: endpoint.Standard, URL: "https://hooks.example/secret",
		Keys: []endpoint.Key{{Secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.registry.Add(t.Context(), endpoint.Endpoint{ID: "name", Kind: endpoint.Slack, URL: "https://nowhere.invalid/secret"})
	if err != nil {
		t.Fatal(err)
	}
	wantFault(t, c.Deliver(t.Context(), message("disabled")), notifier.Gone, ReasonDisabled)
	wantFault(t, c.Deliver(t.Context(), message("webhook")), notifier.Gone, ReasonUnregistered)
	wantFault(t, c.Deliver(t.Context(), message("unknown")), notifier.Gone, ReasonUnregistered)
	wantFault(t, c.Deliver(t.Context(), message("")), notifier.Gone, ReasonUnregistered)
	wantFault(t, c.Deliver(t.Context(), message("no id!")), notifier.Gone, ReasonUnregistered)

	server.Kill()
	wantFault(t, c.Deliver(t.Context(), message("never-read")), notifier.Held, ReasonRegistry)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Deliver(over, message("never-read")); !errors.Is(err, context.Canceled) {
		t.Errorf("the context is over: %v", err)
	}
}

func TestChannel_Deliver_noAnswer(t *testing.T) {
	t.Parallel()
	c, server := setup(t)
	s := newServices(t, func(http.ResponseWriter, string) { panic(http.ErrAbortHandler) })
	c.add(t, "chat", endpoint.Slack, s.URL+"/secret")
	wantFault(t, c.Deliver(t.Context(), message("chat")), notifier.Unknown, exchange.ReasonNoAnswer)
	if n := len(s.got("/secret")); n != 1 {
		t.Errorf("asked %d times", n)
	}
	s.Close()
	wantFault(t, c.Deliver(t.Context(), message("chat")), notifier.Temporary, "connect")
	// The registry has it in memory; that Redis takes no record changes nothing.
	server.Kill()
	wantFault(t, c.Deliver(t.Context(), message("chat")), notifier.Temporary, "connect")
}

// An endpoint that has failed for too long is left alone.
func TestChannel_Deliver_failsForDays(t *testing.T) {
	t.Parallel()
	c, server := setup(t)
	s := newServices(t, func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusBadGateway) })
	c.add(t, "chat", endpoint.Teams, s.URL+"/secret")
	wantFault(t, c.Deliver(t.Context(), message("chat")), notifier.Temporary, exchange.ReasonServerError)
	since := time.Now().Add(-endpoint.FailingLimit - time.Hour).UnixMilli()
	if err := server.Open(t).HSet(t.Context(), "postroom:endpoint:{chat}", "failing", since).Err(); err != nil {
		t.Fatal(err)
	}
	wantFault(t, c.Deliver(t.Context(), message("chat")), notifier.Gone, ReasonDisabled)
	e, err := c.registry.Get(t.Context(), "chat")
	if err != nil || e.Disabled == nil || e.Disabled.Reason != endpoint.DisabledFailing {
		t.Errorf("disabled: %v, %v", e.Disabled, err)
	}
}

func TestChannel_Deliver_concurrently(t *testing.T) {
	t.Parallel()
	c, _ := setup(t)
	s := newServices(t, func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusNoContent) })
	kinds := endpoint.ChatKinds()
	for _, kind := range kinds {
		c.add(t, string(kind), kind, s.URL+"/"+string(kind))
	}
	shared := message("")
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			m := *shared
			m.Target = string(kinds[i%len(kinds)])
			if err := c.Deliver(t.Context(), &m); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestNew(t *testing.T) {
	t.Parallel()
	if _, err := New(nil, nil); err == nil {
		t.Error("without anything: no error")
	}
}
