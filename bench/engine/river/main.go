// Command river is River on PostgreSQL as a contender of bench/engine, which builds it. It is a module of its own, so
// that the product does not depend on River.
//
//	river work CONFIG      a worker
//	river produce CONFIG   a producer, which creates River's tables first
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/medicalink/postroom/bench/internal/peer"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "river:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	var c peer.Config
	if len(args) != 2 {
		return errors.New("it takes a role and a configuration; bench/engine starts it")
	}
	if err := json.Unmarshal([]byte(args[1]), &c); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if args[0] == "work" {
		return peer.Work(ctx, c, in, out, start)
	}
	p, err := newProducer(ctx, c)
	if err != nil {
		return err
	}
	defer p.pool.Close()
	return peer.Produce(ctx, p, in, out)
}

// fetchCooldown is the least that River allows, which gives it the most throughput and the quickest pick-up. Its
// default of 100 ms bounds the throughput to ten fetches a second.
const fetchCooldown = river.FetchCooldownMin

type job struct{ peer.Email }

func (job) Kind() string { return "email" }

type worker struct {
	river.WorkerDefaults[job]

	handle func(id int)
}

func (w *worker) Work(_ context.Context, j *river.Job[job]) error {
	w.handle(peer.ID(j.Args.To))
	return nil
}

func logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func start(ctx context.Context, c peer.Config, handle func(id int)) (stop func() error, err error) {
	pool, err := pgxpool.New(ctx, c.Postgres)
	if err != nil {
		return nil, err
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, &worker{handle: handle})
	queues := make(map[string]river.QueueConfig, len(c.Queues))
	for _, name := range c.Queues {
		queues[name] = river.QueueConfig{MaxWorkers: c.Share()}
	}
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		FetchCooldown: fetchCooldown, Queues: queues, Workers: workers, Logger: logger(),
	})
	if err == nil {
		err = client.Start(ctx)
	}
	if err != nil {
		pool.Close()
		return nil, err
	}
	return func() error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		defer pool.Close()
		return client.StopAndCancel(ctx)
	}, nil
}

type producer struct {
	pool   *pgxpool.Pool
	client *river.Client[pgx.Tx]
	config peer.Config
}

func newProducer(ctx context.Context, c peer.Config) (*producer, error) {
	pool, err := pgxpool.New(ctx, c.Postgres)
	if err != nil {
		return nil, err
	}
	driver := riverpgxv5.New(pool)
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: logger()})
	if err != nil {
		return nil, err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return nil, fmt.Errorf("create River's tables: %w", err)
	}
	client, err := river.NewClient(driver, &river.Config{FetchCooldown: fetchCooldown, Logger: logger()})
	if err != nil {
		return nil, err
	}
	return &producer{pool, client, c}, nil
}

func (p *producer) Add(ctx context.Context, id int, delay time.Duration) error {
	options := &river.InsertOpts{Queue: p.config.Queue(id)}
	if delay > 0 {
		options.ScheduledAt = time.Now().Add(delay)
	}
	_, err := p.client.Insert(ctx, job{p.config.Email.For(id)}, options)
	return err
}

// Bulk copies 10,000 rows at a time.
func (p *producer) Bulk(ctx context.Context, base, jobs int) error {
	const batch = 10_000
	params := make([]river.InsertManyParams, 0, batch)
	for first := base; first < base+jobs; first += batch {
		params = params[:0]
		for id := first; id < min(first+batch, base+jobs); id++ {
			params = append(params, river.InsertManyParams{
				Args: job{p.config.Email.For(id)}, InsertOpts: &river.InsertOpts{Queue: p.config.Queue(id)},
			})
		}
		if _, err := p.client.InsertManyFast(ctx, params); err != nil {
			return err
		}
	}
	return nil
}

func (p *producer) each(ctx context.Context, do func(context.Context, string, *river.QueuePauseOpts) error) error {
	for _, name := range p.config.Queues {
		if err := do(ctx, name, nil); err != nil {
			return err
		}
	}
	return nil
}

func (p *producer) Pause(ctx context.Context) error  { return p.each(ctx, p.client.QueuePause) }
func (p *producer) Resume(ctx context.Context) error { return p.each(ctx, p.client.QueueResume) }

func (p *producer) Left(ctx context.Context) (int, error) {
	var waiting, failed int
	err := p.pool.QueryRow(ctx, `SELECT
		(SELECT count(*) FROM river_job WHERE state IN ('available', 'pending', 'running', 'scheduled')),
		(SELECT count(*) FROM river_job WHERE state IN ('cancelled', 'discarded', 'retryable'))`).Scan(&waiting, &failed)
	if err == nil && failed > 0 {
		err = fmt.Errorf("%d jobs have failed", failed)
	}
	return waiting, err
}

func (p *producer) Clear(ctx context.Context) error {
	_, err := p.pool.Exec(ctx, "TRUNCATE river_job")
	return err
}

func (p *producer) Size(ctx context.Context) (size int64, err error) {
	err = p.pool.QueryRow(ctx, "SELECT pg_total_relation_size('river_job')").Scan(&size)
	return size, err
}
