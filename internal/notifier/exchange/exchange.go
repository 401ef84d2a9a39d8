package exchange

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/medicalink/postroom/internal/egress"
	"github.com/medicalink/postroom/internal/notifier"
)

// The reasons of the errors of this package, besides those of package egress for what
// has not gone out.
const (
	ReasonForbidden   = "forbidden_address" // a rule of package egress is against it
	ReasonNoAnswer    = "no_answer"         // it has gone out, and no status came
	ReasonRateLimited = "rate_limited"      // 429
	ReasonServerError = "server_error"      // 5xx, and 408 and 425, which ask to come again
	ReasonTooLarge    = "too_large"         // 413
	ReasonRedirected  = "redirected"        // 3xx: what is said is for the host that was named
	ReasonRejected    = "rejected"          // any other status but 2xx
)

// Reasons returns all reasons, for the labels of metrics.
func Reasons() []string {
	return []string{
		ReasonForbidden, ReasonNoAnswer, ReasonRateLimited, ReasonServerError, ReasonTooLarge, ReasonRedirected, ReasonRejected,
		string(egress.ReasonDNS), string(egress.ReasonConnect), string(egress.ReasonTLS), string(egress.ReasonTimeout),
		string(egress.ReasonProtocol), string(egress.ReasonCanceled),
	}
}

const (
	// maxBody is what is read of a body, in bytes: the services of the channels answer
	// with a word or a small object.
	maxBody = 8 << 10
	// maxAfter bounds what a service can ask us to wait.
	maxAfter = 24 * time.Hour
)

// An Answer is what came back.
type Answer struct {
	// Code is the status.
	Code   int
	Header http.Header
	// Body is at most its first 8 KiB, less if the connection broke.
	Body []byte
}

// Do makes the request with a client of [egress.Client.HTTP]. It fails with an
// *[notifier.Error].
func Do(client *http.Client, req *http.Request) (*Answer, error) {
	resp, err := client.Do(req) //nolint:gosec // package egress judges every address
	if err != nil {
		return nil, explain(req.Context(), err)
	}
	defer func() { _ = resp.Body.Close() }()
	// The status decides. A body that breaks off only tells less.
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	return &Answer{Code: resp.StatusCode, Header: resp.Header, Body: body}, nil
}

// explain says how to go on without an answer. Of the errors of package egress it shows
// the text; others, such as the *url.Error around them, may name the URL.
func explain(ctx context.Context, err error) error {
	if forbidden, ok := errors.AsType[*egress.ForbiddenError](err); ok {
		fault := notifier.Permanent
		if forbidden.Resolved {
			fault = notifier.Temporary // names get other addresses
		}
		return &notifier.Error{Fault: fault, Reason: ReasonForbidden, Err: forbidden}
	}
	e, ok := errors.AsType[*egress.Error](err)
	switch {
	case !ok:
		// Not from package egress: it cannot be told what went out.
		return &notifier.Error{Fault: notifier.Unknown, Reason: ReasonNoAnswer}
	case e.Sent:
		return &notifier.Error{Fault: notifier.Unknown, Reason: ReasonNoAnswer, Err: e}
	case ctx.Err() != nil:
		// Our own time is over, and it is certain that nothing was said.
		return &notifier.Error{Fault: notifier.Held, Reason: string(egress.ReasonCanceled), Err: ctx.Err()}
	}
	return &notifier.Error{Fault: notifier.Temporary, Reason: string(e.Reason), Err: e}
}

// Err says how to go on after the status, as HTTP means it (RFC 9110, RFC 6585): for
// what a service gives no meaning of its own. It is nil after 2xx.
func (a *Answer) Err() error {
	e := &notifier.Error{Fault: notifier.Permanent, Reason: ReasonRejected, Code: a.Code}
	switch {
	case a.Code >= 200 && a.Code < 300:
		return nil
	case a.Code == http.StatusTooManyRequests:
		e.Fault, e.Reason, e.After = notifier.Held, ReasonRateLimited, a.RetryAfter()
	case a.Code >= 500, a.Code == http.StatusRequestTimeout, a.Code == http.StatusTooEarly:
		e.Fault, e.Reason, e.After = notifier.Temporary, ReasonServerError, a.RetryAfter()
	case a.Code >= 300 && a.Code < 400:
		e.Reason = ReasonRedirected
	case a.Code == http.StatusRequestEntityTooLarge:
		e.Reason = ReasonTooLarge
	}
	return e
}

// RetryAfter returns how long the service asked to be left alone, at most 24 hours, and
// 0 if it did not say.
func (a *Answer) RetryAfter() time.Duration {
	after, _ := egress.ParseRetryAfter(a.Header.Get("Retry-After"), time.Now())
	return min(after, maxAfter)
}
