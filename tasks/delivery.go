package tasks

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Limits of a delivery job.
const (
	// MaxDeliveryBytes bounds the encoded job.
	MaxDeliveryBytes = 1 << 20
	// MaxWebhookPayload bounds the body of a webhook, as Standard Webhooks advises.
	MaxWebhookPayload = 20 << 10
)

// A Delivery is the job that a worker makes of one step of a notification's plan. It
// holds what the channel shows and nothing else. Services do not enqueue deliveries.
//
// A worker makes the text fit MaxNotificationTitle and MaxNotificationBody.
type Delivery struct {
	// V is the payload's version. A producer leaves it zero.
	V int `json:"v"`
	// Notification is the id of the job that this one comes from, a UUID.
	Notification string `json:"notification"`
	// Step is the step's position in the plan, from 0. With Notification, Target and
	// Replay it makes the id of the job.
	Step int `json:"step"`
	// Channel is the channel of the step.
	Channel Channel `json:"channel"`
	// Target is one of several targets of the channel, such as one push subscription
	// of the user. Empty: all that there are. For sms it is the phone number, for chat
	// and webhook the id in their registry. Printable, at most 128 bytes.
	Target string `json:"target,omitempty"`
	// Replay tells deliveries apart that an operator asked for again. Printable, at
	// most 64 bytes.
	Replay string `json:"replay,omitempty"`

	// What follows is as in Notification, the text as the channel shows it. Action may
	// be any URL of the web, and as long again.

	Kind     string    `json:"kind"`
	User     string    `json:"user"`
	Title    string    `json:"title,omitempty"`
	Body     string    `json:"body,omitempty"`
	Action   string    `json:"action,omitempty"`
	Category string    `json:"category"`
	Critical string    `json:"critical,omitempty"`
	Quiet    QuietRule `json:"quiet,omitempty"`
	Collapse string    `json:"collapse,omitempty"`
	OnlyIf   Condition `json:"only_if,omitempty"`

	// Payload is the body of a webhook, JSON of at most 20 KiB; for that channel only.
	Payload json.RawMessage `json:"payload,omitempty"`
	// Mail is the job to hand to the email queue; for that channel only.
	Mail *Email `json:"mail,omitempty"`
	// Service is the one that enqueued the notification; empty if it has no name.
	Service string `json:"service,omitempty"`
	// Created is when the notification was enqueued.
	Created time.Time `json:"created"`
	Class   Class     `json:"class,omitempty"`
}

// A DigestClose is the job that ends the window of a digest.
type DigestClose struct {
	// V is the payload's version. A producer leaves it zero.
	V int `json:"v"`
	// User and Key name the digest, Generation the window, from 0 on.
	User       string `json:"user"`
	Key        string `json:"key"`
	Generation int64  `json:"generation"`
	// Full marks the job that ends the window because Max was reached.
	Full bool `json:"full,omitempty"`
}

// deliveryIDs is the namespace of the ids of deliveries and ends of digests (RFC 9562
// §5.5). It must never change: jobs would come twice.
var deliveryIDs = uuid.MustParse("6f0cf5ad-5f0b-4f1c-9a53-3b1f0e1a7d2e")

// derivedID returns the UUIDv5 of fields, which are quoted so that no two sets of them
// are one text.
func derivedID(format string, fields ...any) string {
	return uuid.NewSHA1(deliveryIDs, fmt.Appendf(nil, format, fields...)).String()
}

// ID returns the id of the job of d. It is the same whoever makes the job, so that a
// step whose planning is repeated is delivered once.
func (d Delivery) ID() string {
	return derivedID("delivery %q %d %q %q", d.Notification, d.Step, d.Target, d.Replay)
}

// Validate reports everything that is wrong with d, as Email's Validate does.
func (d Delivery) Validate() error {
	if err := d.check(); err != nil {
		return err
	}
	_, err := d.encode()
	return err
}

func (d Delivery) check() error {
	var p problems
	p.uuid("notification", d.Notification)
	if d.Step < 0 || d.Step >= MaxSteps {
		p.add("step", "must be 0 to %d", MaxSteps-1)
	}
	p.channel("channel", d.Channel)
	p.target(d)
	p.printable("replay", d.Replay, 64)
	p.kind(d.Kind)
	p.user(d.User)
	p.text(d.Title, d.Body)
	p.link(d.Action)
	p.category(d.Category)
	p.printable("critical", d.Critical, 200)
	p.quiet(d.Quiet)
	p.printable("collapse", d.Collapse, 64)
	p.condition("only_if", d.OnlyIf)
	p.headerText("service", d.Service, 64)
	switch {
	case (d.Channel == ChannelWebhook) != (len(d.Payload) > 0):
		p.add("payload", "is required for the channel %s, and refused for others", ChannelWebhook)
	case len(d.Payload) > MaxWebhookPayload:
		p.add("payload", "has %d bytes, the limit is %d", len(d.Payload), MaxWebhookPayload)
	case len(d.Payload) > 0 && !json.Valid(d.Payload):
		p.add("payload", "is not valid JSON")
	}
	if (d.Channel == ChannelEmail) != (d.Mail != nil) {
		p.add("mail", "is required for the channel %s, and refused for others", ChannelEmail)
	}
	if d.Mail != nil {
		p.within("mail", d.Mail.check())
	}
	if d.Created.IsZero() {
		p.add("created", "is required")
	}
	p.class(d.Class)
	p.version(d.V)
	return errors.Join(p...)
}

func (p *problems) uuid(field, id string) {
	if parsed, err := uuid.Parse(id); err != nil || parsed.String() != id {
		p.add(field, "must be a UUID of 36 characters in lower case")
	}
}

func (p *problems) target(d Delivery) {
	const field = "target"
	switch d.Channel {
	case ChannelSMS:
		p.phone(field, d.Target)
	case ChannelChat, ChannelWebhook:
		p.id(field, d.Target)
	case ChannelInApp, ChannelPush, ChannelEmail:
		p.printable(field, d.Target, 128)
	default:
		p.printable(field, d.Target, 128)
	}
}

// link checks an action whose place a worker has decided on: with the app's own address
// in front, which may be that of a machine at home.
func (p *problems) link(action string) {
	const limit = 2 * MaxAction
	if len(action) > limit {
		p.add("action", "has %d bytes, the limit is %d", len(action), limit)
	}
	local := strings.HasPrefix(action, "/")
	if action != "" && !local && !strings.HasPrefix(action, "https://") && !strings.HasPrefix(action, "http://") || strings.ContainsFunc(action, isUnescaped) {
		p.add("action", "must be a path or a URL of the web, with special characters percent-escaped")
	}
}

// within adds the problems in err, which are those of a part.
func (p *problems) within(part string, err error) {
	joined, ok := errors.AsType[interface {
		error
		Unwrap() []error
	}](err)
	if !ok {
		return
	}
	for _, err := range joined.Unwrap() {
		if problem, ok := errors.AsType[*ValidationError](err); ok {
			p.add(part+"."+problem.Field, "%s", problem.Problem)
		}
	}
}

// encode returns the payload of d, which must have passed check.
func (d Delivery) encode() ([]byte, error) {
	d.V = Version
	payload, err := appendJSON(make([]byte, 0, 1024), d)
	if err != nil {
		return nil, &ValidationError{Field: "mail.data", Problem: notJSON}
	}
	if len(payload) > MaxDeliveryBytes {
		return nil, &ValidationError{Field: "delivery", Problem: fmt.Sprintf("has %d bytes of JSON, the limit is %d", len(payload), MaxDeliveryBytes)}
	}
	return payload, nil
}

// DecodeDelivery returns the job in a payload, with Class and Quiet filled in. The
// rules are those of DecodeEmail.
func DecodeDelivery(payload []byte) (Delivery, error) {
	var d Delivery
	if err := decode(payload, MaxDeliveryBytes, &d, &d.V); err != nil {
		return Delivery{}, &DecodeError{Job: jobDelivery.noun(), Err: err}
	}
	if d.Mail != nil {
		plainNumbers(d.Mail.Data)
	}
	if err := d.check(); err != nil {
		return Delivery{}, &DecodeError{Job: jobDelivery.noun(), Err: err}
	}
	if d.Class == "" {
		d.Class = ClassTransactional
	}
	if d.Quiet == "" {
		d.Quiet = QuietDefer
	}
	return d, nil
}

// ID returns the id of the job of c, as Delivery's ID does.
func (c DigestClose) ID() string {
	return derivedID("digest %q %q %d %t", c.User, c.Key, c.Generation, c.Full)
}

// Validate reports everything that is wrong with c, as Email's Validate does.
func (c DigestClose) Validate() error {
	var p problems
	p.user(c.User)
	p.required("key", c.Key, 128)
	if c.Generation < 0 {
		p.add("generation", "must not be negative")
	}
	p.version(c.V)
	return errors.Join(p...)
}

// encode returns the payload of c, which must have passed Validate.
func (c DigestClose) encode() ([]byte, error) {
	c.V = Version
	return appendJSON(nil, c)
}

// DecodeDigestClose returns the job in a payload. The rules are those of DecodeEmail.
func DecodeDigestClose(payload []byte) (DigestClose, error) {
	var c DigestClose
	err := decode(payload, MaxNotificationBytes, &c, &c.V)
	if err == nil {
		err = c.Validate()
	}
	if err != nil {
		return DigestClose{}, &DecodeError{Job: jobDigest.noun(), Err: err}
	}
	return c, nil
}
