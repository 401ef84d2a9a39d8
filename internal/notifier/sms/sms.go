package sms

import (
	"context"
	"errors"

	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/exchange"
)

// The reasons of the errors of this package, besides those of package exchange.
const (
	ReasonNumber       = "invalid_number"  // no number, or one that cannot receive text
	ReasonUnsubscribed = "unsubscribed"    // the person answered STOP
	ReasonBlocked      = "blocked"         // by the region, the carrier or its filter
	ReasonAccount      = "account_refused" // held: credentials or account; somebody has to act
	ReasonSender       = "sender_refused"  // held: the sender is not ours; somebody has to act
)

// Reasons returns all reasons, for the labels of metrics.
func Reasons() []string {
	return append(exchange.Reasons(), ReasonNumber, ReasonUnsubscribed, ReasonBlocked, ReasonAccount, ReasonSender)
}

// A Provider sends text messages. Its errors are those of [notifier.Channel]. It is safe
// for concurrent use.
type Provider interface {
	// Send has text sent to a number in international form, such as +4930123456.
	Send(ctx context.Context, to, text string) error
}

var _ Provider = (*Twilio)(nil)

// Channel delivers through a provider. Safe for concurrent use.
type Channel struct{ provider Provider }

var _ notifier.Channel = (*Channel)(nil)

// New returns the channel.
func New(provider Provider) (*Channel, error) {
	if provider == nil {
		return nil, errors.New("SMS channel: no provider")
	}
	return &Channel{provider: provider}, nil
}

// Deliver sends title, body and link of m to the number m.Target.
func (c *Channel) Deliver(ctx context.Context, m *notifier.Message) error {
	if !phone.MatchString(m.Target) {
		return &notifier.Error{Fault: notifier.Permanent, Reason: ReasonNumber}
	}
	return c.provider.Send(ctx, m.Target, compose(m.Title, m.Body, m.Action))
}
