package tasks

import (
	"maps"
	"net/textproto"
	"regexp"
	"slices"
	"strings"
)

// Keys of the asynq headers of a job.
const (
	// HeaderService is the name of the service that enqueued the job.
	HeaderService = "service"
	// HeaderEnqueuedAt is the time of the enqueue (RFC 3339 with nanoseconds,
	// UTC). Workers use it as the message's Date, so that every try has the
	// same.
	HeaderEnqueuedAt = "enqueued-at"
	// HeaderProcessAt is the time before which the job must not run, in the
	// same form. It is present only on delayed jobs; the ages in a Policy count
	// from it, and from HeaderEnqueuedAt without it.
	HeaderProcessAt = "process-at"
	// HeaderExpiresAt is the time from which the job is dropped unsent, in the
	// same form. It is present only when a deadline applies.
	HeaderExpiresAt = "expires-at"
	// HeaderTraceParent and HeaderTraceState carry the W3C trace context.
	HeaderTraceParent = "traceparent"
	HeaderTraceState  = "tracestate"
	// HeaderIdempotencyKey is the SHA-256 of the idempotency key in hex.
	HeaderIdempotencyKey = "idempotency-key"
	// HeaderClass is the class of the message, never empty.
	HeaderClass = "class"
	// HeaderTemplate is the name of the template, if the message has one.
	HeaderTemplate = "template"
	// HeaderKind is the kind of a notification, also on its deliveries.
	HeaderKind = "kind"
	// HeaderChannel is the channel of a delivery.
	HeaderChannel = "channel"
)

// Bounds of the additional header fields: their number, and their size together.
const (
	maxHeaders    = 32
	maxHeaderText = 16 << 10
)

// headerName is narrower than RFC 5322: a name outside it is not repeated in
// an error, because it may be a value that lost its way.
var headerName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{0,63}$`)

func (p *problems) headers(headers map[string]string) {
	if len(headers) == 0 {
		return
	}
	if len(headers) > maxHeaders {
		p.add("headers", "has %d fields, the limit is %d", len(headers), maxHeaders)
	}
	seen := map[string]bool{}
	total := 0
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		if !headerName.MatchString(name) {
			p.add("headers", "has a name that is not made of letters, digits and -")
			continue
		}
		field := "headers." + name
		canonical := textproto.CanonicalMIMEHeaderKey(name)
		if !headerAllowed(canonical) {
			p.add(field, "is not allowed; allowed are most X- fields, Comments, Feedback-ID, Importance, In-Reply-To, Keywords, List-Id, Organization, Priority and References")
		}
		if seen[canonical] {
			p.add(field, "is given twice, with different capitals")
		}
		seen[canonical] = true
		p.headerText(field, headers[name], 998)
		total += len(name) + len(headers[name])
	}
	if total > maxHeaderText {
		p.add("headers", "have %d bytes together, the limit is %d", total, maxHeaderText)
	}
}

// headerAllowed reports whether a producer may set the field. The rest belongs
// to the worker: it decides who sends, who receives, and how the message is
// put together.
func headerAllowed(canonical string) bool {
	switch canonical {
	case "Comments", "Feedback-Id", "Importance", "In-Reply-To", "Keywords", "List-Id", "Organization", "Priority", "References":
		return true
	// By these, SendGrid, Mandrill, SparkPost and Mailgun take instructions that
	// can add recipients, which would undo one recipient per job. The last two
	// are the worker's.
	case "X-Smtpapi", "X-Mc-Bccaddress", "X-Msys-Api", "X-Mailgun-Recipient-Variables", "X-Auto-Response-Suppress", "X-Mailer":
		return false
	}
	return strings.HasPrefix(canonical, "X-") && len(canonical) > len("X-")
}
