package worker

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/medicalink/postroom/internal/ledger"
	"github.com/medicalink/postroom/internal/mailer"
	"github.com/medicalink/postroom/tasks"
)

// errExpired stops a message at the last moment before the final dot.
var errExpired = errors.New("past its deadline")

// commitError marks a failure of the ledger among those of the mailer.
type commitError struct{ error }

func (e *commitError) Unwrap() error { return e.error }

// sendEmail takes an email job to the relay's answer.
func (w *Worker) sendEmail(ctx context.Context, j *job, a *ledger.Attempt) *failure {
	envelope, f := w.compose(j)
	if f != nil {
		a.Release(ctx)
		return f
	}

	// The mailer honours its context to the letter, so this one must not end by
	// itself once the dot is written: only a cut-off at shutdown ends it then.
	var committed atomic.Bool
	sending, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() {
		if !committed.Load() {
			cancel(context.Cause(ctx))
		}
	})()
	defer context.AfterFunc(w.cutOff, func() { cancel(errShutdown) })()

	opts := mailer.Options{Commit: func(_ context.Context, provider string) error {
		if j.expired() {
			return errExpired
		}
		if err := a.Commit(ctx, provider); err != nil {
			return &commitError{err}
		}
		committed.Store(true)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return nil
	}}
	if j.record.Provider != "" {
		opts.Provider = j.record.Provider // only the relay that may have it could tell a second copy
	}

	receipt, err := w.mail.Send(sending, envelope, opts)
	if err == nil {
		j.provider, j.queueID = receipt.Provider, receipt.QueueID
		a.Sent(ctx, receipt.Provider, receipt.QueueID)
		return nil
	}
	return w.unsent(ctx, j, a, err)
}

// unsent decides what a failed send means and ends the attempt accordingly.
func (w *Worker) unsent(ctx context.Context, j *job, a *ledger.Attempt, err error) *failure {
	smtp, isSMTP := errors.AsType[*mailer.Error](err)
	_, isCommit := errors.AsType[*commitError](err)
	if isSMTP {
		j.provider, j.code = smtp.Provider, smtp.Code
	}
	switch {
	case isSMTP && smtp.Unknown():
		if !j.policy.ResendInDoubt {
			a.Park(ctx)
			return fail(OutcomeUnknown, string(smtp.Reason), err)
		}
		a.Doubt(ctx)
		f := fail(OutcomeDeferred, string(smtp.Reason), err)
		f.after = w.cfg.DoubtWait
		return f

	case errors.Is(err, ledger.ErrSuperseded):
		a.Release(ctx) // says nothing to the attempt that has the job now: the token is another
		f := fail(OutcomeDeferred, reasonTakenOver, ledger.ErrSuperseded)
		f.after = w.cfg.DoubtWait
		return f
	}

	a.Release(ctx)
	switch {
	case errors.Is(err, errExpired):
		return w.expire(ctx, j)
	case ctx.Err() != nil:
		return ended(ctx)
	case isCommit:
		return fail(OutcomeDeferred, reasonLedger, errors.New("Redis did not take the record of the send, so nothing was sent"))
	case !isSMTP:
		return fail(OutcomeDeferred, reasonInternal, err)
	case smtp.Permanent():
		return fail(OutcomeRejected, string(smtp.Reason), err)
	case smtp.ProviderFault():
		f := fail(OutcomeDeferred, string(smtp.Reason), err)
		f.after = smtp.RetryAfter()
		return f
	default:
		f := fail(OutcomeRetry, string(smtp.Reason), err)
		f.after = smtp.RetryAfter()
		return f
	}
}

// compose turns the payload into the bytes that go over the wire. All of it
// happens before a connection is taken: nothing can fail half-way.
func (w *Worker) compose(j *job) (mailer.Envelope, *failure) {
	email, err := tasks.DecodeEmail(j.payload)
	if err != nil {
		return mailer.Envelope{}, fail(OutcomeRejected, reasonUndecodable, err)
	}
	msg := mailer.Message{
		ID:              j.id,
		Date:            j.enqueued,
		From:            email.From,
		To:              email.To,
		ReplyTo:         email.ReplyTo,
		Subject:         email.Subject,
		Text:            email.Body,
		HTML:            email.HTML,
		Headers:         email.Headers,
		ListUnsubscribe: email.ListUnsubscribe,
		Bulk:            email.Class == tasks.ClassBulk,
	}
	if msg.From == "" {
		msg.From = w.cfg.From
	}
	if msg.Date.IsZero() {
		msg.Date = time.Now() // a producer that is not ours
	}
	for _, at := range email.Attachments {
		msg.Attachments = append(msg.Attachments, mailer.Attachment(at))
	}
	if email.Template != "" {
		rendered, err := w.templates.Render(email.Template, email.Locale, email.Data)
		if err != nil {
			return mailer.Envelope{}, fail(OutcomeRejected, reasonTemplate, err)
		}
		msg.Text, msg.HTML = rendered.Text, rendered.HTML
		if msg.Subject == "" {
			msg.Subject = rendered.Subject
		}
	}
	envelope, err := w.mail.Build(msg)
	if err != nil {
		return mailer.Envelope{}, fail(OutcomeRejected, reasonInvalid, err)
	}
	return envelope, nil
}
