package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hibiken/asynq"

	"github.com/medicalink/postroom/tasks"
)

func TestFailure_Is(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		outcome      Outcome
		skip, revoke bool
		costs        bool
	}{
		{OutcomeRetry, false, false, true},
		{OutcomeDeferred, false, false, false},
		{OutcomeRejected, true, false, true},
		{OutcomeUnknown, true, false, true},
		{OutcomePoison, true, false, true},
		{OutcomeExpired, false, true, true},
	} {
		var err error = fail(tt.outcome, reasonInternal, errors.New("x"))
		if got := errors.Is(err, asynq.SkipRetry); got != tt.skip {
			t.Errorf("%s: is SkipRetry = %v, want %v", tt.outcome, got, tt.skip)
		}
		if got := errors.Is(err, asynq.RevokeTask); got != tt.revoke {
			t.Errorf("%s: is RevokeTask = %v, want %v", tt.outcome, got, tt.revoke)
		}
		if got := isFailure(err); got != tt.costs {
			t.Errorf("%s: costs an attempt = %v, want %v", tt.outcome, got, tt.costs)
		}
	}
}

func TestIsFailure_NotTheJobsDoing(t *testing.T) {
	t.Parallel()
	for _, err := range []error{asynq.ErrLeaseExpired, fmt.Errorf("wrapped: %w", asynq.ErrLeaseExpired), context.Canceled} {
		if isFailure(err) {
			t.Errorf("%v costs an attempt", err)
		}
		if d := retryDelay(3, err, asynq.NewTask("t", nil)); d != leaseDelay {
			t.Errorf("%v: delay %v, want %v", err, d, leaseDelay)
		}
	}
	if !isFailure(context.DeadlineExceeded) {
		t.Error("a timeout costs no attempt: the job would be tried for ever")
	}
}

func TestRetryDelay_FollowsTheClass(t *testing.T) {
	t.Parallel()
	for _, class := range []tasks.Class{tasks.ClassOTP, tasks.ClassClinical, tasks.ClassTransactional, tasks.ClassBulk} {
		task := asynq.NewTaskWithHeaders(tasks.TypeEmail, nil, map[string]string{tasks.HeaderClass: string(class)})
		for n, want := range class.Policy().Schedule {
			got := retryDelay(n, errors.New("x"), task)
			if low, high := want*8/10, want*12/10; got < low || got > high {
				t.Errorf("%s, attempt %d: delay %v, want %v ±20 %%", class, n, got, want)
			}
		}
		last := class.Policy().Schedule[len(class.Policy().Schedule)-1]
		if got := retryDelay(1000, errors.New("x"), task); got > last*12/10 {
			t.Errorf("%s, attempt 1000: delay %v beyond the schedule's end %v", class, got, last)
		}
	}
}

func TestRetryDelay_TakesTheReplysHint(t *testing.T) {
	t.Parallel()
	f := fail(OutcomeRetry, "greylisted", nil)
	f.after = 10 * time.Minute
	if got := retryDelay(0, f, asynq.NewTask("t", nil)); got < 10*time.Minute || got > 12*time.Minute {
		t.Errorf("delay %v, want ten minutes or up to a fifth more", got)
	}
}

func TestClean(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, in, want string }{
		{"address", "550 <jane.doe@example.org> no such user", "550 <<address>> no such user"},
		{"bare address", "rejected: jane@example.org.", "rejected: <address>"},
		{"latin-1", "bo\xeete pleine", "bo?te pleine"},
		{"lines", "one\r\ntwo", "one  two"},
		{"plain", "421 try later", "421 try later"},
	} {
		if got := clean(tt.in); got != tt.want {
			t.Errorf("%s: clean(%q) = %q, want %q", tt.name, tt.in, got, tt.want)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("550 <jane@example.org> é\xff")
	f.Add(strings.Repeat("日本", 400))
	f.Fuzz(func(t *testing.T, s string) {
		got := clean(s)
		if !utf8.ValidString(got) {
			t.Fatalf("clean(%q) is not valid UTF-8", s)
		}
		if len(got) > maxErrorText+len("…") {
			t.Fatalf("clean(%q) has %d bytes", s, len(got))
		}
		if strings.ContainsAny(got, "\r\n\x00") {
			t.Fatalf("clean(%q) has a control character", s)
		}
		if mailAddress.MatchString(got) {
			t.Fatalf("clean(%q) = %q still has an address", s, got)
		}
	})
}
