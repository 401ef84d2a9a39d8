package webpush

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/medicalink/postroom/internal/egress"
	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/exchange"
)

const (
	// defaultTTL is how long a push service keeps a message for a device that is off, if
	// the message says nothing: after a week the inbox tells it better.
	defaultTTL = 7 * 24 * time.Hour
	// maxTTL is what the push services take.
	maxTTL = 28 * 24 * time.Hour
)

// The reasons of the errors of [Channel.Deliver], besides those of package exchange.
const (
	ReasonNoSubscription = "no_subscription" // the user has no such subscription (any more)
	ReasonUnsubscribed   = "unsubscribed"    // 404, 410: the consent was taken back
	ReasonVAPIDRefused   = "vapid_refused"   // held: 401, 403; somebody has to look at our key
	ReasonRegistry       = "registry"        // held: Redis did not answer
)

// Reasons returns all reasons, for the labels of metrics.
func Reasons() []string {
	return append(exchange.Reasons(), ReasonNoSubscription, ReasonUnsubscribed, ReasonVAPIDRefused, ReasonRegistry)
}

// Config says who we are to the push services.
type Config struct {
	// Key is the key that the subscriptions of the browsers were made for. Required.
	Key *Key
	// Subject is where the push services reach the operator: mailto: or an https URL,
	// see [CheckSubject]. Required.
	Subject string
}

// Channel delivers to one subscription of one user at a time. Safe for concurrent use.
type Channel struct {
	subscriptions *Subscriptions
	client        *http.Client
	signer        *signer
}

var _ notifier.Channel = (*Channel)(nil)

// New returns the channel. client is one of egress.Client.HTTP, since users name
// the endpoints; its timeout bounds a delivery.
func New(cfg Config, subscriptions *Subscriptions, client *http.Client) (*Channel, error) {
	var errs []error
	if cfg.Key == nil {
		errs = append(errs, errors.New("web push config: no Key: set VAPID_PRIVATE_KEY"))
	}
	if err := CheckSubject(cfg.Subject); err != nil {
		errs = append(errs, fmt.Errorf("web push config: %w", err))
	}
	if subscriptions == nil || client == nil {
		errs = append(errs, errors.New("web push config: needs the subscriptions and a client"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &Channel{
		subscriptions: subscriptions,
		client:        client,
		signer:        &signer{key: cfg.Key, subject: cfg.Subject},
	}, nil
}

// Targets returns the ids of the subscriptions of user, for which [Channel.Deliver] is
// called once each.
func (c *Channel) Targets(ctx context.Context, user string) ([]string, error) {
	list, err := c.subscriptions.List(ctx, user)
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(list))
	for i := range list {
		ids[i] = list[i].ID
	}
	return ids, nil
}

// Deliver hands m to the push service of the subscription m.Target of m.User. A
// subscription that the push service does not know any more is removed.
func (c *Channel) Deliver(ctx context.Context, m *notifier.Message) error {
	sub, err := c.subscriptions.Get(ctx, m.User, m.Target)
	if errors.Is(err, ErrNoSubscription) {
		return &notifier.Error{Fault: notifier.Gone, Reason: ReasonNoSubscription}
	}
	if err != nil {
		return unavailable(ctx)
	}
	req, err := c.request(ctx, m, &sub, time.Now())
	if err != nil {
		return &notifier.Error{Fault: notifier.Permanent, Reason: exchange.ReasonRejected, Err: err}
	}
	answer, err := exchange.Do(c.client, req)
	if forbidden, ok := errors.AsType[*egress.ForbiddenError](err); ok && !forbidden.Resolved {
		// Whoever handed that URL in gets nothing by it, not even failed jobs.
		return c.gone(ctx, m, exchange.ReasonForbidden, 0)
	}
	if err != nil {
		return err
	}
	switch answer.Code {
	case http.StatusNotFound, http.StatusGone:
		return c.gone(ctx, m, ReasonUnsubscribed, answer.Code)
	case http.StatusUnauthorized, http.StatusForbidden:
		return &notifier.Error{Fault: notifier.Held, Reason: ReasonVAPIDRefused, Code: answer.Code}
	}
	return answer.Err()
}

// gone removes the subscription. Should Redis be away just now, the next message finds
// the same and removes it then.
func (c *Channel) gone(ctx context.Context, m *notifier.Message, reason string, code int) error {
	_ = c.subscriptions.Remove(ctx, m.User, m.Target)
	return &notifier.Error{Fault: notifier.Gone, Reason: reason, Code: code}
}

func unavailable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return &notifier.Error{Fault: notifier.Held, Reason: ReasonRegistry}
}

func (c *Channel) request(ctx context.Context, m *notifier.Message, sub *Subscription, now time.Time) (*http.Request, error) {
	endpoint, err := url.Parse(sub.Endpoint)
	if err != nil {
		return nil, ErrInvalidSubscription // its own error names the URL
	}
	text, err := encode(m)
	if err != nil {
		return nil, err
	}
	body, err := encrypt(text, sub.P256dh, sub.Auth)
	if err != nil {
		return nil, err
	}
	authorization, err := c.signer.header(origin(endpoint))
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, sub.Endpoint, bytes.NewReader(body))
	if err != nil {
		return nil, ErrInvalidSubscription
	}
	req.Header.Set("Authorization", authorization)
	req.Header.Set("Content-Encoding", "aes128gcm")
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set("TTL", strconv.FormatInt(int64(ttl(m, now)/time.Second), 10))
	req.Header.Set("Urgency", "normal")
	if m.Urgent {
		req.Header.Set("Urgency", "high")
	}
	if m.Collapse != "" {
		req.Header.Set("Topic", topic(sub, m.Collapse))
	}
	return req, nil
}

// ttl returns how long the push service may keep m.
func ttl(m *notifier.Message, now time.Time) time.Duration {
	if m.Expires.IsZero() {
		return defaultTTL
	}
	return min(max(m.Expires.Sub(now), 0), maxTTL)
}

// topic returns a name for the messages that replace each other: 32 characters of
// base64url, the most that there may be (RFC 8030, section 5.4). The key is the secret
// that the push service does not have, so that it cannot try out what the name was.
func topic(sub *Subscription, collapse string) string {
	mac := hmac.New(sha256.New, sub.Auth)
	mac.Write([]byte("postroom topic\x00" + collapse))
	return b64.EncodeToString(mac.Sum(nil)[:24])
}
