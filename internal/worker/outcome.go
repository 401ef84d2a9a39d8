package worker

import (
	"context"
	"errors"
	"math/rand/v2"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hibiken/asynq"

	"github.com/medicalink/postroom/tasks"
)

// Outcome is the class of an attempt's end. Values are bounded: they are also
// the log field and may become a metric label.
type Outcome string

// The outcomes; see the package documentation.
const (
	OutcomeSent     Outcome = "sent"
	OutcomeExpired  Outcome = "expired"
	OutcomeRetry    Outcome = "retry"
	OutcomeDeferred Outcome = "deferred"
	OutcomeRejected Outcome = "rejected"
	OutcomeUnknown  Outcome = "unknown"
	OutcomePoison   Outcome = "poison"
	OutcomeSkipped  Outcome = "skipped"
)

// failure is the only error a handler's shell returns to asynq, which stores
// its text and asks it how to go on.
type failure struct {
	outcome Outcome
	reason  string        // a closed set of words, as a label
	text    string        // for people; clean
	after   time.Duration // pause before the next attempt; 0: by the class's schedule
	until   time.Time     // the very time of the next attempt, in place of after
	err     error         // for errors.Is; never printed
}

func (f *failure) Error() string {
	if f.text == "" {
		return f.reason
	}
	return f.reason + ": " + f.text
}

func (f *failure) Unwrap() error { return f.err }

// Is lets asynq find its own sentinels: SkipRetry archives, RevokeTask drops.
func (f *failure) Is(target error) bool {
	switch target {
	case asynq.SkipRetry:
		return f.outcome == OutcomeRejected || f.outcome == OutcomeUnknown || f.outcome == OutcomePoison
	case asynq.RevokeTask:
		return f.outcome == OutcomeExpired
	}
	return false
}

func fail(o Outcome, reason string, err error) *failure {
	f := &failure{outcome: o, reason: reason, err: err}
	if err != nil {
		f.text = clean(err.Error())
	}
	return f
}

// skip is the end of a job that is not called for any more.
func skip(reason string) *failure { return &failure{outcome: OutcomeSkipped, reason: reason} }

// Reasons that are not those of the mailer or of a channel.
const (
	reasonExpired     = "expired"
	reasonUndecodable = "undecodable"
	reasonInvalid     = "invalid"
	reasonTemplate    = "template"
	reasonUnknownType = "unknown_type"
	reasonPanic       = "panic"
	reasonPoison      = "poison"
	reasonInDoubt     = "in_doubt"
	reasonGaveUp      = "gave_up"
	reasonTakenOver   = "taken_over"
	reasonLedger      = "ledger"
	reasonShutdown    = "shutdown"
	reasonTimeout     = "timeout"
	reasonInternal    = "internal"
	reasonRedis       = "redis"

	reasonDuplicate     = "duplicate"
	reasonSuperseded    = "superseded"
	reasonPreference    = "preference"
	reasonQuietHours    = "quiet_hours"
	reasonRead          = "read"
	reasonSentBefore    = "sent_before"
	reasonNoTarget      = "no_target"
	reasonClosedBefore  = "closed_before"
	reasonNotConfigured = "not_configured"
)

// mailAddress finds what looks like an address, in any script and generously:
// what it hides by mistake is only a piece of an error text.
var mailAddress = regexp.MustCompile(`[^\s<>"',;:()\[\]]+@[^\s<>"',;:()\[\]]+`)

// maxErrorText bounds what asynq stores with the job.
const maxErrorText = 300

// clean makes a text fit to be stored and shown: valid UTF-8 (asynq cannot
// encode anything else, and the job would wait for its lease to run out), one
// line, without addresses, bounded.
func clean(s string) string {
	s = strings.ToValidUTF8(s, "?")
	s = mailAddress.ReplaceAllString(s, "<address>")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) <= maxErrorText {
		return s
	}
	s = s[:maxErrorText]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "…"
}

// isFailure says whether an error costs the job an attempt. What the recoverer
// or a shutdown reports is not the job's doing.
func isFailure(err error) bool {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.outcome != OutcomeDeferred
	}
	return !errors.Is(err, asynq.ErrLeaseExpired) && !errors.Is(err, context.Canceled)
}

// jitter is the share by which a delay varies either way, so that jobs which
// failed together do not come back together.
const jitter = 0.2

// leaseDelay is the pause before a job runs again whose worker vanished.
const leaseDelay = time.Second

// retryDelay says when a failed job is tried again.
func retryDelay(retried int, err error, t *asynq.Task) time.Duration {
	if f, ok := errors.AsType[*failure](err); ok {
		switch {
		case !f.until.IsZero():
			return max(time.Until(f.until), 0)
		case f.after > 0:
			return later(f.after)
		}
	}
	if errors.Is(err, asynq.ErrLeaseExpired) || errors.Is(err, context.Canceled) {
		return leaseDelay
	}
	return spread(tasks.Class(t.Headers()[tasks.HeaderClass]).Policy().Backoff(retried))
}

// spread varies a delay of ours either way.
func spread(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 - jitter + 2*jitter*rand.Float64()))
}

// later varies a delay that somebody asked for: nobody comes before that time.
func later(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 + jitter*rand.Float64()))
}
