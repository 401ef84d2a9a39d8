package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// LogLength is about how many records the log of an endpoint has at most.
	LogLength = 10_000
	// LogRetention is about how long a record is kept.
	LogRetention = 30 * 24 * time.Hour

	logPage = 100
)

// An Outcome is how a message ended.
type Outcome string

// The outcomes.
const (
	OutcomeDelivered Outcome = "delivered"
	// OutcomeFailed means that no further try is made.
	OutcomeFailed Outcome = "failed"
)

// A Record is the end of one message.
type Record struct {
	// Time is Redis's time when the record was written. Append sets it.
	Time time.Time
	// Notification is the id of the notification, which is the webhook-id.
	Notification string
	Outcome      Outcome
	// Reason is that of the last error, Code its status. Empty and 0 if there is none.
	Reason string
	Code   int
	// Job is the payload of the delivery's job, to be enqueued again.
	Job json.RawMessage
}

// Log is the record of what was sent to each endpoint, so that a receiver that lost
// messages can have them again. In Redis it is a stream for each endpoint,
// postroom:webhook:{namespace:id}:log, with the messages in it.
type Log struct {
	rdb    redis.UniversalClient
	prefix string
}

// NewLog returns the log of a namespace in rdb.
func NewLog(rdb redis.UniversalClient, namespace string) *Log {
	if namespace != "" {
		namespace += ":"
	}
	return &Log{rdb: rdb, prefix: "postroom:webhook:{" + namespace}
}

func (l *Log) key(id string) string { return l.prefix + id + "}:log" }

// KEYS[1] the stream. ARGV: length, retention ms, fields and values.
var appendScript = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 3))
redis.call('XTRIM', KEYS[1], 'MINID', '~', now - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1`)

// Append adds r to the log of an endpoint. A record whose answer was lost can be there
// twice.
func (l *Log) Append(ctx context.Context, id string, r Record) error {
	args := []any{
		LogLength, LogRetention.Milliseconds(),
		"notification", r.Notification, "outcome", string(r.Outcome), "reason", r.Reason, "code", r.Code, "job", []byte(r.Job),
	}
	if err := appendScript.Run(ctx, l.rdb, []string{l.key(id)}, args...).Err(); err != nil {
		return fmt.Errorf("write the webhook log: %w", err)
	}
	return nil
}

// Range returns the records of an endpoint from one time to another, both included,
// the oldest first; a zero time is no bound. It reads them as they are asked for, and
// ends with the first error.
func (l *Log) Range(ctx context.Context, id string, from, to time.Time) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		start, stop := "-", "+"
		if !from.IsZero() {
			start = strconv.FormatInt(from.UnixMilli(), 10)
		}
		if !to.IsZero() {
			stop = strconv.FormatInt(to.UnixMilli(), 10)
		}
		for {
			page, err := l.rdb.XRangeN(ctx, l.key(id), start, stop, logPage).Result()
			if err != nil {
				yield(Record{}, fmt.Errorf("read the webhook log: %w", err))
				return
			}
			for _, m := range page {
				if !yield(record(m), nil) {
					return
				}
			}
			if len(page) < logPage {
				return
			}
			start = "(" + page[len(page)-1].ID
		}
	}
}

func record(m redis.XMessage) Record {
	text := func(field string) string { s, _ := m.Values[field].(string); return s }
	ms, _, _ := strings.Cut(m.ID, "-")
	at, _ := strconv.ParseInt(ms, 10, 64)
	code, _ := strconv.Atoi(text("code"))
	return Record{
		Time: time.UnixMilli(at).UTC(), Notification: text("notification"), Outcome: Outcome(text("outcome")),
		Reason: text("reason"), Code: code, Job: json.RawMessage(text("job")),
	}
}

// Delete removes the log of an endpoint.
func (l *Log) Delete(ctx context.Context, id string) error {
	if err := l.rdb.Del(ctx, l.key(id)).Err(); err != nil {
		return fmt.Errorf("delete the webhook log: %w", err)
	}
	return nil
}
