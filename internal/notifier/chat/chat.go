package chat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/egress"
	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/endpoint"
	"github.com/medicalink/postroom/internal/notifier/exchange"
)

// The reasons of the errors of this package, besides those of package exchange.
const (
	ReasonUnregistered = "unregistered" // no endpoint has the id, or it is no chat's
	ReasonDisabled     = "disabled"     // the endpoint is disabled
	ReasonGone         = "gone"         // the chat does not exist any more; disabled now
	ReasonRegistry     = "registry"     // held: Redis did not answer
)

// Reasons returns all reasons, for the labels of metrics.
func Reasons() []string {
	return append(exchange.Reasons(), ReasonUnregistered, ReasonDisabled, ReasonGone, ReasonRegistry)
}

const (
	// disabledGone is what the registry shows.
	disabledGone = "the chat says that it does not exist any more"
	// recordTimeout bounds a write to the registry after the try.
	recordTimeout = 2 * time.Second
	// maxRetryAfter bounds what a chat can ask us to wait.
	maxRetryAfter = 24 * time.Hour
)

// Channel delivers to the chats of a registry. Safe for concurrent use.
type Channel struct {
	client   *egress.Client
	registry *endpoint.Registry
}

var _ notifier.Channel = (*Channel)(nil)

// New returns the channel. It starts nothing.
func New(client *egress.Client, registry *endpoint.Registry) (*Channel, error) {
	if client == nil || registry == nil {
		return nil, errors.New("make chat channel: it needs a client and a registry")
	}
	return &Channel{client: client, registry: registry}, nil
}

// Deliver posts title, body and link of m to the endpoint m.Target, once. An endpoint
// that does not exist any more, by its own answer, is disabled, and so is one that took
// nothing for [endpoint.FailingLimit]. Warnings go to the logger of ctx.
func (c *Channel) Deliver(ctx context.Context, m *notifier.Message) error {
	e, err := c.registry.Get(ctx, m.Target)
	switch {
	case err == nil && slices.Contains(endpoint.ChatKinds(), e.Kind):
	case err == nil, errors.Is(err, endpoint.ErrNotFound):
		return &notifier.Error{Fault: notifier.Gone, Reason: ReasonUnregistered}
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		zerolog.Ctx(ctx).Warn().Err(err).Str("endpoint", m.Target).Msg("chat endpoint not read")
		return &notifier.Error{Fault: notifier.Held, Reason: ReasonRegistry}
	}
	if e.Disabled != nil {
		return &notifier.Error{Fault: notifier.Gone, Reason: ReasonDisabled}
	}
	return c.record(ctx, e, c.try(ctx, e, m))
}

func (c *Channel) try(ctx context.Context, e endpoint.Endpoint, m *notifier.Message) error {
	text, err := format(e.Kind, m)
	if err != nil {
		return &notifier.Error{Fault: notifier.Permanent, Reason: exchange.ReasonRejected, Err: err}
	}
	address, err := target(e)
	if err != nil {
		return &notifier.Error{Fault: notifier.Permanent, Reason: exchange.ReasonForbidden}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(text))
	if err != nil {
		return &notifier.Error{Fault: notifier.Permanent, Reason: exchange.ReasonForbidden} // its text shows the URL
	}
	req.Header.Set("Content-Type", "application/json")
	answer, err := exchange.Do(c.client.HTTP(e.Allow), req)
	if err != nil {
		return err
	}
	return judge(e.Kind, answer)
}

// target returns the URL to post to. Discord says whether a message is there only if it
// is asked to wait for that.
func target(e endpoint.Endpoint) (string, error) {
	if e.Kind != endpoint.Discord {
		return string(e.URL), nil
	}
	u, err := url.Parse(string(e.URL))
	if err != nil {
		return "", err
	}
	query := u.Query()
	query.Set("wait", "true")
	u.RawQuery = query.Encode()
	return u.String(), nil
}

// judge says what an answer means.
func judge(kind endpoint.Kind, answer *exchange.Answer) error {
	err := answer.Err()
	e, failed := errors.AsType[*notifier.Error](err)
	if !failed {
		return nil
	}
	if gone(kind, answer) {
		e.Fault, e.Reason = notifier.Gone, ReasonGone
	}
	if kind == endpoint.Discord && answer.Code == http.StatusTooManyRequests {
		e.After = max(e.After, discordAfter(answer.Body))
	}
	return err
}

// gone reports whether an answer says that there is no such chat any more.
func gone(kind endpoint.Kind, answer *exchange.Answer) bool {
	if answer.Code == http.StatusGone {
		return true
	}
	switch kind {
	case endpoint.Slack:
		// https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks#errors
		switch strings.TrimSpace(string(answer.Body)) {
		case "no_service", "no_service_id", "no_active_hooks", "no_team", "team_disabled", "invalid_token",
			"channel_not_found", "channel_is_archived":
			return answer.Code < 500
		}
		return answer.Code == http.StatusNotFound
	case endpoint.Teams:
		return answer.Code == http.StatusNotFound // the workflow was deleted
	case endpoint.Discord:
		// Unknown webhook (10015), or its token is not that any more (50027).
		return answer.Code == http.StatusNotFound || answer.Code == http.StatusUnauthorized
	case endpoint.Standard, endpoint.JSON: // a path that is missing may be so for a moment
	}
	return false
}

// discordAfter reads how many seconds Discord asks to wait; its header is rounded.
func discordAfter(body []byte) time.Duration {
	var said struct {
		RetryAfter float64 `json:"retry_after"`
	}
	if err := json.Unmarshal(body, &said); err != nil || !(said.RetryAfter > 0) {
		return 0
	}
	ms := math.Ceil(1000 * math.Min(said.RetryAfter, maxRetryAfter.Seconds()))
	return time.Duration(ms) * time.Millisecond
}

// record tells the registry how the endpoint is doing. That Redis does not take it
// changes nothing about the message.
func (c *Channel) record(ctx context.Context, e endpoint.Endpoint, tried error) error {
	fail, failed := errors.AsType[*notifier.Error](tried)
	if failed && fail.Fault == notifier.Held {
		return tried // by a limit or by us: it says nothing of the endpoint
	}
	log := zerolog.Ctx(ctx)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	var err error
	switch {
	case !failed:
		err = c.registry.Delivered(ctx, e)
	case fail.Fault == notifier.Gone:
		if err = c.registry.Disable(ctx, e.ID, disabledGone); err == nil {
			log.Warn().Str("endpoint", e.ID).Str("reason", disabledGone).Msg("chat endpoint disabled")
		}
	default:
		var disabled bool
		if disabled, err = c.registry.Failed(ctx, e); disabled {
			log.Warn().Str("endpoint", e.ID).Str("reason", endpoint.DisabledFailing).Msg("chat endpoint disabled")
			if fail.Fault == notifier.Temporary {
				return &notifier.Error{Fault: notifier.Gone, Reason: ReasonDisabled, Code: fail.Code, Err: errors.New(endpoint.DisabledFailing)}
			}
		}
	}
	if err != nil {
		log.Warn().Err(err).Str("endpoint", e.ID).Msg("health of chat endpoint not recorded")
	}
	return tried
}
