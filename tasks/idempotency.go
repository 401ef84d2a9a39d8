package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// A record is what Redis keeps about an idempotency key.
type record struct {
	ID         string    `json:"id"`
	Queue      string    `json:"queue"`
	EnqueuedAt time.Time `json:"enqueued_at"`
	ProcessAt  time.Time `json:"process_at"`
	State      string    `json:"state"`
	// Confirmed is false until the job is known to be in its queue.
	Confirmed bool `json:"confirmed"`
}

func newRecord(r Receipt, confirmed bool) record {
	return record{ID: r.ID, Queue: r.Queue, EnqueuedAt: r.EnqueuedAt.UTC(), ProcessAt: r.ProcessAt.UTC(), State: r.State, Confirmed: confirmed}
}

// encode returns r as encoding/json writes it.
func (r record) encode() []byte {
	b := appendText(append(make([]byte, 0, 256), `{"id":`...), r.ID)
	b = appendText(append(b, `,"queue":`...), r.Queue)
	b = appendTime(append(b, `,"enqueued_at":`...), r.EnqueuedAt)
	b = appendTime(append(b, `,"process_at":`...), r.ProcessAt)
	b = appendText(append(b, `,"state":`...), r.State)
	b = strconv.AppendBool(append(b, `,"confirmed":`...), r.Confirmed)
	return append(b, '}')
}

// duplicate returns the receipt for a call that came second.
func (r record) duplicate() Receipt {
	return Receipt{ID: r.ID, Queue: r.Queue, State: r.State, EnqueuedAt: r.EnqueuedAt, ProcessAt: r.ProcessAt, Duplicate: true}
}

// recordKey returns the Redis key of an idempotency key. Two scopes never meet: a
// namespace has no colon, and what follows the service has a fixed form.
func (p *Producer) recordKey(typ jobType, key string) string {
	return "postroom:idempotency:{" + p.namespace + ":" + p.service + ":" + typ.task() + ":" + hashKey(key) + "}"
}

// claim writes the record of each job's key, unless there is one. The job of a
// key that is confirmed is settled; one that takes over an unconfirmed key gets
// the id and the queue of its record, in which a job may already be.
func (p *Producer) claim(ctx context.Context, jobs []*job) {
	// A record can expire between the two commands, so the first is tried again.
	for range 3 {
		if len(jobs) == 0 {
			return
		}
		jobs = p.readRecords(ctx, p.writeRecords(ctx, jobs))
	}
	for _, j := range jobs {
		j.refuseClaim(errors.New("the record expires at once: check the clock and the memory policy of Redis"))
	}
}

func (j *job) refuseClaim(err error) { j.refuse(fmt.Errorf("claim idempotency key: %w", err)) }

// writeRecords returns the jobs whose keys have a record already.
func (p *Producer) writeRecords(ctx context.Context, jobs []*job) (found []*job) {
	pipe := p.rdb.Pipeline()
	cmds := make([]*redis.BoolCmd, len(jobs))
	for i, j := range jobs {
		cmds[i] = pipe.SetNX(ctx, j.recordKey, newRecord(j.receipt(), false).encode(), j.window())
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	for i, j := range jobs {
		set, err := cmds[i].Result()
		switch {
		case err != nil:
			j.refuseClaim(err)
		case set:
			j.claimed = true
		default:
			found = append(found, j)
		}
	}
	return found
}

// readRecords reads what writeRecords found, and returns the jobs whose record is
// gone since.
func (p *Producer) readRecords(ctx context.Context, jobs []*job) (gone []*job) {
	if len(jobs) == 0 {
		return nil
	}
	pipe := p.rdb.Pipeline()
	cmds := make([]*redis.StringCmd, len(jobs))
	for i, j := range jobs {
		cmds[i] = pipe.Get(ctx, j.recordKey)
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	for i, j := range jobs {
		raw, err := cmds[i].Bytes()
		var r record
		switch {
		case errors.Is(err, redis.Nil):
			gone = append(gone, j)
		case err != nil:
			j.refuseClaim(err)
		case json.Unmarshal(raw, &r) != nil || r.ID == "" || r.Queue == "":
			j.refuseClaim(fmt.Errorf("the record at %s cannot be read: delete it to accept the key again", j.recordKey))
		case r.Confirmed:
			j.confirmed = true
			j.accept(r.duplicate())
		case r.ID == j.id:
			j.claimed = true // written by a command whose answer was lost
		default:
			j.id, j.queue = r.ID, r.Queue
			p.put(j)
		}
	}
	return gone
}

// resolve settles the jobs whose id was taken. A job without a key or a given id has
// an id of its own: go-redis repeated a script whose answer was lost, and the
// repetition found the job of the first.
func (p *Producer) resolve(ctx context.Context, jobs, taken []*job) {
	made := make(map[string]*job)
	for _, j := range jobs {
		if j.shared() && j.settled && j.result.Err == nil && !j.result.Receipt.Duplicate {
			made[j.result.Receipt.ID] = j
		}
	}
	lookUp := true
	for _, j := range taken {
		switch first, ok := made[j.id]; {
		case !j.shared():
			j.accept(j.receipt())
		case ok && first.result.Receipt.Queue == j.queue:
			r := first.result.Receipt
			r.Duplicate = true
			j.accept(r)
		default:
			receipt := j.receipt()
			receipt.Duplicate = !j.claimed
			if lookUp && ctx.Err() == nil {
				lookUp = p.look(j, &receipt)
			}
			j.accept(receipt)
			if !receipt.Duplicate {
				made[j.id] = j
			}
		}
	}
}

// look corrects the receipt of a j whose id was taken: it is j's own if a reply of
// this call was lost, and otherwise that of the call that enqueued the job. It
// reports whether Redis answered; the job was there a moment ago, which is all
// that matters.
func (p *Producer) look(j *job, receipt *Receipt) bool {
	info, err := p.inspector.GetTaskInfo(j.queue, j.id)
	if err != nil {
		return errors.Is(err, asynq.ErrTaskNotFound) || errors.Is(err, asynq.ErrQueueNotFound)
	}
	enqueuedAt, err := time.Parse(time.RFC3339Nano, info.Headers[HeaderEnqueuedAt])
	if err != nil {
		return true
	}
	receipt.Duplicate = !enqueuedAt.Equal(j.enqueuedAt)
	receipt.EnqueuedAt, receipt.ProcessAt, receipt.State = enqueuedAt, enqueuedAt, StatePending
	if processAt, err := time.Parse(time.RFC3339Nano, info.Headers[HeaderProcessAt]); err == nil {
		receipt.ProcessAt, receipt.State = processAt, StateScheduled
	}
	return true
}

// confirm notes that jobs are in their queues. A failure costs nothing: the next
// call with the key finds the id taken.
func (p *Producer) confirm(ctx context.Context, jobs []*job) {
	var pipe redis.Pipeliner
	for _, j := range jobs {
		if j.result.Err != nil || j.confirmed {
			continue
		}
		if pipe == nil {
			pipe = p.rdb.Pipeline()
		}
		pipe.Set(ctx, j.recordKey, newRecord(j.result.Receipt, true).encode(), j.window())
	}
	if pipe != nil {
		_, _ = pipe.Exec(ctx)
	}
}
