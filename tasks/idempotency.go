package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

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

// duplicate returns the receipt for a call that came second.
func (r record) duplicate() Receipt {
	return Receipt{ID: r.ID, Queue: r.Queue, State: r.State, EnqueuedAt: r.EnqueuedAt, ProcessAt: r.ProcessAt, Duplicate: true}
}

// recordKey returns the Redis key of an idempotency key. Two scopes never meet: a
// namespace has no colon, and what follows the service has a fixed form.
func (p *Producer) recordKey(key string) string {
	return fmt.Sprintf("postroom:idempotency:{%s:%s:%s:%s}", p.namespace, p.service, TypeEmail, hashKey(key))
}

// enqueueOnce is enqueue for a job with an idempotency key: see the package
// comment for the states.
func (p *Producer) enqueueOnce(ctx context.Context, j job) (Receipt, error) {
	key := p.recordKey(j.key)
	found, err := p.claim(ctx, key, newRecord(j.receipt(), false), j.window())
	if err != nil {
		return Receipt{}, fmt.Errorf("enqueue email: claim idempotency key: %w", err)
	}
	if found.Confirmed {
		return found.duplicate(), nil
	}
	claimed := found.ID == j.id
	j.id, j.queue = found.ID, found.Queue
	receipt, taken, err := p.enqueue(ctx, j)
	if err != nil {
		return Receipt{}, err
	}
	if taken {
		receipt = p.whose(j, claimed)
	}
	p.confirm(ctx, key, newRecord(receipt, true), j.window())
	return receipt, nil
}

// claim returns the record at key, which is mine if there was none.
func (p *Producer) claim(ctx context.Context, key string, mine record, ttl time.Duration) (record, error) {
	value, err := json.Marshal(mine)
	if err != nil {
		return record{}, err
	}
	// A record can expire between the two commands, so the first is tried again.
	for range 3 {
		set, err := p.rdb.SetNX(ctx, key, value, ttl).Result()
		if err != nil {
			return record{}, err
		}
		if set {
			return mine, nil
		}
		raw, err := p.rdb.Get(ctx, key).Bytes()
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err != nil {
			return record{}, err
		}
		var found record
		if err := json.Unmarshal(raw, &found); err != nil || found.ID == "" || found.Queue == "" {
			return record{}, fmt.Errorf("the record at %s cannot be read: delete it to accept the key again", key)
		}
		return found, nil
	}
	return record{}, errors.New("the record expires at once: check the clock and the memory policy of Redis")
}

// whose returns the receipt for a j whose id was taken: j's own if a reply of
// this call was lost, and otherwise that of the call that enqueued the job.
func (p *Producer) whose(j job, claimed bool) Receipt {
	receipt := j.receipt()
	receipt.Duplicate = !claimed
	info, err := p.inspector.GetTaskInfo(j.queue, j.id)
	if err != nil {
		// The job was there a moment ago, which is all that matters.
		return receipt
	}
	enqueuedAt, err := time.Parse(time.RFC3339Nano, info.Headers[HeaderEnqueuedAt])
	if err != nil {
		return receipt
	}
	receipt.Duplicate = !enqueuedAt.Equal(j.enqueuedAt)
	receipt.EnqueuedAt, receipt.ProcessAt, receipt.State = enqueuedAt, enqueuedAt, StatePending
	if processAt, err := time.Parse(time.RFC3339Nano, info.Headers[HeaderProcessAt]); err == nil {
		receipt.ProcessAt, receipt.State = processAt, StateScheduled
	}
	return receipt
}

// confirm notes that the job is in its queue. A failure costs nothing: the next
// call with the key finds the id taken.
func (p *Producer) confirm(ctx context.Context, key string, r record, ttl time.Duration) {
	if value, err := json.Marshal(r); err == nil {
		_ = p.rdb.Set(ctx, key, value, ttl).Err()
	}
}
