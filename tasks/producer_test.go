package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/testenv"
)

func TestNewProducer_Refuses(t *testing.T) {
	t.Parallel()
	rdb := shared.Open(t)
	if _, err := NewProducer(nil); err == nil {
		t.Error("NewProducer(nil) succeeds")
	}
	for _, ns := range []string{"Staging", "a:b", "a b", "{a}", "1", strings.Repeat("a", 32)} {
		if _, err := NewProducer(rdb, Namespace(ns)); !slices.Equal(fields(err), []string{"namespace"}) {
			t.Errorf("Namespace(%q): %v, want an error about namespace", ns, err)
		}
	}
	for _, name := range []string{"a\nb", "\xff", strings.Repeat("a", 65)} {
		if _, err := NewProducer(rdb, FromService(name)); !slices.Equal(fields(err), []string{"service"}) {
			t.Errorf("FromService(%q): %v, want an error about service", name, err)
		}
	}
	if _, err := NewProducer(rdb); err != nil {
		t.Errorf("NewProducer without options: %v", err)
	}
}

func TestProducer_SendEmail(t *testing.T) {
	t.Parallel()
	const parent, state = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "vendor=value"
	p := setup(t, TraceFrom(func(context.Context) (string, string) { return parent, state }))
	before := time.Now()
	email := Email{To: "ada@example.com", Template: "one-time-code", Data: map[string]any{"code": "123456"}, Class: ClassOTP}
	r := send(t, p, email, Timeout(1500*time.Millisecond), Retention(time.Hour), MaxRetry(3))

	if id, err := uuid.Parse(r.ID); err != nil || id.Version() != 7 {
		t.Errorf("ID = %q, want a UUIDv7", r.ID)
	}
	if r.Queue != EmailQueue(p.namespace, Critical) || r.State != StatePending || r.Duplicate || !r.ProcessAt.Equal(r.EnqueuedAt) || r.EnqueuedAt.Before(before.Round(0)) || r.EnqueuedAt.After(time.Now()) {
		t.Errorf("receipt = %+v", r)
	}
	info := stored(t, p, r)
	if info.Type != TypeEmail || info.State != asynq.TaskStatePending || info.MaxRetry != 3 || info.Timeout != 2*time.Second || info.Retention != time.Hour || !info.Deadline.IsZero() {
		t.Errorf("stored job = %+v", info)
	}
	want := map[string]string{
		"service": "accounts-service", "enqueued-at": r.EnqueuedAt.Format(time.RFC3339Nano), "class": "otp", "template": "one-time-code",
		"expires-at": r.EnqueuedAt.Add(10 * time.Minute).Format(time.RFC3339Nano), "traceparent": parent, "tracestate": state,
	}
	if !maps.Equal(info.Headers, want) {
		t.Errorf("headers = %v\nwant %v", info.Headers, want)
	}
	decoded, err := DecodeEmail(info.Payload)
	if err != nil || decoded.To != email.To || decoded.Class != ClassOTP || decoded.Data["code"] != "123456" {
		t.Errorf("payload decodes to %+v, %v", decoded, err)
	}
}

func TestProducer_SendEmail_Defaults(t *testing.T) {
	t.Parallel()
	p, err := NewProducer(shared.Open(t), Namespace("defaults"), TraceFrom(func(context.Context) (string, string) { return "no trace\r\n", "a=b" }))
	if err != nil {
		t.Fatal(err)
	}
	r := send(t, p, message())
	info := stored(t, p, r)
	if info.Queue != "defaults:email:default" || info.MaxRetry != 12 || info.Timeout != 2*time.Minute || info.Retention != 24*time.Hour || !info.Deadline.IsZero() {
		t.Errorf("stored job = %+v", info)
	}
	if want := map[string]string{"enqueued-at": r.EnqueuedAt.Format(time.RFC3339Nano), "class": "transactional"}; !maps.Equal(info.Headers, want) {
		t.Errorf("headers = %v\nwant %v", info.Headers, want)
	}
	if !strings.Contains(string(info.Payload), `"class":"transactional"`) {
		t.Errorf("payload has no class: %s", info.Payload)
	}
}

func TestProducer_SendEmail_Trace(t *testing.T) {
	t.Parallel()
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	tests := []struct{ name, parent, state, wantParent, wantState string }{
		{"none", "", "", "", ""},
		{"parent", parent, "", parent, ""},
		{"both", parent, "a=b", parent, "a=b"},
		{"state alone", "", "a=b", "", ""},
		{"bad parent", parent + "0", "a=b", "", ""},
		{"bad state", parent, "a=b\r\n", parent, ""},
		{"long state", parent, strings.Repeat("a", 513), parent, ""},
	}
	for _, tt := range tests {
		p := setup(t, TraceFrom(func(context.Context) (string, string) { return tt.parent, tt.state }))
		headers := stored(t, p, send(t, p, message())).Headers
		if headers[HeaderTraceParent] != tt.wantParent || headers[HeaderTraceState] != tt.wantState {
			t.Errorf("%s: headers = %q, want %q and %q", tt.name, headers, tt.wantParent, tt.wantState)
		}
	}
}

func TestProducer_SendEmail_Delayed(t *testing.T) {
	t.Parallel()
	p := setup(t)
	at := time.Now().Add(time.Hour)
	r := send(t, p, message(), At(at), Deadline(at.Add(time.Hour)), IdempotencyKey("patient@example.com"))
	if r.State != StateScheduled || !r.ProcessAt.Equal(at) {
		t.Errorf("receipt = %+v, want scheduled at %v", r, at)
	}
	info := stored(t, p, r)
	if info.State != asynq.TaskStateScheduled || !info.NextProcessAt.Equal(ceilSecond(at)) {
		t.Errorf("stored job is %v at %v, want scheduled at %v", info.State, info.NextProcessAt, at)
	}
	for key, want := range map[string]string{
		HeaderProcessAt: at.UTC().Format(time.RFC3339Nano), HeaderExpiresAt: at.Add(time.Hour).UTC().Format(time.RFC3339Nano),
		HeaderIdempotencyKey: hashKey("patient@example.com"),
	} {
		if info.Headers[key] != want {
			t.Errorf("header %s = %q, want %q", key, info.Headers[key], want)
		}
	}
}

func TestHashKey(t *testing.T) {
	t.Parallel()
	// sha256sum of the three bytes abc, FIPS 180-2 appendix B.1.
	if got, want := hashKey("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; got != want {
		t.Errorf("hashKey(abc) = %s, want %s", got, want)
	}
}

func TestProducer_SendEmail_RefusesBeforeRedis(t *testing.T) {
	t.Parallel()
	p := setup(t)
	_, err := p.SendEmail(t.Context(), Email{To: "x", Subject: "s"}, MaxRetry(0), Priority("vip"))
	if got, want := fields(err), []string{"max_retry", "priority", "to", "body"}; !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
		t.Errorf("SendEmail complains about %q, want %q", got, want)
	}
	if errors.Is(err, ErrUnconfirmed) {
		t.Error("a refused message counts as unconfirmed")
	}
	if _, err := p.SendEmail(t.Context(), Email{To: "a@example.com", Template: "welcome", Data: map[string]any{"c": make(chan int)}}); !slices.Equal(fields(err), []string{"data"}) {
		t.Errorf("SendEmail with a channel: %v, want an error about data", err)
	}
	queues, err := p.inspector.Queues()
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(queues, func(q string) bool { return strings.HasPrefix(q, p.namespace+":") }) {
		t.Errorf("a refused message made a queue: %q", queues)
	}
}

func TestReceipt_JSON(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	got, err := json.Marshal(Receipt{ID: "i", Queue: "q", State: StatePending, EnqueuedAt: at, ProcessAt: at, Duplicate: true})
	if want := `{"id":"i","queue":"q","state":"pending","enqueued_at":"2026-12-01T12:00:00Z","process_at":"2026-12-01T12:00:00Z","duplicate":true}`; err != nil || string(got) != want {
		t.Errorf("receipt = %s (%v)\nwant %s", got, err, want)
	}
}

// A queue has to come back into view after everything was lost, without one
// more command for each job.
func TestProducer_AnnouncesQueueAgain(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	var failure error
	p := newProducer(t, announcingClient{rdb, &failure})
	now := time.Now()
	p.now = func() time.Time { return now }
	announced := func() bool {
		t.Helper()
		found, err := rdb.SIsMember(t.Context(), "asynq:queues", EmailQueue(p.namespace, Default)).Result()
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	send(t, p, message())
	if !announced() {
		t.Fatal("the first job does not announce its queue")
	}
	if err := rdb.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	now = now.Add(republish - 1)
	send(t, p, message())
	if announced() {
		t.Error("the queue is announced with every job")
	}
	now = now.Add(1)
	send(t, p, message())
	if !announced() {
		t.Error("the queue stays invisible")
	}

	// A failed announcement is an error of that call, and is made up for.
	if err := rdb.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	now = now.Add(republish)
	failure = errors.New("connection reset")
	if r, err := p.SendEmail(t.Context(), message()); !errors.Is(err, failure) || errors.Is(err, ErrUnconfirmed) || r != (Receipt{}) {
		t.Errorf("SendEmail() = %+v, %v; want no receipt and %v", r, err, failure)
	}
	failure = nil
	send(t, p, message())
	if !announced() {
		t.Error("the queue stays invisible after a failed announcement")
	}
}

// announcingClient fails announcements while failure is set.
type announcingClient struct {
	redis.UniversalClient

	failure *error
}

func (c announcingClient) SAdd(ctx context.Context, key string, members ...any) *redis.IntCmd {
	if *c.failure != nil {
		cmd := redis.NewIntCmd(ctx)
		cmd.SetErr(*c.failure)
		return cmd
	}
	return c.UniversalClient.SAdd(ctx, key, members...)
}

func TestProducer_SendEmail_RedisDown(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	p := newProducer(t, server.Open(t))
	send(t, p, message())
	server.Kill()
	for _, opts := range [][]Option{nil, {IdempotencyKey("k")}} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		r, err := p.SendEmail(ctx, message(), opts...)
		cancel()
		if err == nil || r != (Receipt{}) || !strings.HasPrefix(err.Error(), "enqueue email: ") {
			t.Errorf("SendEmail() = %+v, %v; want no receipt and an error", r, err)
		}
	}
}

func TestProducer_SendEmail_RedisHangs(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	p := newProducer(t, server.Open(t))
	send(t, p, message(), IdempotencyKey("warm up"))
	server.Pause()
	defer server.Resume()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	r, err := p.SendEmail(ctx, message())
	if !errors.Is(err, ErrUnconfirmed) || !errors.Is(err, context.DeadlineExceeded) || r != (Receipt{}) {
		t.Errorf("SendEmail() = %+v, %v; want no receipt, ErrUnconfirmed and DeadlineExceeded", r, err)
	}
	// Without time left, nothing is sent: that is not in doubt.
	if _, err := p.SendEmail(ctx, message()); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnconfirmed) {
		t.Errorf("SendEmail after the deadline: %v, want DeadlineExceeded without doubt", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := p.SendEmail(ctx, message(), IdempotencyKey("k")); err == nil || errors.Is(err, ErrUnconfirmed) {
		t.Errorf("SendEmail whose claim fails: %v, want an error without doubt", err)
	}
}

// An answer of Redis that refuses the job leaves no doubt, and the key can be
// used again.
func TestProducer_SendEmail_RedisRefuses(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t, testenv.ACL("service", "secret", "~* &* +@all -eval -evalsha"))
	rdb := server.Open(t)
	p := newProducer(t, rdb)
	for _, opts := range [][]Option{nil, {IdempotencyKey("k")}, {IdempotencyKey("k")}} {
		r, err := p.SendEmail(t.Context(), message(), opts...)
		if _, ok := errors.AsType[redis.Error](err); !ok || errors.Is(err, ErrUnconfirmed) || r != (Receipt{}) {
			t.Errorf("SendEmail() = %+v, %v; want no receipt and the answer of Redis", r, err)
		}
	}
	if err := rdb.Do(t.Context(), "acl", "setuser", "service", "+eval", "+evalsha").Err(); err != nil {
		t.Fatal(err)
	}
	first := send(t, p, message(), IdempotencyKey("k"))
	second := send(t, p, message(), IdempotencyKey("k"))
	if first.Duplicate || !second.Duplicate || first.ID != second.ID || size(t, p, first.Queue) != 1 {
		t.Errorf("after the refusal: %+v, then %+v, want one job", first, second)
	}
}
