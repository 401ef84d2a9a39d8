package main

import (
	"context"
	"encoding/json"
	"time"

	"github.com/hibiken/asynq"

	"github.com/medicalink/postroom/bench/internal/peer"
	"github.com/medicalink/postroom/tasks"
)

func stockRedis(c peer.Config) asynq.RedisClientOpt {
	return asynq.RedisClientOpt{Addr: c.Redis, DB: c.DB}
}

// startStock runs one asynq server as its documentation sets it up.
func startStock(_ context.Context, c peer.Config, handle func(id int)) (stop func() error, err error) {
	server := asynq.NewServer(stockRedis(c), asynq.Config{
		Queues:          weights(c.Queues),
		Concurrency:     c.Concurrency,
		ShutdownTimeout: 5 * time.Second,
		LogLevel:        asynq.WarnLevel,
	})
	return func() error { server.Shutdown(); return nil }, server.Start(handler(handle))
}

type stockProducer struct {
	asynqQueues
	client *asynq.Client
	config peer.Config
}

func newStockProducer(ctx context.Context, c peer.Config) (peer.Producer, error) {
	queues, err := openQueues(ctx, c)
	return stockProducer{queues, asynq.NewClient(stockRedis(c)), c}, err
}

func (p stockProducer) Add(ctx context.Context, id int, delay time.Duration) error {
	payload, err := json.Marshal(p.config.Email.For(id))
	if err != nil {
		return err
	}
	options := []asynq.Option{asynq.Queue(p.config.Queue(id))}
	if p.config.Keep {
		options = append(options, asynq.Retention(tasks.DefaultRetention))
	}
	if delay > 0 {
		options = append(options, asynq.ProcessIn(delay))
	}
	_, err = p.client.EnqueueContext(ctx, asynq.NewTask(tasks.TypeEmail, payload), options...)
	return err
}

// Bulk does what asynq can do: many callers.
func (p stockProducer) Bulk(ctx context.Context, base, jobs int) error {
	return peer.AddMany(ctx, p, base, jobs)
}
