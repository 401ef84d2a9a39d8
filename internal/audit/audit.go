// Package audit is the append-only record of what people, or rules that people set,
// did against the usual course: who, what, when, why. It holds ids and words of closed
// sets, never an address or anything of a message.
package audit

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// Key is the stream of the entries, oldest first. Nothing of postroom deletes from it.
const Key = "postroom:audit"

// An Action is what was done.
type Action string

// The actions.
const (
	// PreferenceOverridden is a critical notification that went to a channel which its
	// user had switched off.
	PreferenceOverridden Action = "preference_overridden"
	// QuietOverridden is one that went out in the quiet hours of its user.
	QuietOverridden Action = "quiet_hours_overridden"
)

// An Entry says who did what to what, and why. Redis adds the time.
type Entry struct {
	Action Action
	// Actor is who did it: an operator, or the service that enqueued the job.
	Actor string
	// Object is the id of the job, the name of the queue, whatever it was done to.
	Object string
	// Reason is why, in the actor's words.
	Reason string
	// Details are further words, such as channel and category.
	Details map[string]string
}

// Log writes and reads the record. It is safe for concurrent use.
type Log struct{ rdb redis.UniversalClient }

// NewLog returns the record in rdb.
func NewLog(rdb redis.UniversalClient) *Log { return &Log{rdb: rdb} }

// Append adds e. Whoever acts against the rules does so only after the entry has been
// written.
func (l *Log) Append(ctx context.Context, e Entry) error {
	values := []any{"action", string(e.Action), "actor", e.Actor, "object", e.Object, "reason", e.Reason}
	for name, value := range e.Details {
		values = append(values, name, value)
	}
	if err := l.rdb.XAdd(ctx, &redis.XAddArgs{Stream: Key, Values: values}).Err(); err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	return nil
}
