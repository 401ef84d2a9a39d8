package notifier

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// A Message is one notification for one target of one channel, as it goes out: rendered,
// and without what the channel may not show.
type Message struct {
	// ID is the id of the notification, a UUID. It is the same at every try, on every
	// channel, and for every target: receivers tell a second copy by it.
	ID string
	// Target is whom the channel delivers to: the id of a webhook endpoint, a chat or a
	// push subscription, or a phone number.
	Target string
	// User is the id of the user whom the notification is for.
	User string
	// Kind is what happened, such as lab.result.ready.
	Kind string
	// Title and Body are the text. Body may be empty.
	Title, Body string
	// Action is the link to follow, an absolute URL; empty if there is none.
	Action string
	// Payload is the body of a webhook, fixed when the notification was planned.
	Payload json.RawMessage
	// Collapse names the messages of which the newest replaces the others; empty if it
	// stands for itself.
	Collapse string
	// Urgent asks a push service to wake a sleeping device.
	Urgent bool
	// Created is when the notification was enqueued, Expires when it becomes worthless;
	// the zero time is never.
	Created, Expires time.Time
}

// A Channel makes one try to deliver m. It returns nil once the receiving side has
// taken it, an *[Error] that says how to go on, or the error of ctx. It is safe for
// concurrent use, and reads m only.
type Channel interface {
	Deliver(ctx context.Context, m *Message) error
}

// A Fault says how to go on after a try that failed.
type Fault int

// The faults.
const (
	// Temporary: try again. Costs the job an attempt.
	Temporary Fault = iota
	// Held: the target is not to be asked now, or our own side is at fault. Try again
	// at no cost.
	Held
	// Permanent: the message was refused for good, and would be again.
	Permanent
	// Gone: there is no such target any more. It has been taken out of its registry.
	Gone
	// Unknown: the message went out and no answer came. Nobody can say whether it was
	// taken.
	Unknown
)

// String returns the fault in lower case.
func (f Fault) String() string {
	switch f {
	case Temporary:
		return "temporary"
	case Held:
		return "held"
	case Permanent:
		return "permanent"
	case Gone:
		return "gone"
	case Unknown:
		return "unknown"
	}
	return fmt.Sprintf("Fault(%d)", int(f))
}

// An Error is a try that failed. Its text names no address, no URL, no token and
// nothing of the message: it is stored with the job and shown.
type Error struct {
	// Fault says how to go on.
	Fault Fault
	// Reason is one word of a closed set, in snake_case, such as rate_limited: the
	// label of metrics and logs.
	Reason string
	// After is how long to wait before the next try, as the receiving side asked for
	// it; zero leaves it to the schedule.
	After time.Duration
	// Code is the status of HTTP, or 0 if there was no answer.
	Code int
	// Err is the cause; may be nil. Whoever sets it answers for its text.
	Err error
}

// Error returns what happened, for people.
func (e *Error) Error() string {
	text := e.Reason
	if e.Code != 0 {
		text = fmt.Sprintf("%s (status %d)", text, e.Code)
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
