package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/audit"
	"github.com/medicalink/postroom/internal/inbox"
	"github.com/medicalink/postroom/internal/ledger"
	"github.com/medicalink/postroom/preferences"
	"github.com/medicalink/postroom/tasks"
)

// sendNotification carries out a notification as a service handed it in.
func (w *Worker) sendNotification(ctx context.Context, j *job, a *ledger.Attempt) *failure {
	n, err := tasks.DecodeNotification(j.payload)
	if err != nil {
		a.Release(ctx)
		return fail(OutcomeRejected, reasonUndecodable, err)
	}
	return conclude(ctx, a, w.notify(ctx, j, n))
}

// conclude ends an attempt that changed nothing outside of Redis, where a second run
// finds what the first one did.
func conclude(ctx context.Context, a *ledger.Attempt, f *failure) *failure {
	if f == nil || f.outcome == OutcomeSkipped {
		a.Sent(ctx, "", "")
	} else {
		a.Release(ctx)
	}
	return f
}

// notify decides whether n is delivered at all, and whether now or in a digest.
func (w *Worker) notify(ctx context.Context, j *job, n tasks.Notification) *failure {
	prefs, err := w.preferences.Get(ctx, n.User)
	if err != nil {
		return redisFailed(ctx, "read the preferences", err)
	}
	// Before the keys are claimed: what cannot be rendered must not hold back the one that
	// is sent in its place.
	texts, f := w.textsOf(j, n, prefs)
	if f != nil {
		return f
	}
	if n.Dedupe != "" || n.Collapse != "" {
		outcome, err := w.inbox.Claim(ctx, n.User, j.id, inbox.Claim{
			Dedupe: n.Dedupe, DedupeFor: time.Duration(n.DedupeFor), Collapse: n.Collapse, Keep: lifeOf(n),
		})
		switch {
		case err != nil:
			return redisFailed(ctx, "claim the dedupe and collapse keys", err)
		case outcome == inbox.Duplicate:
			return skip(reasonDuplicate)
		case outcome == inbox.Superseded:
			return skip(reasonSuperseded)
		}
	}
	if n.Digest != nil {
		return w.gather(ctx, j, n, texts)
	}
	return w.plan(ctx, j, n, texts, prefs)
}

// lifeOf is how long the last step of n may be under way.
func lifeOf(n tasks.Notification) time.Duration {
	steps := n.Steps()
	return time.Duration(steps[len(steps)-1].After) + n.Class.Policy().GiveUp + 24*time.Hour
}

// due is when j was to run: the time from which its plan counts. A job that somebody
// ran before its time was due then.
func (w *Worker) due(j *job) time.Time {
	at, err := time.Parse(time.RFC3339Nano, j.headers[tasks.HeaderProcessAt])
	if err != nil {
		return j.enqueued
	}
	if now := w.now(); at.After(now) {
		return now
	}
	return at
}

// plan carries out the steps of n: what is due now and stays within Redis at once, all
// others as jobs of their own. Run again, it finds what it did before.
func (w *Worker) plan(ctx context.Context, j *job, n tasks.Notification, texts texts, prefs preferences.Preferences) *failure {
	steps := n.Steps()
	asked := slices.ContainsFunc(steps, func(s tasks.Step) bool { return s.OnlyIf == tasks.OnlyIfUnsent })
	if asked {
		if err := w.openMarks(ctx, j.id, lifeOf(n)); err != nil {
			return redisFailed(ctx, "note the plan", err)
		}
	}
	for i, step := range steps {
		d := deliveryOf(j, n, texts, i, step)
		if step.Channel == tasks.ChannelInApp && step.After == 0 {
			f := w.toInbox(ctx, d, prefs)
			switch {
			case f == nil && asked:
				w.mark(ctx, d)
			case f != nil && f.outcome != OutcomeSkipped:
				return f
			}
			continue
		}
		if f := w.enqueueStep(ctx, j, d, w.due(j).Add(time.Duration(step.After))); f != nil {
			return f
		}
	}
	return nil
}

// deliveryOf makes the job of one step.
func deliveryOf(j *job, n tasks.Notification, texts texts, i int, step tasks.Step) tasks.Delivery {
	d := tasks.Delivery{
		Notification: j.id, Step: i, Channel: step.Channel, OnlyIf: step.OnlyIf,
		Kind: n.Kind, User: n.User, Category: n.Category, Critical: n.Critical, Quiet: n.Quiet,
		Collapse: n.Collapse, Service: j.headers[tasks.HeaderService], Created: j.enqueued, Class: n.Class, Action: texts.link,
	}
	switch step.Channel {
	case tasks.ChannelInApp:
		d.Title, d.Body, d.Action = texts.app.Title, texts.app.Body, n.Action
	case tasks.ChannelPush:
		d.Title, d.Body = texts.push.Title, texts.push.Body
	case tasks.ChannelSMS:
		d.Title, d.Body, d.Target = texts.sms.Title, texts.sms.Body, n.Phone
	case tasks.ChannelChat:
		d.Title, d.Body, d.Target = texts.chat.Title, texts.chat.Body, n.Chat
	case tasks.ChannelWebhook:
		d.Payload, d.Target, d.Action = texts.payload, n.Webhook, ""
	case tasks.ChannelEmail:
		mail := texts.mail
		mail.To = n.Email
		d.Mail, d.Action = &mail, ""
	}
	return d
}

// enqueueStep enqueues d, once however often it is called.
func (w *Worker) enqueueStep(ctx context.Context, j *job, d tasks.Delivery, at time.Time) *failure {
	opts := []tasks.Option{tasks.Queue(w.bare(j.queue)), tasks.At(at)}
	if !j.expires.IsZero() {
		if !at.Before(j.expires) || !w.now().Before(j.expires) {
			return nil // it would be dropped unsent
		}
		opts = append(opts, tasks.Deadline(j.expires))
	}
	if d.Channel == tasks.ChannelWebhook {
		opts = append(opts, tasks.MaxRetry(len(webhookSchedule)))
	}
	if _, err := w.producer.SendDelivery(ctx, d, opts...); err != nil {
		return enqueueFailed(ctx, err)
	}
	return nil
}

// enqueueFailed is the failure of a job that could not enqueue another.
func enqueueFailed(ctx context.Context, err error) *failure {
	if _, invalid := errors.AsType[*tasks.ValidationError](err); invalid {
		return fail(OutcomeRejected, reasonInvalid, err)
	}
	return redisFailed(ctx, "enqueue the next step", err)
}

// redisFailed is the failure of a job that needs Redis for more than its record.
func redisFailed(ctx context.Context, what string, err error) *failure {
	if ctx.Err() != nil {
		return ended(ctx)
	}
	return fail(OutcomeDeferred, reasonRedis, fmt.Errorf("could not %s: %w", what, err))
}

// toInbox delivers d in the app.
func (w *Worker) toInbox(ctx context.Context, d tasks.Delivery, prefs preferences.Preferences) *failure {
	if f := w.wanted(ctx, d, prefs); f != nil {
		return f
	}
	delivered, err := w.inbox.Deliver(ctx, d.User, inbox.Entry{
		ID: d.Notification, Kind: d.Kind, Title: d.Title, Body: d.Body, Action: d.Action,
		Category: d.Category, Created: d.Created, Collapse: d.Collapse,
	})
	if err != nil {
		return redisFailed(ctx, "write to the inbox", err)
	}
	if delivered.Outcome == inbox.Superseded {
		return skip(reasonSuperseded)
	}
	return nil
}

// wanted asks the user's preferences. What is critical goes out nevertheless, once that
// is on record.
func (w *Worker) wanted(ctx context.Context, d tasks.Delivery, prefs preferences.Preferences) *failure {
	if prefs.Allows(d.Category, d.Channel) {
		return nil
	}
	if d.Critical == "" {
		return skip(reasonPreference)
	}
	return w.override(ctx, d, audit.PreferenceOverridden)
}

func (w *Worker) override(ctx context.Context, d tasks.Delivery, action audit.Action) *failure {
	err := w.audit.Append(ctx, audit.Entry{
		Action: action, Actor: d.Service, Object: d.Notification, Reason: d.Critical,
		Details: map[string]string{"channel": string(d.Channel), "category": d.Category, "kind": d.Kind},
	})
	if err != nil {
		return redisFailed(ctx, "record that a preference is overridden", err)
	}
	return nil
}

// A plan with a step that waits for others keeps marks of the steps that have been
// delivered. Without such a step nobody asks, and nothing is written.

func marksKey(notification string) string { return "postroom:delivered:{" + notification + "}" }

// KEYS: marks. ARGV: how long to keep them, in milliseconds.
var openMarksScript = redis.NewScript(`
redis.call('SADD', KEYS[1], 'open')
return redis.call('PEXPIRE', KEYS[1], ARGV[1])`)

func (w *Worker) openMarks(ctx context.Context, notification string, life time.Duration) error {
	if err := openMarksScript.Run(ctx, w.rdb, []string{marksKey(notification)}, life.Milliseconds()).Err(); err != nil {
		return fmt.Errorf("open the marks of a plan: %w", err)
	}
	return nil
}

// KEYS: marks. ARGV: step.
var markScript = redis.NewScript(`
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('SADD', KEYS[1], ARGV[1])`)

// mark notes that the step of d has been delivered, if a later one asks for that.
func (w *Worker) mark(ctx context.Context, d tasks.Delivery) {
	if err := markScript.Run(ctx, w.rdb, []string{marksKey(d.Notification)}, d.Step).Err(); err != nil {
		// The step is delivered: to say otherwise would deliver it again. At worst a
		// later one comes although it need not.
		w.log.Warn().Err(err).Str(fieldTask, d.Notification).Msg("delivered step not marked: a step that was to replace it may be sent too")
	}
}

// earlier reports whether a step before that of d has been delivered.
func (w *Worker) earlier(ctx context.Context, d tasks.Delivery) (bool, error) {
	marks, err := w.rdb.SMembers(ctx, marksKey(d.Notification)).Result()
	if err != nil {
		return false, fmt.Errorf("read the marks of a plan: %w", err)
	}
	for _, m := range marks {
		var step int
		if _, err := fmt.Sscan(m, &step); err == nil && step < d.Step {
			return true, nil
		}
	}
	return false, nil
}
