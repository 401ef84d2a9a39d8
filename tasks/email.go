package tasks

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
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

// A DecodeError says why a payload cannot become a job. Trying again does not
// help.
type DecodeError struct {
	// Err is the cause. Its text holds no value of the payload.
	Err error
}

// Error returns the reason.
func (e *DecodeError) Error() string { return "decode email: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *DecodeError) Unwrap() error { return e.Err }

// Permanent reports true.
func (e *DecodeError) Permanent() bool { return true }

// DecodeEmail returns the job in a payload, with its class filled in, after the
// checks of Validate: not every producer is this package. Unknown fields are
// ignored, a version above Version is refused. Every error is a *DecodeError.
func DecodeEmail(payload []byte) (Email, error) {
	const limit = MaxPayloadBytes + MaxAttachmentBytes/3*4 + 4*MaxAttachments
	if len(payload) > limit {
		return Email{}, &DecodeError{fmt.Errorf("payload has %d bytes, the limit is %d", len(payload), limit)}
	}
	var email Email
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber()
	err := dec.Decode(&email)
	// The version is judged first, also after an error: a newer payload may not
	// fit the type, and the answer is then not "bad JSON".
	if email.V > Version {
		return Email{}, &DecodeError{fmt.Errorf("payload has version %d, this worker reads up to %d: deploy newer workers before newer producers", email.V, Version)}
	}
	if err != nil {
		return Email{}, &DecodeError{safeJSONError(err)}
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Email{}, &DecodeError{errors.New("payload goes on after the JSON object")}
	}
	if email.V < 1 {
		return Email{}, &DecodeError{errors.New("payload has no version: v must be 1 or more")}
	}
	for key, value := range email.Data {
		email.Data[key] = plainNumbers(value)
	}
	if err := email.check(); err != nil {
		return Email{}, &DecodeError{err}
	}
	if email.Class == "" {
		email.Class = ClassTransactional
	}
	return email, nil
}

// safeJSONError rewrites an error of encoding/json so that it names fields and
// offsets but no value.
func safeJSONError(err error) error {
	if typeErr, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		field := typeErr.Field
		if field == "" {
			return errors.New("payload is not a JSON object")
		}
		return fmt.Errorf("field %s has the wrong JSON type, want %s", field, typeErr.Type)
	}
	if syntaxErr, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("payload is not valid JSON at byte %d", syntaxErr.Offset)
	}
	if corrupt, ok := errors.AsType[base64.CorruptInputError](err); ok {
		return fmt.Errorf("an attachment is not valid base64 at byte %d", int64(corrupt))
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return errors.New("payload ends too early")
	}
	return errors.New("payload is not valid JSON")
}

// plainNumbers replaces every json.Number in value. A float64 for everything
// would print 1000000 as 1e+06 in a template and round long identifiers.
func plainNumbers(value any) any {
	switch value := value.(type) {
	case json.Number:
		if n, err := value.Int64(); err == nil {
			return n
		}
		if f, err := value.Float64(); err == nil && strings.ContainsAny(string(value), ".eE") {
			return f
		}
		return value
	case map[string]any:
		for key, inner := range value {
			value[key] = plainNumbers(inner)
		}
	case []any:
		for i, inner := range value {
			value[i] = plainNumbers(inner)
		}
	}
	return value
}

// encode returns the payload of e, which must have passed check.
func (e Email) encode() ([]byte, error) {
	e.V = Version
	payload, err := appendEmail(make([]byte, 0, 512), &e)
	if err != nil {
		// The encoder's own text may quote a value.
		return nil, &ValidationError{Field: "data", Problem: "holds a value that JSON cannot express, such as a channel, a function or NaN"}
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
