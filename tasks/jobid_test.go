package tasks

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

// accepted fails the test unless a call was accepted.
func accepted(t *testing.T) func(Receipt, error) Receipt {
	t.Helper()
	return func(r Receipt, err error) Receipt {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
}

func TestProducer_SendNotification(t *testing.T) {
	t.Parallel()
	p := setup(t)
	n := Notification{Kind: "auth.code", User: "u-1", Template: "code", Data: map[string]any{"code": "123456"}, Channels: []Channel{ChannelSMS}, Phone: "+4930123456", Class: ClassOTP}
	r := accepted(t)(p.SendNotification(t.Context(), n))
	if id, err := uuid.Parse(r.ID); err != nil || id.Version() != 7 {
		t.Errorf("ID = %q, want a UUIDv7", r.ID)
	}
	if r.Queue != NotificationQueue(p.namespace, Critical) || r.State != StatePending || r.Duplicate {
		t.Errorf("receipt = %+v", r)
	}
	info := stored(t, p, r)
	if info.Type != "notification:send" || info.MaxRetry != 17 || info.Timeout != 2*time.Minute || info.Retention != 24*time.Hour {
		t.Errorf("stored job = %+v", info)
	}
	want := map[string]string{
		"service": "accounts-service", "enqueued-at": stamp(r.EnqueuedAt), "class": "otp", "template": "code", "kind": "auth.code",
		"expires-at": stamp(r.EnqueuedAt.Add(10 * time.Minute)),
	}
	if !maps.Equal(info.Headers, want) {
		t.Errorf("headers = %v\nwant %v", info.Headers, want)
	}
	decoded, err := DecodeNotification(info.Payload)
	if err != nil || decoded.Phone != n.Phone || decoded.Class != ClassOTP {
		t.Errorf("payload decodes to %+v, %v", decoded, err)
	}

	// Defaults, and the options of every job.
	r = accepted(t)(p.SendNotification(t.Context(), note(), Delay(time.Hour), MaxRetry(3), IdempotencyKey("k")))
	info = stored(t, p, r)
	if r.Queue != NotificationQueue(p.namespace, Default) || r.State != StateScheduled || info.MaxRetry != 3 || info.Headers["class"] != "transactional" || !strings.Contains(string(info.Payload), `"class":"transactional"`) {
		t.Errorf("receipt = %+v, job = %+v", r, info)
	}
	if _, there := info.Headers["template"]; there {
		t.Errorf("headers = %v, want no template", info.Headers)
	}
	again := accepted(t)(p.SendNotification(t.Context(), note(), IdempotencyKey("k")))
	if again.ID != r.ID || !again.Duplicate {
		t.Errorf("second receipt = %+v, want a duplicate of %+v", again, r)
	}
	// The key of an email is another one.
	if email := send(t, p, message(), IdempotencyKey("k")); email.Duplicate {
		t.Errorf("an email with the key of a notification gives %+v", email)
	}
	bulk := note()
	bulk.Class = ClassBulk
	if r := accepted(t)(p.SendNotification(t.Context(), bulk)); r.Queue != NotificationQueue(p.namespace, Bulk) {
		t.Errorf("receipt = %+v, want the bulk queue", r)
	}
}

func TestProducer_SendDelivery(t *testing.T) {
	t.Parallel()
	p := setup(t)
	d := parcel()
	d.Class = ClassClinical
	first := accepted(t)(p.SendDelivery(t.Context(), d, Queue("notification:critical"), Deadline(time.Now().Add(time.Hour))))
	if id, err := uuid.Parse(first.ID); err != nil || id.Version() != 5 || first.ID != d.ID() || first.Duplicate {
		t.Errorf("receipt = %+v, want the id %s, a UUIDv5", first, d.ID())
	}
	info := stored(t, p, first)
	if info.Type != "notification:deliver" || info.MaxRetry != 19 || info.Retention != 24*time.Hour || info.Headers["class"] != "clinical" || info.Headers["kind"] != d.Kind || info.Headers["channel"] != "push" || info.Headers["expires-at"] == "" {
		t.Errorf("stored job = %+v", info)
	}
	got, err := DecodeDelivery(info.Payload)
	if err != nil || got.Title != d.Title || !got.Created.Equal(d.Created) {
		t.Errorf("payload decodes to %+v, %v", got, err)
	}
	want := first
	want.Duplicate = true
	if again := accepted(t)(p.SendDelivery(t.Context(), d, Queue("notification:critical"))); again != want {
		t.Errorf("second receipt = %+v\nwant %+v", again, want)
	}
	d.Replay = "once-more"
	if other := accepted(t)(p.SendDelivery(t.Context(), d, Queue("notification:critical"))); other.Duplicate || other.ID == first.ID {
		t.Errorf("a replay gives %+v", other)
	}
	if n := size(t, p, first.Queue); n != 2 {
		t.Errorf("queue has %d jobs, want 2", n)
	}
}

func TestProducer_SendDigestClose(t *testing.T) {
	t.Parallel()
	p := setup(t)
	c := DigestClose{User: "u-1", Key: "messages", Generation: 3}
	first := accepted(t)(p.SendDigestClose(t.Context(), c, Delay(time.Hour)))
	if first.ID != c.ID() || first.Queue != NotificationQueue(p.namespace, Default) || first.State != StateScheduled || first.Duplicate {
		t.Errorf("receipt = %+v", first)
	}
	info := stored(t, p, first)
	got, err := DecodeDigestClose(info.Payload)
	c.V = Version
	if info.Type != "notification:digest" || info.Headers["class"] != "transactional" || err != nil || got != c {
		t.Errorf("stored job = %+v, payload decodes to %+v, %v", info, got, err)
	}
	if again := accepted(t)(p.SendDigestClose(t.Context(), c)); !again.Duplicate || again.State != StateScheduled || !again.ProcessAt.Equal(first.ProcessAt) {
		t.Errorf("second receipt = %+v, want a duplicate of %+v", again, first)
	}
}

func TestProducer_SendNotification_Refuses(t *testing.T) {
	t.Parallel()
	p := setup(t)
	late := note()
	late.Class = ClassOTP
	late.Plan = []Step{{Channel: ChannelInApp}, {Channel: ChannelPush, After: Duration(10*time.Minute - 1)}, {Channel: ChannelPush, After: Duration(10 * time.Minute)}}
	late.Digest = &Digest{Key: "k", Window: Duration(time.Hour)}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tt := range map[string]struct {
		call func() (Receipt, error)
		want []string
		text string
	}{
		"options and fields": {func() (Receipt, error) {
			return p.SendNotification(t.Context(), Notification{User: "u-1", Title: "t"}, MaxRetry(0))
		}, []string{"max_retry", "kind"}, "validate notification: "},
		"after the deadline": {func() (Receipt, error) { return p.SendNotification(t.Context(), late) }, []string{"plan[2].after", "digest.window"}, "validate notification: "},
		"email queue":        {func() (Receipt, error) { return p.SendNotification(t.Context(), note(), Queue("email:default")) }, []string{"queue"}, "must begin with notification:"},
		"notification queue": {func() (Receipt, error) { return p.SendEmail(t.Context(), message(), Queue("notification:default")) }, []string{"queue"}, "must begin with email:"},
		"delivery":           {func() (Receipt, error) { return p.SendDelivery(t.Context(), Delivery{Notification: "x"}) }, []string{"notification", "channel", "kind", "user", "category", "created"}, "validate delivery: "},
		"delivery too large": {func() (Receipt, error) {
			d := fullDelivery()
			d.Mail = &Email{To: "ada@example.com", Subject: "s", Body: strings.Repeat("a", MaxDeliveryBytes)}
			return p.SendDelivery(t.Context(), d)
		}, []string{"delivery"}, "validate delivery: "},
		"delivery with an id": {func() (Receipt, error) { return p.SendDelivery(t.Context(), parcel(), JobID(notificationID)) }, []string{"job_id"}, "follows from"},
		"delivery with a key": {func() (Receipt, error) { return p.SendDelivery(t.Context(), parcel(), IdempotencyKey("k")) }, []string{"idempotency_key"}, "follows from"},
		"digest":              {func() (Receipt, error) { return p.SendDigestClose(t.Context(), DigestClose{User: "u-1"}) }, []string{"key"}, "validate digest: "},
		"id and key": {func() (Receipt, error) {
			return p.SendEmail(t.Context(), message(), JobID(notificationID), IdempotencyKey("k"))
		}, []string{"job_id"}, "cannot be combined"},
		"empty id":           {func() (Receipt, error) { return p.SendEmail(t.Context(), message(), JobID("")) }, []string{"job_id"}, "must be a UUID"},
		"id that is no UUID": {func() (Receipt, error) { return p.SendEmail(t.Context(), message(), JobID(canary)) }, []string{"job_id"}, "must be a UUID"},
		"id in capitals": {func() (Receipt, error) {
			return p.SendEmail(t.Context(), message(), JobID("CC1CF1FE-1111-5111-8111-111111111111"))
		}, []string{"job_id"}, "must be a UUID"},
		"call that has ended":   {func() (Receipt, error) { return p.SendNotification(ended, note()) }, nil, "enqueue notification: context canceled"},
		"delivery that ended":   {func() (Receipt, error) { return p.SendDelivery(ended, parcel()) }, nil, "enqueue delivery: context canceled"},
		"digest that has ended": {func() (Receipt, error) { return p.SendDigestClose(ended, DigestClose{User: "u-1", Key: "k"}) }, nil, "enqueue digest: context canceled"},
	} {
		r, err := tt.call()
		if got := fields(errors.Unwrap(err)); r != (Receipt{}) || !slices.Equal(got, tt.want) || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), canary) || errors.Is(err, ErrUnconfirmed) {
			t.Errorf("%s: %+v, complaints about %q, want %q: %v", name, r, got, tt.want, err)
		}
	}
	queues, err := p.inspector.Queues()
	if err != nil || slices.ContainsFunc(queues, func(q string) bool { return strings.HasPrefix(q, p.namespace+":") }) {
		t.Errorf("a refused job made a queue: %q (%v)", queues, err)
	}
}

func TestNotificationQueue(t *testing.T) {
	t.Parallel()
	if got := NotificationQueue("staging", Critical); got != "staging:notification:critical" {
		t.Errorf("NotificationQueue(staging, Critical) = %q", got)
	}
	if got := NotificationQueue("", Bulk); got != "notification:bulk" {
		t.Errorf("NotificationQueue(\"\", Bulk) = %q", got)
	}
}

func TestProducer_EnqueueMany_Notifications(t *testing.T) {
	t.Parallel()
	p := setup(t)
	n, bad := note(), note()
	bad.Kind = "x"
	items := slices.Values([]Item{
		{Notification: &n},
		{Email: message()},
		{Notification: &bad},
		{Notification: &n, Email: message()},
		{Notification: &n, Email: Email{Tags: []string{"a"}}},
		{},
		{Notification: &n, Options: []Option{Queue("notification:other")}},
	})
	var queues []string
	var bads [][]string
	for _, r := range p.EnqueueMany(t.Context(), items) {
		queues = append(queues, strings.TrimPrefix(r.Receipt.Queue, p.namespace+":"))
		bads = append(bads, fields(errors.Unwrap(r.Err)))
	}
	if want := []string{"notification:default", "email:default", "", "", "", "", "notification:other"}; !slices.Equal(queues, want) {
		t.Errorf("queues = %q, want %q", queues, want)
	}
	if want := [][]string{nil, nil, {"kind"}, {"item"}, {"item"}, {"to", "body", "subject"}, nil}; !slices.EqualFunc(bads, want, slices.Equal) {
		t.Errorf("complaints = %q, want %q", bads, want)
	}
}

func TestProducer_JobID(t *testing.T) {
	t.Parallel()
	p := setup(t)
	id := uuid.NewString()
	first := send(t, p, message(), JobID(id), Delay(time.Hour))
	if first.ID != id || first.Duplicate || first.State != StateScheduled {
		t.Errorf("receipt = %+v", first)
	}
	want := first
	want.Duplicate = true
	if second := send(t, p, message(), JobID(id)); second != want {
		t.Errorf("second receipt = %+v\nwant %+v", second, want)
	}
	// An id holds in one queue.
	if other := send(t, p, message(), JobID(id), Priority(Critical)); other.Duplicate || other.ID != id {
		t.Errorf("in another queue: %+v", other)
	}
	// It is free when the job is gone.
	if err := p.inspector.DeleteTask(first.Queue, id); err != nil {
		t.Fatal(err)
	}
	if third := send(t, p, message(), JobID(id)); third.Duplicate || third.State != StatePending {
		t.Errorf("after the job is gone: %+v", third)
	}
	// A delay below the clock's mark is no delay.
	if r := send(t, p, message(), JobID(uuid.NewString()), Delay(1)); r.Duplicate {
		t.Errorf("receipt = %+v", r)
	}
}

// Every job with a given id has another time, also when the clock stands still.
func TestProducer_JobID_Marks(t *testing.T) {
	t.Parallel()
	p := setup(t)
	now := time.Date(2026, 12, 1, 12, 0, 0, 123_456_789, time.UTC)
	p.now = func() time.Time { return now }
	seen := map[time.Time]bool{}
	for range 1000 {
		j, err := p.compose(t.Context(), message(), []Option{JobID(notificationID)})
		if err != nil {
			t.Fatal(err)
		}
		if off := j.enqueuedAt.Sub(now).Abs(); off >= time.Microsecond || j.delayed() || seen[j.enqueuedAt] {
			t.Fatalf("job %d is enqueued at %v, processed at %v", len(seen), j.enqueuedAt, j.processAt)
		}
		seen[j.enqueuedAt] = true
	}
	j, err := p.compose(t.Context(), message(), nil)
	if err != nil || !j.enqueuedAt.Equal(now) {
		t.Errorf("a job with an id of its own is enqueued at %v (%v)", j.enqueuedAt, err)
	}
}

func TestProducer_JobID_Many(t *testing.T) {
	t.Parallel()
	p := setup(t)
	ids := []string{uuid.NewString(), uuid.NewString()}
	items := func(yield func(Item) bool) {
		for i := range 10 {
			if !yield(Item{Email: message(), Options: []Option{JobID(ids[i%2])}}) {
				return
			}
		}
	}
	for i, r := range p.EnqueueMany(t.Context(), items) {
		if r.Err != nil || r.Receipt.ID != ids[i%2] || r.Receipt.Duplicate != (i >= 2) {
			t.Errorf("item %d: %+v", i, r)
		}
	}
	if n := size(t, p, EmailQueue(p.namespace, Default)); n != 2 {
		t.Errorf("queue has %d jobs, want 2", n)
	}
}

// A lost answer does not make the call that enqueued a job its duplicate, and the
// duplicate its maker.
func TestProducer_JobID_LostReply(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t, shared.Addr())
	for _, delay := range []time.Duration{0, time.Hour} {
		p := newProducer(t, proxy.client(t, 3))
		send(t, p, message(), Queue("email:warm-up"))
		send(t, p, message(), Queue("email:warm-up"), Delay(time.Hour))
		id, before := uuid.NewString(), proxy.dropped.Load()
		proxy.drop("evalsha", 0)
		r := send(t, p, message(), JobID(id), Delay(delay))
		if proxy.dropped.Load() != before+1 {
			t.Fatal("no reply was lost")
		}
		if r.Duplicate || r.ID != id || size(t, p, r.Queue) != 1 {
			t.Errorf("the call takes its own job for another's: %+v", r)
		}
		proxy.drop("evalsha", 0)
		if again := send(t, p, message(), JobID(id), Delay(2*time.Hour)); !again.Duplicate || !again.EnqueuedAt.Equal(r.EnqueuedAt) || !again.ProcessAt.Equal(r.ProcessAt) {
			t.Errorf("second receipt = %+v, want a duplicate of %+v", again, r)
		}
	}
	// The same for a batch with twins.
	p := newProducer(t, proxy.client(t, 3))
	send(t, p, message())
	ids := make([]string, 100)
	for i := range ids {
		ids[i] = uuid.NewString()
	}
	items := iter.Seq[Item](func(yield func(Item) bool) {
		for i := range 2 * len(ids) {
			if !yield(Item{Email: message(), Options: []Option{JobID(ids[i%len(ids)])}}) {
				return
			}
		}
	})
	before := proxy.dropped.Load()
	proxy.drop("evalsha", 0)
	for i, r := range p.EnqueueMany(t.Context(), items) {
		if r.Err != nil || r.Receipt.ID != ids[i%len(ids)] || r.Receipt.Duplicate != (i >= len(ids)) {
			t.Errorf("item %d: %+v", i, r)
		}
	}
	if n := size(t, p, EmailQueue(p.namespace, Default)); n != len(ids)+1 || proxy.dropped.Load() != before+1 {
		t.Errorf("queue has %d jobs, want %d; %d replies were lost", n, len(ids)+1, proxy.dropped.Load()-before)
	}
}

// Without a repetition the outcome is unknown; calling again settles it, without a key.
func TestProducer_JobID_Unconfirmed(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t, shared.Addr())
	p := newProducer(t, proxy.client(t, 0))
	send(t, p, message(), Queue("email:warm-up"))
	proxy.drop("evalsha", 0)
	if _, err := p.SendDelivery(t.Context(), parcel()); !errors.Is(err, ErrUnconfirmed) || !strings.HasPrefix(err.Error(), "enqueue delivery: ") {
		t.Fatalf("SendDelivery() = %v, want ErrUnconfirmed", err)
	}
	if r := accepted(t)(p.SendDelivery(t.Context(), parcel())); !r.Duplicate || size(t, p, r.Queue) != 1 {
		t.Errorf("the repetition gives %+v, queue has %d jobs; want the job of the first call", r, size(t, p, r.Queue))
	}
}

// On every way to run Redis: all types of jobs, now and later, alone and together;
// however many callers meet on an id, there is one job, and one of them made it.
func TestProducer_EveryTopology_Notifications(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		p := newProducer(t, client)
		const callers, ids = 8, 25
		var mu sync.Mutex
		made := map[string]int{}
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				for i := range ids {
					d := parcel()
					d.Target = fmt.Sprint(i)
					r, err := p.SendDelivery(t.Context(), d, Priority([]PriorityLevel{Critical, Default, Bulk}[i%3]), Delay(time.Duration(i%2)*time.Hour))
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					if !r.Duplicate {
						made[r.ID]++
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		for id, n := range made {
			if n != 1 {
				t.Errorf("%d callers say that they made %s", n, id)
			}
		}
		if len(made) != ids {
			t.Errorf("%d jobs were made, want %d", len(made), ids)
		}
		n := note()
		for i, r := range p.EnqueueMany(t.Context(), slices.Values(slices.Repeat([]Item{{Notification: &n}, {Email: message()}}, 50))) {
			if r.Err != nil || r.Receipt.Duplicate {
				t.Fatalf("item %d: %+v", i, r)
			}
		}
		accepted(t)(p.SendDigestClose(t.Context(), DigestClose{User: "u-1", Key: "k"}))
		total := 0
		for _, level := range []PriorityLevel{Critical, Default, Bulk} {
			info, err := p.inspector.GetQueueInfo(NotificationQueue(p.namespace, level))
			if err != nil {
				t.Fatal(err)
			}
			total += info.Size
		}
		if total != ids+50+1 || size(t, p, EmailQueue(p.namespace, Default)) != 50 {
			t.Errorf("queues have %d notifications and %d emails, want %d and 50", total, size(t, p, EmailQueue(p.namespace, Default)), ids+51)
		}
	})
}

// Also an asynq that sends the jobs itself sees their types.
func TestProducer_SendNotification_ByAsynq(t *testing.T) {
	t.Parallel()
	p := setup(t)
	p.composer = asynq.NewClientFromRedisClient(otherAsynq{change: func(sha *string, _ *[]string, _ *[]any) { *sha = "0" + (*sha)[1:] }})
	r := accepted(t)(p.SendNotification(t.Context(), note()))
	if info := stored(t, p, r); info.Type != TypeNotification {
		t.Errorf("stored job = %+v", info)
	}
	d := accepted(t)(p.SendDelivery(t.Context(), parcel()))
	if again := accepted(t)(p.SendDelivery(t.Context(), parcel())); d.Duplicate || !again.Duplicate {
		t.Errorf("first receipt = %+v, second %+v", d, again)
	}
}
