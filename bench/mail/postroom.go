package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/hibiken/asynq"

	"github.com/medicalink/postroom/bench/internal/child"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
)

const (
	benchTemplate = "welcome"
	benchSender   = "MedicaLink <no-reply@example.com>"
)

// postroom is our own queue.
type postroom struct {
	name      string
	producer  *tasks.Producer
	inspector *asynq.Inspector
}

func (b *bench) startPostroom(ctx context.Context, o options, work string, rdb *rediskit.Client) error {
	worker, err := child.Spawn(child.Options{Dir: work, Env: []string{
		"SERVICE_NAME=bench",
		"REDIS_URL=" + b.redisURL(),
		fmt.Sprintf("SMTP_URL=smtp://127.0.0.1:%d?conns=%d", b.smtpPort, o.connections),
		"MAIL_FROM=" + benchSender,
		"WORKER_CONCURRENCY=" + strconv.Itoa(o.concurrency),
		"MONITOR_ADDR=127.0.0.1:0",
	}}, "worker-log", filepath.Join(work, "worker"), "run")
	if err != nil {
		return err
	}
	b.add(worker)
	producer, err := tasks.NewProducer(rdb, tasks.FromService("bench"))
	if err != nil {
		return err
	}
	q := &postroom{
		name:      tasks.EmailQueue("", tasks.Default),
		producer:  producer,
		inspector: asynq.NewInspectorFromRedisClient(rdb),
	}
	// The queue can be paused only once it exists, that is when a worker consumes it.
	limit, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := child.Poll(limit, 50*time.Millisecond, func() (bool, error) {
		servers, err := q.inspector.Servers()
		if err != nil || len(servers) == 0 {
			return false, worker.Alive()
		}
		return true, nil
	}); err != nil {
		return fmt.Errorf("wait for the worker: %w\n%s", err, worker.Tail())
	}
	b.systems = append(b.systems, &system{name: "postroom", jobs: o.ours, worker: worker, queue: q})
	return nil
}

func (q *postroom) pause(context.Context) error {
	return q.inspector.PauseQueue(q.name)
}

func (q *postroom) resume(context.Context) error { return q.inspector.UnpauseQueue(q.name) }

func (q *postroom) load(ctx context.Context, prefix string, n int) error {
	emails := func(yield func(tasks.Item) bool) {
		for i := range n {
			if !yield(tasks.Item{Email: tasks.Email{
				To:       fmt.Sprintf("%s%d@example.com", prefix, i),
				Template: benchTemplate,
				Data:     map[string]any{"name": fmt.Sprintf("Patient %d", i)},
			}}) {
				return
			}
		}
	}
	for i, result := range q.producer.EnqueueMany(ctx, emails) {
		if result.Err != nil {
			return fmt.Errorf("job %d: %w", i, result.Err)
		}
	}
	return nil
}

func (q *postroom) left(context.Context) (int, error) {
	info, err := q.inspector.GetQueueInfo(q.name)
	if err != nil {
		return 0, err
	}
	if info.Retry+info.Archived > 0 {
		return 0, fmt.Errorf("%d jobs wait for a retry and %d are archived", info.Retry, info.Archived)
	}
	return info.Pending + info.Active + info.Scheduled, nil
}
