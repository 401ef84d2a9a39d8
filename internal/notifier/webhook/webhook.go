package webhook

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/egress"
	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/endpoint"
	"github.com/medicalink/postroom/rediskit"
)

const (
	// Timeout is how long a receiver has to answer; the specification says 15 to 30 s.
	Timeout = 20 * time.Second
	// MaxRetryAfter is the longest wait that a receiver's Retry-After can ask for.
	MaxRetryAfter = 24 * time.Hour

	// maxAnswer is how much of an answer is read, so that its connection can be used
	// again.
	maxAnswer = 1 << 10
	// recordTimeout bounds a write to the registry after the attempt.
	recordTimeout = 2 * time.Second
)

// Schedule is how long after one try the next one follows, as the specification
// suggests; the first is made at once. The last is 75 hours after the first.
func Schedule() []time.Duration {
	return []time.Duration{
		5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
		10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
	}
}

// The reasons of this channel's errors.
const (
	ReasonUnregistered = "unregistered"      // no endpoint has the id, or it is a chat's
	ReasonDisabled     = "disabled"          // the endpoint is disabled
	ReasonGone         = "gone"              // 410; the endpoint is disabled now
	ReasonRateLimited  = "rate_limited"      // 429
	ReasonUnavailable  = "unavailable"       // 502, 503, 504
	ReasonServerError  = "server_error"      // another 5xx
	ReasonRejected     = "rejected"          // another 4xx, or a status that there is not
	ReasonRedirected   = "redirected"        // 3xx
	ReasonForbidden    = "forbidden_address" // the URL or the address of its host
	ReasonDNS          = "dns"               // the host's name does not resolve
	ReasonConnect      = "connect"           // nobody listens there
	ReasonTLS          = "tls"               // such as a certificate that has expired
	ReasonTimeout      = "timeout"           // no answer in time
	ReasonProtocol     = "protocol"          // the connection broke
	ReasonBreakerOpen  = "breaker_open"      // held: it was overloaded or away
	ReasonBusy         = "busy"              // held: enough messages are under way
	ReasonRegistry     = "registry"          // held: Redis did not answer
	ReasonKey          = "bad_key"           // held: the endpoint's key is none; rotate it
	ReasonInvalid      = "invalid"           // a message that cannot be sent
)

// Reasons returns all reasons, for the labels of metrics.
func Reasons() []string {
	return []string{
		ReasonUnregistered, ReasonDisabled, ReasonGone, ReasonRateLimited, ReasonUnavailable, ReasonServerError,
		ReasonRejected, ReasonRedirected, ReasonForbidden, ReasonDNS, ReasonConnect, ReasonTLS, ReasonTimeout,
		ReasonProtocol, ReasonBreakerOpen, ReasonBusy, ReasonRegistry, ReasonKey, ReasonInvalid,
	}
}

// A Channel delivers to the endpoints of a registry. It is safe for concurrent use.
type Channel struct {
	client   *egress.Client
	registry *endpoint.Registry
	targets  targets
	timeout  time.Duration
	now      func() time.Time
}

var _ notifier.Channel = (*Channel)(nil)

// New returns the channel. It starts nothing.
func New(client *egress.Client, registry *endpoint.Registry) (*Channel, error) {
	if client == nil || registry == nil {
		return nil, errors.New("make webhook channel: it needs a client and a registry")
	}
	c := &Channel{client: client, registry: registry, timeout: Timeout, now: time.Now}
	c.targets = targets{now: func() time.Time { return c.now() }, byID: make(map[string]*target)}
	return c, nil
}

// Deliver sends m.Payload to the endpoint m.Target, once. Its faults: Temporary for
// whatever the receiver or the way to it can mend; Held while the endpoint is left alone
// or its limit is reached, or we are at fault; Gone if it is not registered or is disabled, by its own
// 410 too; Permanent if message or URL can never be sent. There is no Unknown:
// receivers know a second copy by its id. Warnings go to the logger of ctx.
func (c *Channel) Deliver(ctx context.Context, m *notifier.Message) error {
	e, err := c.registry.Get(ctx, m.Target)
	switch {
	case err == nil && e.Kind == endpoint.Standard:
	case err == nil, errors.Is(err, endpoint.ErrNotFound):
		c.targets.forget(m.Target)
		return &notifier.Error{Fault: notifier.Gone, Reason: ReasonUnregistered}
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		zerolog.Ctx(ctx).Warn().Err(err).Str("endpoint", m.Target).Msg("webhook endpoint not read")
		return &notifier.Error{Fault: notifier.Held, Reason: ReasonRegistry}
	}
	if e.Disabled != nil {
		c.targets.forget(m.Target)
		return &notifier.Error{Fault: notifier.Gone, Reason: ReasonDisabled}
	}
	req, err := c.request(ctx, e, m)
	if err != nil {
		return err
	}
	p, held := c.targets.begin(e.ID, cmp.Or(e.Concurrency, endpoint.DefaultConcurrency))
	if held != nil {
		return &notifier.Error{Fault: notifier.Held, Reason: held.reason, After: held.after}
	}
	r := c.try(req, e)
	p.end(r.health, r.asked)
	return c.record(ctx, e, r)
}

// request builds what is sent, but for the body's reader nothing of it can fail later.
func (c *Channel) request(ctx context.Context, e endpoint.Endpoint, m *notifier.Message) (*http.Request, error) {
	if len(m.Payload) == 0 {
		return nil, &notifier.Error{Fault: notifier.Permanent, Reason: ReasonInvalid, Err: errors.New("the message has no payload")}
	}
	now := c.now()
	var keys []rediskit.Secret
	for _, k := range e.Live(now) {
		keys = append(keys, k.Secret)
	}
	header, err := Sign(m.Payload, m.ID, now, keys...)
	switch {
	case errors.Is(err, errKey):
		return nil, &notifier.Error{Fault: notifier.Held, Reason: ReasonKey, Err: err}
	case err != nil:
		return nil, &notifier.Error{Fault: notifier.Permanent, Reason: ReasonInvalid, Err: err}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, string(e.URL), bytes.NewReader(m.Payload))
	if err != nil { // which shows the URL
		return nil, &notifier.Error{Fault: notifier.Permanent, Reason: ReasonForbidden}
	}
	header.Set("Content-Type", "application/json")
	req.Header = header
	return req, nil
}

// result is what came of a try.
type result struct {
	err    error // nil, *notifier.Error or that of the context
	health outcome
	asked  time.Duration // how long the endpoint asked to be left alone
}

// try makes the request.
func (c *Channel) try(req *http.Request, e endpoint.Endpoint) result {
	parent := req.Context()
	ctx, cancel := context.WithTimeout(parent, c.timeout)
	defer cancel()
	resp, err := c.client.Do(req.WithContext(ctx), e.Allow)
	if err != nil {
		return failed(parent, err)
	}
	defer func() { _ = resp.Body.Close() }()
	drain(resp.Body)
	return c.classify(resp)
}

// drain reads the rest of an answer if it is short. The status decides: if the rest
// does not come, the connection is not used again.
func drain(body io.Reader) { _, _ = io.CopyN(io.Discard, body, maxAnswer) }

// failed is a try that has no answer.
func failed(ctx context.Context, err error) result {
	if ctx.Err() != nil {
		return result{err: ctx.Err(), health: outcomeNone}
	}
	if forbidden, ok := errors.AsType[*egress.ForbiddenError](err); ok {
		fault := notifier.Permanent
		if forbidden.Resolved {
			fault = notifier.Temporary // whoever owns the name can mend it
		}
		return result{
			err:    &notifier.Error{Fault: fault, Reason: ReasonForbidden, Err: forbidden},
			health: outcomeFault,
		}
	}
	reason := ReasonProtocol
	if e, ok := errors.AsType[*egress.Error](err); ok {
		switch e.Reason {
		case egress.ReasonDNS:
			reason = ReasonDNS
		case egress.ReasonConnect:
			reason = ReasonConnect
		case egress.ReasonTLS:
			reason = ReasonTLS
		case egress.ReasonTimeout:
			reason = ReasonTimeout
		case egress.ReasonProtocol, egress.ReasonCanceled:
		}
	}
	return result{err: &notifier.Error{Fault: notifier.Temporary, Reason: reason}, health: outcomeFault}
}

// classify reads the status.
func (c *Channel) classify(resp *http.Response) result {
	code := resp.StatusCode
	if code >= 200 && code <= 299 {
		return result{health: outcomeAlive}
	}
	e := &notifier.Error{Fault: notifier.Temporary, Reason: ReasonRejected, Code: code}
	r := result{err: e, health: outcomeAlive}
	switch {
	case code == http.StatusGone:
		e.Fault, e.Reason = notifier.Gone, ReasonGone
	case code == http.StatusTooManyRequests:
		e.Reason, r.health = ReasonRateLimited, outcomeTrip
	case code == http.StatusBadGateway, code == http.StatusServiceUnavailable, code == http.StatusGatewayTimeout:
		e.Reason, r.health = ReasonUnavailable, outcomeFault
	case code >= 500:
		e.Reason, r.health = ReasonServerError, outcomeFault
	case code >= 300 && code <= 399:
		e.Reason = ReasonRedirected
	}
	if e.Reason == ReasonRateLimited || e.Reason == ReasonUnavailable {
		if wait, ok := egress.ParseRetryAfter(resp.Header.Get("Retry-After"), c.now()); ok {
			e.After = min(wait, MaxRetryAfter)
			r.asked, r.health = e.After, outcomeTrip
		}
	}
	return r
}

// record tells the registry how the endpoint is doing. That Redis does not take it
// changes nothing about the message.
func (c *Channel) record(ctx context.Context, e endpoint.Endpoint, r result) error {
	if r.health == outcomeNone {
		return r.err
	}
	log := zerolog.Ctx(ctx)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	fail, _ := errors.AsType[*notifier.Error](r.err)
	var err error
	switch {
	case fail == nil:
		err = c.registry.Delivered(ctx, e)
	case fail.Fault == notifier.Gone:
		if err = c.registry.Disable(ctx, e.ID, endpoint.DisabledGone); err == nil {
			log.Warn().Str("endpoint", e.ID).Str("reason", endpoint.DisabledGone).Msg("webhook endpoint disabled")
		}
	default:
		var disabled bool
		if disabled, err = c.registry.Failed(ctx, e); disabled {
			log.Warn().Str("endpoint", e.ID).Str("reason", endpoint.DisabledFailing).Msg("webhook endpoint disabled")
			return &notifier.Error{
				Fault: notifier.Gone, Reason: ReasonDisabled, Code: fail.Code,
				Err: errors.New(endpoint.DisabledFailing),
			}
		}
	}
	if err != nil {
		log.Warn().Err(err).Str("endpoint", e.ID).Msg("health of webhook endpoint not recorded")
	}
	return r.err
}
