package tasks

import (
	"encoding/base64"
	"fmt"
)

// TypeEmail is the asynq type of an email job.
const TypeEmail = "email:send"

// Version is the version of the payloads that this package writes, and the
// highest one that it reads.
const Version = 1

// Limits of an email job.
const (
	// MaxAttachmentBytes bounds the attachments of one job together, before
	// encoding: they live in Redis until the job is done.
	MaxAttachmentBytes = 10 << 20
	// MaxPayloadBytes bounds the encoded job without the attachments' content.
	MaxPayloadBytes = 1 << 20
	// MaxAttachments bounds their number.
	MaxAttachments = 10
	// MaxTags bounds the number of tags.
	MaxTags = 8
)

// An Email is one message to one recipient. Its text comes either from Template
// with Data, or from Body and HTML.
type Email struct {
	// V is the payload's version. A producer leaves it zero.
	V int `json:"v"`
	// To is the recipient, as ada@example.com or Ada Lovelace <ada@example.com>
	// (RFC 5322). Exactly one: see the package comment. A name with a comma or
	// another special character needs quotes; the String method of
	// net/mail's Address writes them.
	To string `json:"to"`
	// From overrides the worker's sender. It has the form of To.
	From string `json:"from,omitempty"`
	// ReplyTo has the form of To.
	ReplyTo string `json:"reply_to,omitempty"`
	// Subject is required without a template and overrides the template's with
	// one. At most 998 octets (RFC 5322 §2.1.1).
	Subject string `json:"subject,omitempty"`
	// Body is the plain text.
	Body string `json:"body,omitempty"`
	// HTML is the HTML part.
	HTML string `json:"html,omitempty"`
	// Template is the name of a template that the workers have.
	Template string `json:"template,omitempty"`
	// Locale is a BCP 47 tag which chooses the template's language.
	Locale string `json:"locale,omitempty"`
	// Data fills the template. It must be expressible in JSON. DecodeEmail
	// returns whole numbers as int64, fractions as float64, and what fits
	// neither as json.Number.
	Data map[string]any `json:"data,omitempty"`
	// Attachments travel with the job: at most 10, together 10 MiB.
	Attachments []Attachment `json:"attachments,omitempty"`
	// Headers are further header fields, at most 32 with 16 KiB: any X- field
	// except those by which a provider would add recipients and those which the
	// worker sets, and Comments, Feedback-ID, Importance,
	// In-Reply-To, Keywords, List-Id, Organization, Priority and References.
	Headers map[string]string `json:"headers,omitempty"`
	// ListUnsubscribe is an https URL or a mailto URL, or both as
	// <https://…>, <mailto:…> (RFC 2369). An https URL gives one-click
	// unsubscription (RFC 8058).
	ListUnsubscribe string `json:"list_unsubscribe,omitempty"`
	// Tags group messages in reports: at most 8, each at most 64 octets.
	Tags []string `json:"tags,omitempty"`
	// Class sets the treatment. Empty means ClassTransactional.
	Class Class `json:"class,omitempty"`
}

// An Attachment is a file that travels with a message.
type Attachment struct {
	// Name is the file's name, without a directory.
	Name string `json:"name"`
	// ContentType is its media type. Empty lets the worker choose by name.
	ContentType string `json:"content_type,omitempty"`
	// Content holds its bytes; in JSON they are base64.
	Content []byte `json:"content"`
}

// DecodeEmail returns the job in a payload, with its class filled in, after the
// checks of Validate: not every producer is this package. Unknown fields are
// ignored, a version above Version is refused. Every error is a *DecodeError.
func DecodeEmail(payload []byte) (Email, error) {
	const limit = MaxPayloadBytes + MaxAttachmentBytes/3*4 + 4*MaxAttachments
	var email Email
	if err := decode(payload, limit, &email, &email.V); err != nil {
		return Email{}, &DecodeError{Job: jobEmail.noun(), Err: err}
	}
	plainNumbers(email.Data)
	if err := email.check(); err != nil {
		return Email{}, &DecodeError{Job: jobEmail.noun(), Err: err}
	}
	if email.Class == "" {
		email.Class = ClassTransactional
	}
	return email, nil
}

const notJSON = "holds a value that JSON cannot express, such as a channel, a function or NaN"

// encode returns the payload of e, which must have passed check.
func (e Email) encode() ([]byte, error) {
	e.V = Version
	payload, err := appendEmail(make([]byte, 0, 512), &e)
	if err != nil {
		// The encoder's own text may quote a value.
		return nil, &ValidationError{Field: "data", Problem: notJSON}
	}
	size := len(payload)
	for _, a := range e.Attachments {
		size -= base64.StdEncoding.EncodedLen(len(a.Content))
	}
	if size > MaxPayloadBytes {
		return nil, &ValidationError{Field: "email", Problem: fmt.Sprintf("has %d bytes of JSON without attachments, the limit is %d", size, MaxPayloadBytes)}
	}
	return payload, nil
}
