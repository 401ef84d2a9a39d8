package engine_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/engine"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/tasks"
)

// Jobs that do nothing, from a full queue: what the engine itself costs.
func BenchmarkServer(b *testing.B) {
	for _, concurrency := range []int{10, 100, 1000} {
		for _, queues := range []int{1, 6} {
			b.Run(fmt.Sprintf("concurrency=%d/queues=%d", concurrency, queues), func(b *testing.B) {
				benchServer(b, concurrency, queues)
			})
		}
	}
}

func benchServer(b *testing.B, concurrency, queues int) {
	b.Helper()
	rdb := testenv.Redis(b).Open(b)
	weights := map[string]int{}
	for i := range queues {
		weights[fmt.Sprint("email:q", i)] = 1
	}
	producer, err := tasks.NewProducer(rdb)
	if err != nil {
		b.Fatal(err)
	}
	email := tasks.Email{To: "ada@example.com", Subject: "Your results", Body: strings.Repeat("x", 150)}
	for _, r := range producer.EnqueueMany(b.Context(), func(yield func(tasks.Item) bool) {
		for n := range b.N {
			if !yield(tasks.Item{Email: email, Options: []tasks.Option{tasks.Queue(fmt.Sprint("email:q", n%queues)), tasks.Retention(0)}}) {
				return
			}
		}
	}) {
		if r.Err != nil {
			b.Fatal(r.Err)
		}
	}
	s, err := engine.NewServer(rdb.Dedicated("asynq"), rdb.Dedicated("engine"), engine.Config{
		Queues: weights, Concurrency: concurrency, ShutdownTimeout: 5 * time.Second,
		RetryDelay: func(int, error, *asynq.Task) time.Duration { return time.Hour },
		IsFailure:  func(error) bool { return true },
	}, zerolog.Nop())
	if err != nil {
		b.Fatal(err)
	}
	before := scripts(b, rdb)
	ours, theirs := cpu(b, rdb)
	done := make(chan struct{})
	var ran atomic.Int64
	b.ResetTimer()
	if err := s.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error {
		if ran.Add(1) == int64(b.N) {
			close(done)
		}
		return nil
	})); err != nil {
		b.Fatal(err)
	}
	<-done
	s.Stop() // the last ends are written
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
	b.ReportMetric(float64(scripts(b, rdb)-before)/float64(b.N), "scripts/job")
	oursNow, theirsNow := cpu(b, rdb)
	b.ReportMetric((oursNow-ours)*1e6/float64(b.N), "cpu-µs/job")
	b.ReportMetric((theirsNow-theirs)*1e6/float64(b.N), "redis-µs/job")
}

// cpu is the CPU time in seconds that this process and Redis have used.
func cpu(b *testing.B, rdb redis.UniversalClient) (ours, theirs float64) {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	info, err := rdb.Info(b.Context(), "cpu").Result()
	if err != nil {
		b.Fatal(err)
	}
	for _, field := range []string{"used_cpu_sys:", "used_cpu_user:"} {
		if _, rest, ok := strings.Cut(info, field); ok {
			var s float64
			_, _ = fmt.Sscanf(rest, "%f", &s)
			theirs += s
		}
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds(), theirs
}

// scripts is the number of script calls that Redis has served.
func scripts(b *testing.B, rdb redis.UniversalClient) int {
	b.Helper()
	info, err := rdb.Info(b.Context(), "commandstats").Result()
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	if _, rest, ok := strings.Cut(info, "cmdstat_evalsha:calls="); ok {
		_, _ = fmt.Sscanf(rest, "%d", &n)
	}
	return n
}
