package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"

	"github.com/medicalink/postroom/internal/audit"
	"github.com/medicalink/postroom/internal/inbox"
	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/preferences"
	"github.com/medicalink/postroom/tasks"
)

var notices = tasks.NotificationQueue("", tasks.Default)

// recorder is a channel that keeps what it is given, and answers what it is told.
type recorder struct {
	mu      sync.Mutex
	got     []notifier.Message
	answer  func(n int) error // n-th call, from 0; nil: delivered
	targets []string
}

func (r *recorder) Deliver(_ context.Context, m *notifier.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, *m)
	if r.answer == nil {
		return nil
	}
	return r.answer(len(r.got) - 1)
}

func (r *recorder) Targets(context.Context, string) ([]string, error) { return r.targets, nil }

func (r *recorder) messages() []notifier.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// hall is a bed for notifications: every channel is a recorder.
type hall struct {
	*bed
	push, sms, chat, hook *recorder
	clock                 *clock
}

// clock is the worker's; it stands still.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = t
}

func setupHall(t *testing.T) *hall {
	t.Helper()
	h := &hall{push: &recorder{targets: []string{"phone"}}, sms: &recorder{}, chat: &recorder{}, hook: &recorder{}, clock: &clock{at: time.Now()}}
	cfg := quick(notices, normal)
	cfg.AppURL = "https://app.medicalink.example"
	cfg.ActionHosts = []string{"portal.medicalink.example"}
	cfg.Channels = map[tasks.Channel]notifier.Channel{
		tasks.ChannelPush: h.push, tasks.ChannelSMS: h.sms, tasks.ChannelChat: h.chat, tasks.ChannelWebhook: h.hook,
	}
	h.bed = setup(t, cfg, testenv.Redis(t), testenv.SMTP(t))
	h.worker.now = h.clock.now
	return h
}

func (h *hall) notify(t *testing.T, n tasks.Notification, opts ...tasks.Option) tasks.Receipt {
	t.Helper()
	if n.Kind == "" {
		n.Kind = "lab.result.ready"
	}
	if n.User == "" {
		n.User = "u-1"
	}
	if n.Title == "" && n.Template == "" {
		n.Title, n.Body = "canary title", "canary body"
	}
	r, err := h.producer.SendNotification(t.Context(), n, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// step names the job of a step of a notification, or of one browser of its user.
func (h *hall) step(r tasks.Receipt, n tasks.Notification, i int, browser ...string) tasks.Receipt {
	d := tasks.Delivery{Notification: r.ID, Step: i}
	switch n.Steps()[i].Channel {
	case tasks.ChannelSMS:
		d.Target = n.Phone
	case tasks.ChannelChat:
		d.Target = n.Chat
	case tasks.ChannelWebhook:
		d.Target = n.Webhook
	case tasks.ChannelPush:
		d.Target = strings.Join(browser, "")
	default:
	}
	return tasks.Receipt{Queue: r.Queue, ID: d.ID()}
}

// hasten runs a step that waits for its time.
func (h *hall) hasten(t *testing.T, r tasks.Receipt) {
	t.Helper()
	h.waitState(t, r, asynq.TaskStateScheduled)
	if err := h.inspector.RunTask(r.Queue, r.ID); err != nil {
		t.Fatal(err)
	}
}

func (h *hall) inboxOf(t *testing.T, user string) inbox.Page {
	t.Helper()
	page, err := h.worker.inbox.List(t.Context(), user, 100)
	if err != nil {
		t.Fatal(err)
	}
	return page
}

func (h *hall) wants(t *testing.T, p preferences.Preferences) {
	t.Helper()
	if err := h.worker.preferences.Set(t.Context(), "u-1", p); err != nil {
		t.Fatal(err)
	}
}

func off(channel tasks.Channel) map[string]map[tasks.Channel]bool {
	return map[string]map[tasks.Channel]bool{"lab": {channel: false}}
}

// skipped waits for the end of a job that was not called for.
func (h *hall) skipped(t *testing.T, r tasks.Receipt, reason string) {
	t.Helper()
	h.waitState(t, r, asynq.TaskStateCompleted)
	eventually(t, "the log says why", func() bool {
		for line := range strings.Lines(h.logs.String()) {
			if strings.Contains(line, r.ID) && strings.Contains(line, `"outcome":"skipped"`) && strings.Contains(line, `"reason":"`+reason+`"`) {
				return true
			}
		}
		return false
	})
}

func TestNotification_ReachesTheInbox(t *testing.T) {
	t.Parallel()
	h := setupHall(t)
	h.start(t)
	r := h.notify(t, tasks.Notification{Action: "/results/42"})
	h.waitState(t, r, asynq.TaskStateCompleted)
	page := h.inboxOf(t, "u-1")
	if len(page.Items) != 1 || page.Unread != 1 {
		t.Fatalf("the inbox holds %+v", page)
	}
	e := page.Items[0].Entry
	if e.ID != r.ID || e.Kind != "lab.result.ready" || e.Title != "canary title" || e.Body != "canary body" || e.Action != "/results/42" || e.Category != "lab" {
		t.Errorf("the inbox shows %+v", e)
	}
	if strings.Contains(h.logs.String(), "canary") {
		t.Errorf("the log shows the text:\n%s", h.logs.String())
	}
}

// Outside the app, a health notification says only that there is something to read, on
// every channel, and in Redis too.
func TestNotification_HidesHealthOutsideTheApp(t *testing.T) {
	t.Parallel()
	all := []tasks.Channel{tasks.ChannelInApp, tasks.ChannelPush, tasks.ChannelEmail, tasks.ChannelSMS, tasks.ChannelChat, tasks.ChannelWebhook}
	for _, tc := range []struct {
		name string
		n    tasks.Notification
		want map[tasks.Channel]string // a part of the text, by channel
	}{
		{"health", tasks.Notification{}, map[tasks.Channel]string{
			tasks.ChannelPush: "new message", tasks.ChannelSMS: "new message", tasks.ChannelChat: "new message", tasks.ChannelWebhook: "notification_id",
		}},
		{"health, from a template", tasks.Notification{Template: "lab-result-ready", Data: labData()}, map[tasks.Channel]string{
			tasks.ChannelPush: "new message", tasks.ChannelSMS: "new message", tasks.ChannelChat: "new message", tasks.ChannelWebhook: "notification_id",
		}},
		{"personal, from a template for the app", tasks.Notification{Template: "lab-result-ready", Data: labData(), Sensitivity: tasks.SensitivityPersonal}, map[tasks.Channel]string{
			tasks.ChannelPush: "something new", tasks.ChannelSMS: "new message", tasks.ChannelChat: "new message", tasks.ChannelWebhook: "r-17",
		}},
		{"personal", tasks.Notification{Sensitivity: tasks.SensitivityPersonal}, map[tasks.Channel]string{
			tasks.ChannelPush: "canary", tasks.ChannelSMS: "canary", tasks.ChannelChat: "canary", tasks.ChannelWebhook: "canary",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h := setupHall(t)
			h.start(t)
			n := tc.n
			private := n.Sensitivity == "" || n.Template != "" // the canaries are for the app only
			n.Channels, n.Email, n.Phone, n.Chat, n.Webhook = all, "ada@example.com", "+4930123456", "ward-3", "clinic"
			n.Action = "/results/42"
			r := h.notify(t, n)
			h.waitState(t, r, asynq.TaskStateCompleted)
			eventually(t, "all channels have it", func() bool {
				return len(h.push.messages()) == 1 && len(h.sms.messages()) == 1 && len(h.chat.messages()) == 1 && len(h.hook.messages()) == 1 && len(h.smtp.Messages()) == 1
			})
			for channel, rec := range map[tasks.Channel]*recorder{tasks.ChannelPush: h.push, tasks.ChannelSMS: h.sms, tasks.ChannelChat: h.chat, tasks.ChannelWebhook: h.hook} {
				m := rec.messages()[0]
				text := m.Title + "\n" + m.Body + "\n" + string(m.Payload)
				if !strings.Contains(text, tc.want[channel]) {
					t.Errorf("%s says %q", channel, text)
				}
				if private && strings.Contains(text, "canary") {
					t.Errorf("%s shows what is for the app: %q", channel, text)
				}
				if m.ID != r.ID || m.User != "u-1" || m.Kind != "lab.result.ready" || m.Created.IsZero() {
					t.Errorf("%s got %+v", channel, m)
				}
				if channel != tasks.ChannelWebhook && m.Action != "https://app.medicalink.example/results/42" {
					t.Errorf("%s leads to %q", channel, m.Action)
				}
			}
			if got := h.sms.messages()[0].Target; got != "+4930123456" {
				t.Errorf("the SMS went to %q", got)
			}
			mail := h.smtp.Messages()[0]
			if mail.To != "ada@example.com" || private && strings.Contains(string(mail.Raw), "canary") ||
				!strings.Contains(string(mail.Raw), "https://app.medicalink.example/results/42") {
				t.Errorf("the email is %s", mail.Raw)
			}
			if page := h.inboxOf(t, "u-1"); len(page.Items) != 1 || !strings.Contains(page.Items[0].Entry.Title+page.Items[0].Entry.Body, "canary") {
				t.Errorf("the app does not show the text: %+v", page)
			}
			if !private {
				return
			}
			for i := range all {
				info, err := h.inspector.GetTaskInfo(r.Queue, h.step(r, n, i).ID)
				if err != nil {
					continue // in_app has no job of its own
				}
				if strings.Contains(string(info.Payload), "canary") {
					t.Errorf("the job of step %d keeps what is for the app: %s", i, info.Payload)
				}
			}
		})
	}
}

// labData fills the template lab-result-ready with canaries where it may not be seen
// outside the app.
func labData() map[string]any {
	return map[string]any{"test_name": "canary test", "result_id": "r-17"}
}

func TestNotification_WebhookBodyIsFixed(t *testing.T) {
	t.Parallel()
	h := setupHall(t)
	h.hook.answer = func(n int) error {
		if n == 0 {
			return &notifier.Error{Fault: notifier.Temporary, Reason: "status", Code: 500, After: time.Millisecond}
		}
		return nil
	}
	h.start(t)
	n := tasks.Notification{Channels: []tasks.Channel{tasks.ChannelWebhook}, Webhook: "clinic", Template: "lab-result-ready", Data: labData()}
	r := h.notify(t, n)
	h.waitState(t, h.step(r, n, 0), asynq.TaskStateCompleted)
	got := h.hook.messages()
	if len(got) != 2 || string(got[0].Payload) != string(got[1].Payload) || got[0].ID != got[1].ID || got[0].Target != "clinic" {
		t.Fatalf("the endpoint got %+v", got)
	}
	var e struct {
		Type      string         `json:"type"`
		Timestamp time.Time      `json:"timestamp"`
		Data      map[string]any `json:"data"`
	}
	if err := json.Unmarshal(got[0].Payload, &e); err != nil {
		t.Fatal(err)
	}
	if e.Type != "lab.result.ready" || e.Timestamp.IsZero() || e.Data["notification_id"] != r.ID || e.Data["user"] != "u-1" {
		t.Errorf("the body is %s", got[0].Payload)
	}
}

func TestNotification_ReadingCancelsLaterSteps(t *testing.T) {
	t.Parallel()
	h := setupHall(t)
	h.start(t)
	plan := []tasks.Step{
		{Channel: tasks.ChannelInApp},
		{Channel: tasks.ChannelPush},
		{Channel: tasks.ChannelEmail, After: tasks.Duration(10 * time.Minute), OnlyIf: tasks.OnlyIfUnread},
		{Channel: tasks.ChannelSMS, After: tasks.Duration(20 * time.Minute)},
		{Channel: tasks.ChannelSMS, After: tasks.Duration(30 * time.Minute), OnlyIf: tasks.Always},
	}
	n := tasks.Notification{Plan: plan, Email: "read@example.com", Phone: "+4930123456"}
	read := h.notify(t, n)
	n.Email = "unread@example.com"
	unread := h.notify(t, n)
	for _, r := range []tasks.Receipt{read, unread} {
		h.waitState(t, r, asynq.TaskStateCompleted)
		for i, after := range map[int]time.Duration{2: 10 * time.Minute, 3: 20 * time.Minute} {
			info := h.waitState(t, h.step(r, n, i), asynq.TaskStateScheduled)
			if early := info.NextProcessAt.Sub(r.ProcessAt.Add(after)); early < 0 || early > 2*time.Second {
				t.Errorf("step %d is due %v off its time", i, early)
			}
		}
	}
	for _, item := range h.inboxOf(t, "u-1").Items {
		if item.Entry.ID == read.ID {
			if _, err := h.worker.inbox.Read(t.Context(), "u-1", item.Position); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, r := range []tasks.Receipt{read, unread} {
		for i := 2; i <= 4; i++ {
			h.hasten(t, h.step(r, n, i))
		}
	}
	h.skipped(t, h.step(read, n, 2), reasonRead)
	h.skipped(t, h.step(read, n, 3), reasonRead)
	h.waitState(t, h.step(read, n, 4), asynq.TaskStateCompleted)
	for i := 2; i <= 4; i++ {
		h.waitState(t, h.step(unread, n, i), asynq.TaskStateCompleted)
	}
	eventually(t, "the email is delivered", func() bool { return len(h.smtp.Messages()) > 0 })
	if got := copies(h.smtp); !maps.Equal(got, map[string]int{"unread@example.com": 1}) {
		t.Errorf("emails went to %v", got)
	}
	byID := map[string]int{}
	for _, m := range h.sms.messages() {
		byID[m.ID]++
	}
	if want := map[string]int{read.ID: 1, unread.ID: 2}; !maps.Equal(byID, want) {
		t.Errorf("SMS by notification: %v, want %v", byID, want)
	}
}

func TestNotification_OnlyIfUnsent(t *testing.T) {
	t.Parallel()
	h := setupHall(t)
	h.push.targets = nil // the user has no browser
	h.start(t)
	plan := []tasks.Step{
		{Channel: tasks.ChannelPush},
		{Channel: tasks.ChannelSMS, After: tasks.Duration(time.Minute), OnlyIf: tasks.OnlyIfUnsent},
		{Channel: tasks.ChannelEmail, After: tasks.Duration(time.Hour), OnlyIf: tasks.OnlyIfUnsent},
	}
	n := tasks.Notification{Plan: plan, Phone: "+4930123456", Email: "ada@example.com"}
	r := h.notify(t, n)
	h.skipped(t, h.step(r, n, 0), reasonNoTarget)
	h.hasten(t, h.step(r, n, 1))
	h.waitState(t, h.step(r, n, 1), asynq.TaskStateCompleted)
	h.hasten(t, h.step(r, n, 2))
	h.skipped(t, h.step(r, n, 2), reasonSentBefore)
	if len(h.sms.messages()) != 1 || len(h.smtp.Messages()) != 0 {
		t.Errorf("%d SMS and %d emails, want one SMS only", len(h.sms.messages()), len(h.smtp.Messages()))
	}
}

func TestNotification_AsksPreferencesAtDelivery(t *testing.T) {
	t.Parallel()
	h := setupHall(t)
	h.start(t)
	plan := []tasks.Step{{Channel: tasks.ChannelInApp}, {Channel: tasks.ChannelSMS, After: tasks.Duration(time.Hour)}}
	n := tasks.Notification{Plan: plan, Phone: "+4930123456"}
	r := h.notify(t, n)
	h.waitState(t, h.step(r, n, 1), asynq.TaskStateScheduled)
	h.wants(t, preferences.Preferences{Switches: off(tasks.ChannelSMS)}) // after the enqueue
	h.hasten(t, h.step(r, n, 1))
	h.skipped(t, h.step(r, n, 1), reasonPreference)

	critical := h.notify(t, tasks.Notification{Plan: plan, Phone: "+4930123456", Critical: "recall of a medicine"})
	h.hasten(t, h.step(critical, n, 1))
	h.waitState(t, h.step(critical, n, 1), asynq.TaskStateCompleted)
	if got := h.sms.messages(); len(got) != 1 || got[0].ID != critical.ID {
		t.Errorf("SMS: %+v, want the critical one only", got)
	}
	entries, err := h.rdb.XRange(t.Context(), audit.Key, "-", "+").Result()
	if err != nil || len(entries) != 1 {
		t.Fatalf("the audit log has %v, %v", entries, err)
	}
	for field, want := range map[string]string{
		"action": string(audit.PreferenceOverridden), "actor": "worker-test", "reason": "recall of a medicine", "object": critical.ID, "channel": "sms", "category": "lab",
	} {
		if got := entries[0].Values[field]; got != want {
			t.Errorf("the audit entry's %s is %v", field, got)
		}
	}

	h.wants(t, preferences.Preferences{Switches: off(tasks.ChannelInApp)})
	silent := h.notify(t, tasks.Notification{Plan: plan, Phone: "+4930123456"})
	h.waitState(t, silent, asynq.TaskStateCompleted)
	for _, item := range h.inboxOf(t, "u-1").Items {
		if item.Entry.ID == silent.ID {
			t.Error("the app shows what the user does not want to see there")
		}
	}
}

func TestNotification_KeepsQuietHours(t *testing.T) {
	t.Parallel()
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	year, month, day := time.Now().In(berlin).Date()
	night := time.Date(year, month, day+2, 0, 30, 0, 0, berlin)
	morning := time.Date(year, month, day+2, 7, 0, 0, 0, berlin)
	for _, tc := range []struct {
		name    string
		n       tasks.Notification
		channel tasks.Channel
		at      time.Time
		want    string // sent, deferred, or the reason of a skip
	}{
		{"by day", tasks.Notification{}, tasks.ChannelSMS, morning, "sent"},
		{"by night", tasks.Notification{}, tasks.ChannelSMS, night, "deferred"},
		{"push", tasks.Notification{}, tasks.ChannelPush, night, "deferred"},
		{"email", tasks.Notification{}, tasks.ChannelEmail, night, "deferred"},
		{"drop", tasks.Notification{Quiet: tasks.QuietDrop}, tasks.ChannelSMS, night, reasonQuietHours},
		{"ignore", tasks.Notification{Quiet: tasks.QuietIgnore}, tasks.ChannelSMS, night, "sent"},
		{"critical", tasks.Notification{Critical: "transplant offer"}, tasks.ChannelSMS, night, "sent"},
		{"a code that was asked for", tasks.Notification{Class: tasks.ClassOTP}, tasks.ChannelSMS, night, "sent"},
		{"a chat", tasks.Notification{}, tasks.ChannelChat, night, "sent"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h := setupHall(t)
			h.wants(t, preferences.Preferences{Zone: "Europe/Berlin", Quiet: &preferences.Hours{From: "22:00", To: "07:00"}})
			h.clock.set(tc.at)
			n := tc.n
			n.Channels = []tasks.Channel{tc.channel}
			switch tc.channel {
			case tasks.ChannelSMS:
				n.Phone = "+4930123456"
			case tasks.ChannelEmail:
				n.Email = "ada@example.com"
			case tasks.ChannelChat:
				n.Chat = "ward-3"
			default:
			}
			r := h.notify(t, n, tasks.Queue(notices), tasks.Deadline(morning.Add(24*time.Hour)))
			h.start(t)
			h.waitState(t, r, asynq.TaskStateCompleted)
			step := h.step(r, n, 0)
			switch tc.want {
			case "sent":
				h.waitState(t, step, asynq.TaskStateCompleted)
				if tc.channel == tasks.ChannelSMS && len(h.sms.messages()) != 1 {
					t.Errorf("%d SMS", len(h.sms.messages()))
				}
			case "deferred":
				info := h.waitState(t, step, asynq.TaskStateRetry)
				if info.Retried != 0 {
					t.Errorf("the wait cost %d attempts", info.Retried)
				}
				// The worker's clock stands at the night; Redis's is the machine's.
				want := time.Until(morning)
				if got := time.Until(info.NextProcessAt); got < want-5*time.Second || got > want+quietSpread+5*time.Second {
					t.Errorf("waits for %v, the morning is in %v", got, want)
				}
			default:
				h.skipped(t, step, tc.want)
			}
			audited, err := h.rdb.XLen(t.Context(), audit.Key).Result()
			if err != nil || audited != 0 != (tc.n.Critical != "") {
				t.Errorf("the audit log has %d entries, %v", audited, err)
			}
		})
	}
}

func TestNotification_CollapseReplacesWhatIsNotDelivered(t *testing.T) {
	t.Parallel()
	h := setupHall(t)
	h.start(t)
	n := tasks.Notification{
		Plan:     []tasks.Step{{Channel: tasks.ChannelInApp}, {Channel: tasks.ChannelSMS, After: tasks.Duration(time.Hour)}},
		Phone:    "+4930123456",
		Collapse: "queue-position",
	}
	older := h.notify(t, n)
	h.waitState(t, h.step(older, n, 1), asynq.TaskStateScheduled)
	newer := h.notify(t, n)
	h.waitState(t, h.step(newer, n, 1), asynq.TaskStateScheduled)
	if page := h.inboxOf(t, "u-1"); len(page.Items) != 1 || page.Items[0].Entry.ID != newer.ID || page.Unread != 1 {
		t.Errorf("the inbox shows %+v, want the newer one only", page)
	}
	h.hasten(t, h.step(older, n, 1))
	h.hasten(t, h.step(newer, n, 1))
	h.skipped(t, h.step(older, n, 1), reasonSuperseded)
	h.waitState(t, h.step(newer, n, 1), asynq.TaskStateCompleted)
	if got := h.sms.messages(); len(got) != 1 || got[0].ID != newer.ID {
		t.Errorf("SMS: %+v, want that of the newer one", got)
	}
}

func TestNotification_Dedupe(t *testing.T) {
	t.Parallel()
	h := setupHall(t)
	h.start(t)
	n := tasks.Notification{Channels: []tasks.Channel{tasks.ChannelInApp, tasks.ChannelSMS}, Phone: "+4930123456", Dedupe: "result-42"}
	first := h.notify(t, n)
	h.waitState(t, h.step(first, n, 1), asynq.TaskStateCompleted)
	second := h.notify(t, n)
	h.skipped(t, second, reasonDuplicate)
	if page := h.inboxOf(t, "u-1"); len(page.Items) != 1 || len(h.sms.messages()) != 1 {
		t.Errorf("the inbox has %d entries, and %d SMS went out", len(page.Items), len(h.sms.messages()))
	}
}

// What could not be rendered holds nothing back.
func TestNotification_DedupeCountsWhatWasRendered(t *testing.T) {
	t.Parallel()
	h := setupHall(t)
	h.start(t)
	n := tasks.Notification{Template: "lab-result-ready", Data: map[string]any{"nom": "x"}, Dedupe: "result-42"}
	h.waitState(t, h.notify(t, n), asynq.TaskStateArchived)
	n.Data = labData()
	h.waitState(t, h.notify(t, n), asynq.TaskStateCompleted)
	if page := h.inboxOf(t, "u-1"); len(page.Items) != 1 {
		t.Errorf("the inbox has %d entries: the mended notification was taken for a copy", len(page.Items))
	}
}

// A job that comes of another is part of its trace, and mail leaves by a queue that
// somebody consumes.
func TestNotification_HandsMailOver(t *testing.T) {
	t.Parallel()
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	h := setupHall(t)
	cfg := h.worker.cfg
	cfg.Queues = map[string]int{"notification:vip": 1, normal: 1, critical: 1}
	h.bed = setup(t, cfg, h.redis, h.smtp)
	var err error
	if h.producer, err = tasks.NewProducer(h.rdb, tasks.TraceFrom(func(context.Context) (string, string) { return trace, "" })); err != nil {
		t.Fatal(err)
	}
	h.start(t)
	n := tasks.Notification{Channels: []tasks.Channel{tasks.ChannelEmail}, Email: "ada@example.com"}
	r := h.notify(t, n, tasks.Queue("notification:vip"))
	step := h.step(r, n, 0)
	h.waitState(t, step, asynq.TaskStateCompleted)
	eventually(t, "the email is delivered", func() bool { return len(h.smtp.Messages()) == 1 })
	done, err := h.inspector.ListCompletedTasks(normal)
	if err != nil || len(done) != 1 {
		t.Fatalf("completed in %s: %d jobs, %v", normal, len(done), err)
	}
	for what, info := range map[string]*asynq.TaskInfo{"the step": h.info(t, step), "the email": done[0]} {
		if got := info.Headers[tasks.HeaderTraceParent]; got != trace {
			t.Errorf("%s has the trace %q", what, got)
		}
	}
}

func TestNotification_GathersDigests(t *testing.T) {
	t.Parallel()
	h := setupHall(t)
	h.start(t)
	digest := func(most int) *tasks.Digest {
		return &tasks.Digest{Key: "messages", Window: tasks.Duration(time.Hour), Max: most}
	}
	closing := func(generation int64, full bool) tasks.Receipt {
		c := tasks.DigestClose{User: "u-1", Key: "messages", Generation: generation, Full: full}
		return tasks.Receipt{Queue: notices, ID: c.ID()}
	}
	n := tasks.Notification{Channels: []tasks.Channel{tasks.ChannelInApp, tasks.ChannelPush}, Sensitivity: tasks.SensitivityPersonal}
	for i := range 3 {
		n.Title, n.Digest = fmt.Sprintf("message %d", i), digest(0)
		h.waitState(t, h.notify(t, n), asynq.TaskStateCompleted)
	}
	if page := h.inboxOf(t, "u-1"); len(page.Items) != 0 {
		t.Fatalf("the inbox shows %+v before the window is over", page)
	}
	end := closing(1, false)
	info := h.waitState(t, end, asynq.TaskStateScheduled)
	if until := time.Until(info.NextProcessAt); until < 59*time.Minute || until > 61*time.Minute {
		t.Errorf("the window ends in %v", until)
	}
	h.hasten(t, end)
	h.waitState(t, end, asynq.TaskStateCompleted)
	page := h.inboxOf(t, "u-1")
	if len(page.Items) != 1 || !strings.Contains(page.Items[0].Entry.Title, "3") || !strings.Contains(page.Items[0].Entry.Body, "message 1") {
		t.Fatalf("the inbox shows %+v, want one entry for three", page)
	}
	eventually(t, "the push is delivered", func() bool { return len(h.push.messages()) == 1 })

	// A single one is delivered as it is.
	n.Title, n.Digest = "alone", digest(0)
	h.waitState(t, h.notify(t, n), asynq.TaskStateCompleted)
	h.hasten(t, closing(2, false))
	h.waitState(t, closing(2, false), asynq.TaskStateCompleted)
	if page := h.inboxOf(t, "u-1"); len(page.Items) != 2 || page.Items[0].Entry.Title != "alone" {
		t.Errorf("the inbox shows %+v", page)
	}

	// A full window does not wait for its end, which then has nothing to do.
	for i := range 2 {
		n.Title, n.Digest = fmt.Sprintf("urgent %d", i), digest(2)
		h.waitState(t, h.notify(t, n), asynq.TaskStateCompleted)
	}
	h.waitState(t, closing(3, true), asynq.TaskStateCompleted)
	h.hasten(t, closing(3, false))
	h.skipped(t, closing(3, false), reasonClosedBefore)
	if page := h.inboxOf(t, "u-1"); len(page.Items) != 3 {
		t.Errorf("the inbox shows %d entries, want 3", len(page.Items))
	}
}

// A digest of which one item is about health says no more than that outside the app.
func TestDigestOf_IsAsSensitiveAsItsMostSensitiveItem(t *testing.T) {
	t.Parallel()
	item := func(s tasks.Sensitivity) []byte {
		n, err := json.Marshal(tasks.Notification{V: 1, Kind: "a.b", User: "u", Title: "t", Sensitivity: s})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(digestItem{Notification: n})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for want, items := range map[tasks.Sensitivity][][]byte{
		tasks.SensitivityHealth:   {item(tasks.SensitivityNone), item(tasks.SensitivityHealth), item(tasks.SensitivityPersonal)},
		tasks.SensitivityPersonal: {item(tasks.SensitivityPersonal), item(tasks.SensitivityNone)},
		tasks.SensitivityNone:     {item(tasks.SensitivityNone), item(tasks.SensitivityNone)},
	} {
		n, err := digestOf(items)
		if err != nil || n.Sensitivity != want {
			t.Errorf("a digest is %s, %v, want %s", n.Sensitivity, err, want)
		}
	}
	if _, err := digestOf([][]byte{[]byte("damaged")}); err == nil {
		t.Error("a damaged item is taken")
	}
}

func TestNotification_RefusesOtherHosts(t *testing.T) {
	t.Parallel()
	h := setupHall(t)
	h.start(t)
	for action, ok := range map[string]bool{
		"https://app.medicalink.example/x":      true,
		"https://portal.medicalink.example/x":   true,
		"https://evil.example/x":                false,
		"https://portal.medicalink.example.x/y": false,
	} {
		r := h.notify(t, tasks.Notification{Action: action})
		want := asynq.TaskStateArchived
		if ok {
			want = asynq.TaskStateCompleted
		}
		info := h.waitState(t, r, want)
		if !ok && (!strings.HasPrefix(info.LastErr, reasonInvalid) || strings.Contains(info.LastErr, "evil")) {
			t.Errorf("refused with %q", info.LastErr)
		}
	}
}

// What a channel answers decides how its step goes on, and no other step.
func TestNotification_EachStepHasItsOwnFate(t *testing.T) {
	t.Parallel()
	fault := func(f notifier.Fault, after time.Duration) error {
		return &notifier.Error{Fault: f, Reason: "because", After: after, Code: 500, Err: errors.New("canary@example.com")}
	}
	for _, tc := range []struct {
		name    string
		channel tasks.Channel
		class   tasks.Class
		err     error
		state   asynq.TaskState
		outcome Outcome
		retried int
	}{
		{"temporary", tasks.ChannelSMS, "", fault(notifier.Temporary, time.Hour), asynq.TaskStateRetry, OutcomeRetry, 1},
		{"held", tasks.ChannelSMS, "", fault(notifier.Held, time.Hour), asynq.TaskStateRetry, OutcomeDeferred, 0},
		{"permanent", tasks.ChannelSMS, "", fault(notifier.Permanent, 0), asynq.TaskStateArchived, OutcomeRejected, 0},
		{"gone", tasks.ChannelWebhook, "", fault(notifier.Gone, 0), asynq.TaskStateArchived, OutcomeRejected, 0},
		{"a browser that is gone", tasks.ChannelPush, "", fault(notifier.Gone, 0), asynq.TaskStateCompleted, OutcomeSkipped, 0},
		{"unknown, a copy is better", tasks.ChannelSMS, tasks.ClassClinical, fault(notifier.Unknown, 0), asynq.TaskStateRetry, OutcomeDeferred, 0},
		{"unknown, silence is better", tasks.ChannelSMS, tasks.ClassOTP, fault(notifier.Unknown, 0), asynq.TaskStateArchived, OutcomeUnknown, 0},
		{"webhook by its schedule", tasks.ChannelWebhook, "", fault(notifier.Temporary, 0), asynq.TaskStateRetry, OutcomeRetry, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h := setupHall(t)
			rec := map[tasks.Channel]*recorder{tasks.ChannelSMS: h.sms, tasks.ChannelWebhook: h.hook, tasks.ChannelPush: h.push}[tc.channel]
			rec.answer = func(int) error { return tc.err }
			h.worker.cfg.DoubtWait = time.Hour
			n := tasks.Notification{Channels: []tasks.Channel{tasks.ChannelInApp, tc.channel}, Class: tc.class}
			browser := ""
			switch tc.channel {
			case tasks.ChannelSMS:
				n.Phone = "+4930123456"
			case tasks.ChannelWebhook:
				n.Webhook = "clinic"
			default:
				browser = "phone"
			}
			r := h.notify(t, n, tasks.Queue(notices))
			h.start(t)
			h.waitState(t, r, asynq.TaskStateCompleted)
			info := h.waitState(t, h.step(r, n, 1, browser), tc.state)
			if info.Retried != tc.retried || strings.Contains(info.LastErr, "canary") {
				t.Errorf("%d attempts charged, error %q", info.Retried, info.LastErr)
			}
			eventually(t, "the outcome is logged", func() bool { return strings.Contains(h.logs.String(), `"outcome":"`+string(tc.outcome)+`"`) })
			if page := h.inboxOf(t, "u-1"); len(page.Items) != 1 {
				t.Errorf("the inbox has %d entries", len(page.Items))
			}
		})
	}
}

func TestNotification_ArchivesStepsOfMissingChannels(t *testing.T) {
	t.Parallel()
	h := setupHall(t)
	delete(h.worker.cfg.Channels, tasks.ChannelSMS)
	h.start(t)
	n := tasks.Notification{Channels: []tasks.Channel{tasks.ChannelSMS}, Phone: "+4930123456"}
	r := h.notify(t, n)
	if info := h.waitState(t, h.step(r, n, 0), asynq.TaskStateArchived); !strings.HasPrefix(info.LastErr, reasonNotConfigured) {
		t.Errorf("archived with %q", info.LastErr)
	}
}

// The producer refuses a plan that outlives its deadline; one that waited in the queue
// comes to the same.
func TestNotification_LeavesOutStepsPastTheDeadline(t *testing.T) {
	t.Parallel()
	h := setupHall(t)
	n := tasks.Notification{
		Plan:  []tasks.Step{{Channel: tasks.ChannelInApp}, {Channel: tasks.ChannelSMS, After: tasks.Duration(time.Minute)}},
		Phone: "+4930123456",
	}
	r := h.notify(t, n, tasks.Deadline(time.Now().Add(time.Hour)))
	h.clock.set(time.Now().Add(2 * time.Hour))
	h.start(t)
	h.waitState(t, r, asynq.TaskStateCompleted)
	if _, err := h.inspector.GetTaskInfo(r.Queue, h.step(r, n, 1).ID); !errors.Is(err, asynq.ErrTaskNotFound) {
		t.Errorf("a step that would come too late is enqueued: %v", err)
	}
}

// Whatever runs twice delivers once: the plan, a step, and the email that comes of it.
func TestNotification_RunsTwiceDeliversOnce(t *testing.T) {
	t.Parallel()
	h := setupHall(t)
	h.start(t)
	h.push.targets = []string{"phone", "laptop"}
	n := tasks.Notification{
		Channels: []tasks.Channel{tasks.ChannelInApp, tasks.ChannelEmail, tasks.ChannelPush}, Email: "ada@example.com",
	}
	r := h.notify(t, n)
	again := func(r tasks.Receipt) {
		t.Helper()
		h.waitState(t, r, asynq.TaskStateCompleted)
		info := h.info(t, r)
		// The record of the first run is lost, as with a worker that died before it wrote it.
		if err := h.rdb.Del(t.Context(), "postroom:job:{"+r.ID+"}").Err(); err != nil {
			t.Fatal(err)
		}
		task := asynq.NewTaskWithHeaders(info.Type, info.Payload, info.Headers)
		if err := h.inspector.DeleteTask(r.Queue, r.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := asynq.NewClientFromRedisClient(h.rdb).Enqueue(task, asynq.TaskID(r.ID), asynq.Queue(r.Queue), asynq.Retention(time.Hour)); err != nil {
			t.Fatal(err)
		}
		h.waitState(t, r, asynq.TaskStateCompleted)
	}
	eventually(t, "all is delivered", func() bool { return len(h.smtp.Messages()) == 1 && len(h.push.messages()) == 2 })
	again(r)
	again(h.step(r, n, 1))
	again(h.step(r, n, 2))
	last := h.notify(t, tasks.Notification{User: "u-2", Channels: []tasks.Channel{tasks.ChannelEmail}, Email: "last@example.com"})
	h.waitState(t, last, asynq.TaskStateCompleted)
	eventually(t, "the last email is delivered", func() bool { return copies(h.smtp)["last@example.com"] == 1 })
	if page := h.inboxOf(t, "u-1"); len(page.Items) != 1 || copies(h.smtp)["ada@example.com"] != 1 || len(h.push.messages()) != 2 {
		t.Errorf("%d entries, %v emails, %d pushes", len(page.Items), copies(h.smtp), len(h.push.messages()))
	}
}

func TestDeliver_ArchivesWhatCannotBeRead(t *testing.T) {
	t.Parallel()
	h := setupHall(t)
	h.start(t)
	client := asynq.NewClientFromRedisClient(h.rdb)
	for _, kind := range []string{tasks.TypeNotification, tasks.TypeDelivery, tasks.TypeDigest} {
		for _, payload := range []string{"canary@example.org", `{"v":99}`, `{"v":1,"user":"canary@example.org"}`} {
			id := uuid.NewString()
			if _, err := client.Enqueue(asynq.NewTask(kind, []byte(payload)), asynq.Queue(notices), asynq.TaskID(id)); err != nil {
				t.Fatal(err)
			}
			info := h.waitState(t, tasks.Receipt{Queue: notices, ID: id}, asynq.TaskStateArchived)
			if !strings.HasPrefix(info.LastErr, reasonUndecodable) || strings.Contains(info.LastErr, "canary") {
				t.Errorf("%s %q: archived with %q", kind, payload, info.LastErr)
			}
		}
	}
}
