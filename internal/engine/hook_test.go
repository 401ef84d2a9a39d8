package engine

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// The wait grows from 250 ms to 2 s, half of it at random, and starts afresh
// after a success.
func TestSeam_BacksOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &seam{stopping: make(chan struct{})}
		var answer error
		process := s.ProcessHook(func(context.Context, redis.Cmder) error { return answer })
		took := func(err error) time.Duration {
			answer = err
			start := time.Now()
			_ = process(t.Context(), redis.NewCmd(t.Context(), "evalsha", "x", 1, "asynq:{q}:completed", 1, 2, 3))
			return time.Since(start)
		}
		for i, ms := range []int{250, 500, 1000, 2000, 2000, 2000} {
			want := time.Duration(ms) * time.Millisecond
			if d := took(errors.New("connection refused")); d < want/2 || d > want {
				t.Errorf("failure %d: waited %v, want between %v and %v", i+1, d, want/2, want)
			}
		}
		for _, normal := range []error{nil, redis.Nil} {
			if d := took(normal); d != 0 {
				t.Errorf("answer %v: waited %v", normal, d)
			}
		}
		if d := took(errors.New("connection refused")); d > 250*time.Millisecond {
			t.Errorf("first failure after a success: waited %v", d)
		}
	})
}

func TestSeam_NobodyWaitsAtShutdown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stopping := make(chan struct{})
		close(stopping)
		s := &seam{stopping: stopping}
		start := time.Now()
		process := s.ProcessHook(func(context.Context, redis.Cmder) error { return errors.New("refused") })
		_ = process(t.Context(), redis.NewCmd(t.Context(), "eval", "x"))
		if d := time.Since(start); d != 0 {
			t.Errorf("waited %v", d)
		}
	})
}

func TestSeam_GivesACancelledCommandALiveContext(t *testing.T) {
	t.Parallel()
	s := &seam{stopping: make(chan struct{})}
	process := s.ProcessHook(func(ctx context.Context, _ redis.Cmder) error {
		if _, bounded := ctx.Deadline(); !bounded {
			t.Error("the live context has no deadline")
		}
		return ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := process(ctx, redis.NewCmd(ctx, "evalsha", "x")); err != nil {
		t.Errorf("command sent with %v", err)
	}
}
