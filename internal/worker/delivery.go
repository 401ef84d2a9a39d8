package worker

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"

	"github.com/medicalink/postroom/internal/audit"
	"github.com/medicalink/postroom/internal/ledger"
	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/webhook"
	"github.com/medicalink/postroom/preferences"
	"github.com/medicalink/postroom/tasks"
)

// deliver carries out one step of a plan.
func (w *Worker) deliver(ctx context.Context, j *job, a *ledger.Attempt) *failure {
	d, err := tasks.DecodeDelivery(j.payload)
	if err != nil {
		a.Release(ctx)
		return fail(OutcomeRejected, reasonUndecodable, err)
	}
	prefs, f := w.admitStep(ctx, d)
	if f != nil {
		return conclude(ctx, a, f)
	}
	switch d.Channel {
	case tasks.ChannelInApp:
		f := w.toInbox(ctx, d, prefs)
		if f == nil {
			w.mark(ctx, d)
		}
		return conclude(ctx, a, f)
	case tasks.ChannelEmail:
		return conclude(ctx, a, w.toEmail(ctx, j, d))
	case tasks.ChannelPush:
		if d.Target == "" {
			return conclude(ctx, a, w.toSubscriptions(ctx, j, d))
		}
	case tasks.ChannelSMS, tasks.ChannelChat, tasks.ChannelWebhook:
	}
	return w.call(ctx, j, a, d)
}

// personal reports whether a channel reaches the user, who then may have read the
// notification already, or not want it.
func personal(c tasks.Channel) bool {
	switch c {
	case tasks.ChannelInApp, tasks.ChannelPush, tasks.ChannelEmail, tasks.ChannelSMS:
		return true
	case tasks.ChannelChat, tasks.ChannelWebhook:
	}
	return false
}

// rings reports whether a channel disturbs a sleeper.
func rings(c tasks.Channel) bool { return personal(c) && c != tasks.ChannelInApp }

// admitStep decides, now that its time has come, whether the step of d is still called for.
func (w *Worker) admitStep(ctx context.Context, d tasks.Delivery) (preferences.Preferences, *failure) {
	var none preferences.Preferences
	if d.Replay != "" {
		return none, nil // an operator has decided
	}
	if d.Collapse != "" {
		superseded, err := w.inbox.Superseded(ctx, d.User, d.Collapse, d.Notification)
		if err != nil {
			return none, redisFailed(ctx, "ask for a newer notification", err)
		}
		if superseded {
			return none, skip(reasonSuperseded)
		}
	}
	if d.OnlyIf == tasks.OnlyIfUnsent {
		sent, err := w.earlier(ctx, d)
		if err != nil {
			return none, redisFailed(ctx, "ask for the earlier steps", err)
		}
		if sent {
			return none, skip(reasonSentBefore)
		}
	}
	if !personal(d.Channel) {
		return none, nil
	}
	if d.OnlyIf != tasks.Always {
		// Where the notification is not in the app, nobody has read it there.
		_, read, err := w.inbox.State(ctx, d.User, d.Notification)
		if err != nil {
			return none, redisFailed(ctx, "ask whether it was read", err)
		}
		if read {
			return none, skip(reasonRead)
		}
	}
	prefs, err := w.preferences.Get(ctx, d.User)
	if err != nil {
		return none, redisFailed(ctx, "read the preferences", err)
	}
	if d.Channel == tasks.ChannelInApp {
		return prefs, nil // toInbox asks for itself
	}
	if f := w.wanted(ctx, d, prefs); f != nil {
		return none, f
	}
	return prefs, w.quiet(ctx, d, prefs)
}

// quietSpread is the time after quiet hours over which what waited for their end goes out.
const quietSpread = 30 * time.Second

// quiet keeps the quiet hours of the user.
func (w *Worker) quiet(ctx context.Context, d tasks.Delivery, prefs preferences.Preferences) *failure {
	end, quiet := prefs.QuietUntil(w.now())
	switch {
	case !quiet, !rings(d.Channel), d.Quiet == tasks.QuietIgnore, d.Class == tasks.ClassOTP:
		return nil // who asked for a code is awake
	case d.Critical != "":
		return w.override(ctx, d, audit.QuietOverridden)
	case d.Quiet == tasks.QuietDrop:
		return skip(reasonQuietHours)
	}
	f := fail(OutcomeDeferred, reasonQuietHours, errors.New("waits for the end of the user's quiet hours"))
	f.until = end.Add(rand.N(quietSpread))
	return f
}

// handover is the namespace of the ids of emails that come from notifications.
var handover = uuid.MustParse("5b0c4a5e-6a0f-5d0e-9d6b-6f1d5a3c8e42")

// toEmail hands the step over to the email queue, once: the email's id follows from the
// step's.
func (w *Worker) toEmail(ctx context.Context, j *job, d tasks.Delivery) *failure {
	opts := []tasks.Option{tasks.JobID(uuid.NewSHA1(handover, []byte(j.id)).String())}
	// Of a queue with a name of its own, nobody may consume the counterpart.
	_, name, _ := strings.Cut(w.bare(j.queue), ":")
	switch level := tasks.PriorityLevel(name); level {
	case tasks.Critical, tasks.Default, tasks.Bulk:
		opts = append(opts, tasks.Priority(level))
	}
	if !j.expires.IsZero() {
		opts = append(opts, tasks.Deadline(j.expires))
	}
	if _, err := w.producer.SendEmail(ctx, *d.Mail, opts...); err != nil {
		return enqueueFailed(ctx, err)
	}
	w.mark(ctx, d)
	return nil
}

// toSubscriptions makes a job for each browser of the user, so that each has its own
// retries.
func (w *Worker) toSubscriptions(ctx context.Context, j *job, d tasks.Delivery) *failure {
	if w.push == nil {
		return notConfigured(d.Channel)
	}
	targets, err := w.push.Targets(ctx, d.User)
	if err != nil {
		return redisFailed(ctx, "list the push subscriptions", err)
	}
	if len(targets) == 0 {
		return skip(reasonNoTarget)
	}
	for _, target := range targets {
		d.Target = target
		if f := w.enqueueStep(ctx, j, d, w.now()); f != nil {
			return f
		}
	}
	return nil
}

func notConfigured(c tasks.Channel) *failure {
	return fail(OutcomeRejected, reasonNotConfigured, errors.New("no worker can deliver on the channel "+string(c)+": see the settings of the worker"))
}

// call makes one try on a channel that leaves the platform.
func (w *Worker) call(ctx context.Context, j *job, a *ledger.Attempt, d tasks.Delivery) *failure {
	channel := w.cfg.Channels[d.Channel]
	if channel == nil {
		return conclude(ctx, a, notConfigured(d.Channel))
	}
	ctx = w.log.With().Str(fieldTask, j.id).Logger().WithContext(ctx)
	m := &notifier.Message{
		ID: d.Notification, Target: d.Target, User: d.User, Kind: d.Kind, Title: d.Title, Body: d.Body, Action: d.Action,
		Payload: d.Payload, Collapse: d.Collapse, Urgent: strings.HasSuffix(j.queue, ":"+string(tasks.Critical)),
		Created: d.Created, Expires: j.expires,
	}
	if d.Channel == tasks.ChannelWebhook {
		// The receiver tells a second copy by its id, so nothing is ever in doubt.
		j.policy.GiveUp = webhookGiveUp
		f := w.judge(j, w.judgeCall(ctx, j, a, d, channel.Deliver(ctx, m)))
		w.logWebhook(ctx, j, d, f)
		return f
	}
	if err := a.Commit(ctx, string(d.Channel)); err != nil {
		a.Release(ctx)
		if errors.Is(err, ledger.ErrSuperseded) {
			f := fail(OutcomeDeferred, reasonTakenOver, ledger.ErrSuperseded)
			f.after = w.cfg.DoubtWait
			return f
		}
		return redisFailed(ctx, "record the try", err)
	}
	// From here on an answer is waited for: to stop only makes a doubt out of a fact.
	// The channels bound that wait.
	sending, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(w.cutOff, func() { cancel(errShutdown) })()
	return w.judgeCall(ctx, j, a, d, channel.Deliver(sending, m))
}

// judgeCall decides what the end of a try means, and ends the attempt accordingly.
func (w *Worker) judgeCall(ctx context.Context, j *job, a *ledger.Attempt, d tasks.Delivery, err error) *failure {
	if err == nil {
		a.Sent(ctx, string(d.Channel), "")
		w.mark(ctx, d)
		return nil
	}
	e, ok := errors.AsType[*notifier.Error](err)
	if !ok {
		if d.Channel == tasks.ChannelWebhook {
			a.Release(ctx)
		} else {
			a.Doubt(ctx) // it ended with its context, wherever it was
		}
		return ended(ctx)
	}
	j.provider, j.code = string(d.Channel), e.Code
	f := fail(OutcomeRetry, e.Reason, e)
	f.text = strings.TrimLeft(strings.TrimPrefix(f.text, e.Reason), ": ") // the reason stands in front anyway
	f.after = e.After
	switch e.Fault {
	case notifier.Temporary:
		if d.Channel == tasks.ChannelWebhook && f.after == 0 {
			n, _ := asynq.GetRetryCount(ctx)
			f.after = webhookSchedule[min(n, len(webhookSchedule)-1)]
		}
	case notifier.Held:
		f.outcome = OutcomeDeferred
	case notifier.Permanent:
		f.outcome = OutcomeRejected
	case notifier.Gone:
		f.outcome = OutcomeRejected
		if d.Channel == tasks.ChannelPush {
			f.outcome = OutcomeSkipped // a browser that unsubscribed is nobody's fault
		}
	case notifier.Unknown:
		if !j.policy.ResendInDoubt {
			a.Park(ctx)
			f.outcome = OutcomeUnknown
			return f
		}
		a.Doubt(ctx)
		f.outcome, f.after = OutcomeDeferred, w.cfg.DoubtWait
		return f
	}
	if f.outcome == OutcomeSkipped {
		a.Sent(ctx, string(d.Channel), "")
	} else {
		a.Release(ctx)
	}
	return f
}

// webhookGiveUp is more than the 75 hours that the schedule of webhooks takes.
const webhookGiveUp = 5 * 24 * time.Hour

var webhookSchedule = webhook.Schedule()

// logWebhook keeps a webhook that has come to its end, so that it can be sent again.
func (w *Worker) logWebhook(ctx context.Context, j *job, d tasks.Delivery, f *failure) {
	if w.cfg.Webhooks == nil {
		return
	}
	r := webhook.Record{Notification: d.Notification, Outcome: webhook.OutcomeDelivered, Code: j.code, Job: j.payload}
	if f != nil {
		n, _ := asynq.GetRetryCount(ctx)
		most, _ := asynq.GetMaxRetry(ctx)
		if f.outcome != OutcomeRejected && (f.outcome != OutcomeRetry || n < most) {
			return
		}
		r.Outcome, r.Reason = webhook.OutcomeFailed, f.reason
	}
	if err := w.cfg.Webhooks.Append(ctx, d.Target, r); err != nil {
		w.log.Warn().Err(err).Str(fieldTask, j.id).Msg("webhook not logged: it cannot be replayed")
	}
}
