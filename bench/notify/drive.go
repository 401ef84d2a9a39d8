package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/inbox"
)

// Ways to put a notification into a user's stream and to tell who listens, without a job.
const (
	howCalls    = "calls"    // XADD, then PUBLISH
	howPipeline = "pipeline" // both in one round trip
	howBatches  = "batches"  // those of driveBatch notifications in one round trip
	howScript   = "script"   // inbox.Store.Deliver
	howShared   = "shared"   // the same, over a client whose callers share round trips
)

// driveBatch is the number of notifications of a pipeline of howBatches.
const driveBatch = 100

// driveNamespace is that of the inboxes of howScript and howShared, so that no worker delivers into them.
const driveNamespace = "bench"

// bareStream is the key of a stream without the rest of an inbox.
func bareStream(user string) string { return "postroom:bench:{" + user + "}" }

// scriptStream is that of inbox.Store.
func scriptStream(namespace, user string) string {
	return "postroom:inbox:{" + namespace + ":" + user + "}"
}

// driveID is the id of the n-th notification, of the length of a true one.
func driveID(n int) string { return fmt.Sprintf("00000000-0000-7000-8000-%012d", n) }

// entryOf is what the worker makes of the benchmark's notification.
func entryOf(id string, created time.Time) inbox.Entry {
	n := notification("")
	return inbox.Entry{ID: id, Kind: n.Kind, Title: n.Title, Body: n.Body, Action: n.Action, Category: "lab", Created: created}
}

// drive delivers with as many loops as the worker has jobs at once.
func drive(ctx context.Context, redisURL string, in io.Reader, out io.Writer) (err error) {
	rdb, err := open(ctx, redisURL, concurrency)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rdb.Close()) }()
	shared, err := rdb.AsyncAutoPipeline() // ends with rdb
	if err != nil {
		return err
	}
	return obey(in, out, answer{}, func(r request) (answer, error) {
		if r.Do != doDeliver {
			return answer{}, unknown(r)
		}
		d := driver{rdb: rdb, request: r}
		switch r.How {
		case howCalls:
			return answer{}, d.loop(ctx, 1, d.calls)
		case howPipeline:
			return answer{}, d.loop(ctx, 1, d.pipeline)
		case howBatches:
			return answer{}, d.loop(ctx, driveBatch, d.pipeline)
		case howScript:
			return answer{}, d.script(ctx, rdb)
		case howShared:
			return answer{}, d.script(ctx, shared)
		}
		return answer{}, fmt.Errorf("there is no way %q", r.How)
	})
}

type driver struct {
	rdb redis.UniversalClient
	request
}

// loop calls deliver for all notifications, from as many goroutines as a worker has, each with size of them at a time.
func (d driver) loop(ctx context.Context, size int, deliver func(ctx context.Context, from, to int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		next  atomic.Int64
		wg    sync.WaitGroup
		total = d.Users * d.N
	)
	for range concurrency {
		wg.Go(func() {
			for ctx.Err() == nil {
				to := int(next.Add(int64(size)))
				from := to - size
				if from >= total {
					return
				}
				if err := deliver(ctx, from, min(to, total)); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (d driver) user(n int) string { return userID(d.Prefix, n%d.Users) }

// commands are those of the n-th notification, with as many bytes as the script stores and publishes.
func (d driver) commands(n int) (add *redis.XAddArgs, event []byte, err error) {
	id, user := driveID(n), d.user(n)
	content, err := json.Marshal(entryOf(id, time.Now().UTC().Truncate(time.Millisecond)))
	if err != nil {
		return nil, nil, err
	}
	const position = "1700000000000-0"
	event = fmt.Appendf(nil, `{"user":"%s","id":"%s","prev":"%s","notification":"%s","content":%s,"replaces":"","unread":%d}`, user, position, position, id, content, d.N)
	return &redis.XAddArgs{Stream: bareStream(user), Values: []any{"n", id, "c", content}}, event, nil
}

func channel() string { return inbox.ChannelService + ":" + inbox.Topic(driveNamespace) }

func (d driver) calls(ctx context.Context, from, _ int) error {
	add, event, err := d.commands(from)
	if err != nil {
		return err
	}
	if err := d.rdb.XAdd(ctx, add).Err(); err != nil {
		return err
	}
	return d.rdb.Publish(ctx, channel(), event).Err()
}

func (d driver) pipeline(ctx context.Context, from, to int) error {
	pipe := d.rdb.Pipeline()
	for n := from; n < to; n++ {
		add, event, err := d.commands(n)
		if err != nil {
			return err
		}
		pipe.XAdd(ctx, add)
		pipe.Publish(ctx, channel(), event)
	}
	_, err := pipe.Exec(ctx)
	return err
}

func (d driver) script(ctx context.Context, rdb redis.UniversalClient) error {
	store, err := inbox.New(rdb, inbox.Config{Namespace: driveNamespace})
	if err != nil {
		return err
	}
	return d.loop(ctx, 1, func(ctx context.Context, n, _ int) error {
		delivered, err := store.Deliver(ctx, d.user(n), entryOf(driveID(n), time.Now()))
		if err == nil && delivered.Outcome != inbox.Accepted {
			err = fmt.Errorf("a delivery ended as %s", delivered.Outcome)
		}
		return err
	})
}
