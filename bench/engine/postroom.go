package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hibiken/asynq"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/bench/internal/peer"
	"github.com/medicalink/postroom/internal/engine"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
)

// openRedis opens what services and workers open.
func openRedis(ctx context.Context, c peer.Config) (*rediskit.Client, error) {
	cfg, err := rediskit.ParseURL(fmt.Sprintf("redis://%s/%d", c.Redis, c.DB))
	if err != nil {
		return nil, err
	}
	cfg.ClientName = "bench"
	return rediskit.Open(ctx, cfg)
}

// handler is the no-op handler of ours and of stock asynq.
func handler(handle func(id int)) asynq.HandlerFunc {
	return func(_ context.Context, t *asynq.Task) error {
		handle(peer.PayloadID(t.Payload()))
		return nil
	}
}

func weights(queues []string) map[string]int {
	equal := make(map[string]int, len(queues))
	for _, q := range queues {
		equal[q] = 1
	}
	return equal
}

// startPostroom runs one of our engines, with clients of its own, as internal/worker does.
func startPostroom(ctx context.Context, c peer.Config, handle func(id int)) (stop func() error, err error) {
	rdb, err := openRedis(ctx, c)
	if err != nil {
		return nil, err
	}
	server, err := engine.NewServer(rdb.Dedicated("asynq"), rdb.Dedicated("engine"), engine.Config{
		Queues:          weights(c.Queues),
		Concurrency:     c.Concurrency,
		ShutdownTimeout: 5 * time.Second,
		RetryDelay:      asynq.DefaultRetryDelayFunc,
		IsFailure:       func(err error) bool { return err != nil },
	}, zerolog.Nop())
	if err == nil {
		err = server.Start(handler(handle))
	}
	if err != nil {
		return nil, errors.Join(err, rdb.Close())
	}
	return func() error {
		server.Stop()
		return rdb.Close()
	}, nil
}

// asynqQueues is what asks about and pauses queues in asynq's format, ours and theirs.
type asynqQueues struct {
	rdb       *rediskit.Client
	inspector *asynq.Inspector
	names     []string
}

func openQueues(ctx context.Context, c peer.Config) (asynqQueues, error) {
	rdb, err := openRedis(ctx, c)
	if err != nil {
		return asynqQueues{}, err
	}
	return asynqQueues{rdb: rdb, inspector: asynq.NewInspectorFromRedisClient(rdb), names: c.Queues}, nil
}

func (q asynqQueues) each(do func(name string) error) error {
	for _, name := range q.names {
		if err := do(name); err != nil {
			return err
		}
	}
	return nil
}

func (q asynqQueues) Pause(context.Context) error  { return q.each(q.inspector.PauseQueue) }
func (q asynqQueues) Resume(context.Context) error { return q.each(q.inspector.UnpauseQueue) }

// Left looks at the keys rather than asks the inspector, which counts much more.
func (q asynqQueues) Left(ctx context.Context) (int, error) {
	var waiting, failed int64
	err := q.each(func(name string) error {
		prefix := "asynq:{" + name + "}:"
		pipe := q.rdb.Pipeline()
		pending, active := pipe.LLen(ctx, prefix+"pending"), pipe.LLen(ctx, prefix+"active")
		scheduled, retry, archived := pipe.ZCard(ctx, prefix+"scheduled"), pipe.ZCard(ctx, prefix+"retry"), pipe.ZCard(ctx, prefix+"archived")
		if _, err := pipe.Exec(ctx); err != nil {
			return fmt.Errorf("count jobs: %w", err)
		}
		waiting += pending.Val() + active.Val() + scheduled.Val()
		failed += retry.Val() + archived.Val()
		return nil
	})
	if err == nil && failed > 0 {
		err = fmt.Errorf("%d jobs have failed", failed)
	}
	return int(waiting), err
}

func (q asynqQueues) Clear(ctx context.Context) error { return q.rdb.FlushDB(ctx).Err() }
func (q asynqQueues) Size(ctx context.Context) (int64, error) {
	var used int64
	text, err := q.rdb.Info(ctx, "memory").Result()
	if err == nil {
		used, err = infoField(text, "used_memory")
	}
	return used, err
}

type postroomProducer struct {
	asynqQueues
	producer *tasks.Producer
	config   peer.Config
	options  [][]tasks.Option // by queue
}

func newPostroomProducer(ctx context.Context, c peer.Config) (peer.Producer, error) {
	queues, err := openQueues(ctx, c)
	if err != nil {
		return nil, err
	}
	producer, err := tasks.NewProducer(queues.rdb, tasks.FromService("bench"))
	if err != nil {
		return nil, err
	}
	p := postroomProducer{asynqQueues: queues, producer: producer, config: c}
	for _, name := range c.Queues {
		options := []tasks.Option{tasks.Queue(name)}
		if !c.Keep {
			options = append(options, tasks.Retention(0))
		}
		p.options = append(p.options, options)
	}
	return p, nil
}

func (p postroomProducer) email(id int) tasks.Email {
	e := p.config.Email.For(id)
	return tasks.Email{To: e.To, Subject: e.Subject, Body: e.Body, Class: tasks.Class(e.Class)}
}

func (p postroomProducer) Add(ctx context.Context, id int, delay time.Duration) error {
	options := p.options[id%len(p.options)]
	if delay > 0 {
		options = append(slices.Clip(options), tasks.Delay(delay))
	}
	_, err := p.producer.SendEmail(ctx, p.email(id), options...)
	return err
}

func (p postroomProducer) Bulk(ctx context.Context, base, jobs int) error {
	items := func(yield func(tasks.Item) bool) {
		for id := base; id < base+jobs; id++ {
			if !yield(tasks.Item{Email: p.email(id), Options: p.options[id%len(p.options)]}) {
				return
			}
		}
	}
	for i, result := range p.producer.EnqueueMany(ctx, items) {
		if result.Err != nil {
			return fmt.Errorf("job %d: %w", base+i, result.Err)
		}
	}
	return nil
}
