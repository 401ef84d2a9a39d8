package engine_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/engine"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/internal/wake"
	"github.com/medicalink/postroom/rediskit"
)

const (
	gated = "email:bulk"
	open  = "email:critical"
)

// put adds jobs as a stock asynq client does: it sets no wake marker.
func put(t *testing.T, rdb redis.UniversalClient, queue string, n int) {
	t.Helper()
	client := asynq.NewClientFromRedisClient(rdb)
	for range n {
		if _, err := client.EnqueueContext(t.Context(), asynq.NewTask("test", nil), asynq.Queue(queue), asynq.MaxRetry(3)); err != nil {
			t.Fatal(err)
		}
	}
}

// redisTime returns Redis's clock in whole milliseconds, as the gate reads it.
func redisTime(t *testing.T, rdb redis.UniversalClient) time.Time {
	t.Helper()
	now, err := rdb.Time(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	return now.Truncate(time.Millisecond)
}

func stateOf(t *testing.T, gate *engine.Gate, queue string) engine.QueueState {
	t.Helper()
	states, err := gate.State(t.Context(), queue)
	if err != nil {
		t.Fatal(err)
	}
	if len(states) != 1 || states[0].Queue != queue {
		t.Fatalf("state of %s: got %+v", queue, states)
	}
	return states[0]
}

// exists counts those of one queue's keys that exist.
func exists(t *testing.T, rdb redis.UniversalClient, keys ...string) int64 {
	t.Helper()
	n, err := rdb.Exists(t.Context(), keys...).Result()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func pausedKeys(queue string) []string {
	return []string{"asynq:{" + queue + "}:paused", "postroom:pause:{" + queue + "}"}
}

func isInvalid(err error) bool {
	_, ok := errors.AsType[*engine.InvalidError](err)
	return ok
}

func pause(t *testing.T, gate *engine.Gate, queue string, p engine.Pause) {
	t.Helper()
	if err := gate.PauseUntil(t.Context(), queue, p); err != nil {
		t.Fatal(err)
	}
}

func limit(t *testing.T, gate *engine.Gate, queue string, l engine.Limits) {
	t.Helper()
	if err := gate.SetLimits(t.Context(), queue, l); err != nil {
		t.Fatal(err)
	}
}

// The whole of it where keys and scripts have to find their node.
func TestGate_EachTopology(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) *rediskit.Client{
		"plain":    func(t *testing.T) *rediskit.Client { return testenv.Redis(t).Open(t) },
		"Sentinel": func(t *testing.T) *rediskit.Client { return testenv.Sentinel(t).Open(t) },
		"Cluster":  func(t *testing.T) *rediskit.Client { return testenv.Cluster(t).Open(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rdb := start(t)
			gate, inspector := engine.NewGate(rdb), asynq.NewInspectorFromRedisClient(rdb)
			put(t, rdb, gated, 3)
			put(t, rdb, open, 1)

			// Until resumed.
			before := redisTime(t, rdb)
			pause(t, gate, gated, engine.Pause{Reason: "provider is down", By: "Zoë"})
			s := stateOf(t, gate, gated)
			if !s.Paused || s.Pause == nil || s.Pause.Reason != "provider is down" || s.Pause.By != "Zoë" || !s.Pause.Until.IsZero() {
				t.Errorf("after a pause: %+v, %+v", s, s.Pause)
			}
			if s.Since.Before(before) || s.Since.After(redisTime(t, rdb)) || s.Pause == nil || !s.Pause.Since.Equal(s.Since) {
				t.Errorf("paused since %v, want between %v and now", s.Since, before)
			}
			for _, key := range pausedKeys(gated) {
				if ttl := rdb.PTTL(t.Context(), key).Val(); ttl != -1 {
					t.Errorf("%s expires in %v, want never", key, ttl)
				}
			}
			if v := rdb.Get(t.Context(), pausedKeys(gated)[0]).Val(); v != strconv.FormatInt(s.Since.Unix(), 10) {
				t.Errorf("asynq's key holds %q, want the Unix seconds of %v", v, s.Since)
			}
			if info, err := inspector.GetQueueInfo(gated); err != nil || !info.Paused {
				t.Errorf("asynq's inspector sees %+v, %v, want paused", info, err)
			}

			// Anew, with an end.
			until := redisTime(t, rdb).Add(time.Hour)
			pause(t, gate, gated, engine.Pause{Until: until.Add(time.Microsecond), By: "ops"})
			if s = stateOf(t, gate, gated); s.Pause == nil || !s.Pause.Until.Equal(until) || s.Pause.Reason != "" || s.Pause.By != "ops" {
				t.Errorf("after a second pause: %+v, want until %v", s.Pause, until)
			}
			for _, key := range pausedKeys(gated) {
				if at := rdb.PExpireTime(t.Context(), key).Val(); at.Milliseconds() != until.UnixMilli() {
					t.Errorf("%s expires at %d ms, want %d", key, at.Milliseconds(), until.UnixMilli())
				}
			}
			// Anew, without.
			pause(t, gate, gated, engine.Pause{})
			if s = stateOf(t, gate, gated); !s.Paused || s.Pause == nil || !s.Pause.Until.IsZero() {
				t.Errorf("after a third pause: %+v, %+v", s, s.Pause)
			}
			if ttl := rdb.PTTL(t.Context(), pausedKeys(gated)[0]).Val(); ttl != -1 {
				t.Errorf("the earlier pause's end stayed: %v", ttl)
			}

			// Resumed.
			if was, err := gate.Resume(t.Context(), gated); !was || err != nil {
				t.Errorf("resume: %v, %v, want it was paused", was, err)
			}
			if n := exists(t, rdb, pausedKeys(gated)...); n != 0 {
				t.Errorf("%d keys of the pause are left", n)
			}
			if n := rdb.LLen(t.Context(), wake.Key(gated)).Val(); n != 1 {
				t.Errorf("the wake marker has %d elements, want 1", n)
			}
			if was, err := gate.Resume(t.Context(), gated); was || err != nil {
				t.Errorf("second resume: %v, %v, want it was not paused", was, err)
			}
			if info, err := inspector.GetQueueInfo(gated); err != nil || info.Paused {
				t.Errorf("asynq's inspector sees %+v, %v, want not paused", info, err)
			}

			// Limits.
			rdb.Del(t.Context(), wake.Key(gated))
			limits := engine.Limits{Concurrency: 4, Rate: 0.5, Burst: 3}
			limit(t, gate, gated, limits)
			if n := rdb.LLen(t.Context(), wake.Key(gated)).Val(); n != 1 {
				t.Errorf("the wake marker has %d elements, want 1", n)
			}
			states, err := gate.State(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want := []engine.QueueState{
				{Queue: gated, Limits: limits, Tokens: 3, Waiting: 3},
				{Queue: open, Waiting: 1},
			}
			if !slices.Equal(states, want) {
				t.Errorf("state of all:\n%+v, want\n%+v", states, want)
			}
			if err := gate.PauseUntil(t.Context(), "emial:bulk", engine.Pause{}); !strings.Contains(fmt.Sprint(err), gated) {
				t.Errorf("pause of a misspelt queue: %v", err)
			}
		})
	}
}

// What is refused leaves no trace, and the error does not repeat it.
func TestGate_PauseUntilRefuses(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	gate := engine.NewGate(rdb)
	put(t, rdb, gated, 1)
	for name, p := range map[string]engine.Pause{
		"end a millisecond ago":  {Until: redisTime(t, rdb).Add(-time.Millisecond)},
		"end now":                {Until: redisTime(t, rdb)},
		"end before 1970":        {Until: time.Date(1969, 1, 1, 0, 0, 0, 0, time.UTC)},
		"reason too long":        {Reason: strings.Repeat("é", 101)},
		"reason on two lines":    {Reason: "secret\nline"},
		"reason with an escape":  {Reason: "secret\x1b[2J"},
		"reason turned around":   {Reason: "secret\u202e"},
		"reason with separator":  {Reason: "secret\u2028"},
		"reason not UTF-8":       {Reason: "secret\xff"},
		"name with a NUL":        {By: "secret\x00"},
		"name too long":          {By: strings.Repeat("x", 201)},
		"both reason and caller": {Reason: "secret\n", By: "secret\n"},
	} {
		err := gate.PauseUntil(t.Context(), gated, p)
		if !isInvalid(err) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got error %v, want an InvalidError without the text", name, err)
			continue
		}
		if strings.HasPrefix(name, "end ") && !strings.Contains(err.Error(), "in the past") {
			t.Errorf("%s: the error does not say so: %v", name, err)
		}
	}
	if n := exists(t, rdb, pausedKeys(gated)...); n != 0 {
		t.Errorf("%d keys were written", n)
	}
	pause(t, gate, gated, engine.Pause{Reason: strings.Repeat("é", 100), By: strings.Repeat("x", 200)})
	// A refused pause does not end the one there is.
	if err := gate.PauseUntil(t.Context(), gated, engine.Pause{Until: time.Unix(1, 0)}); err == nil {
		t.Error("an end in 1970 was taken")
	}
	if s := stateOf(t, gate, gated); s.Pause == nil || s.Pause.Reason != strings.Repeat("é", 100) {
		t.Errorf("a refused pause changed the one there was: %+v", s)
	}
}

func TestGate_UnknownQueue(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	gate := engine.NewGate(rdb)
	const misspelt = "emial:bulk"
	calls := map[string]func() error{
		"PauseUntil": func() error { return gate.PauseUntil(t.Context(), misspelt, engine.Pause{}) },
		"Resume":     func() error { _, err := gate.Resume(t.Context(), misspelt); return err },
		"SetLimits":  func() error { return gate.SetLimits(t.Context(), misspelt, engine.Limits{Concurrency: 1}) },
		"State":      func() error { _, err := gate.State(t.Context(), gated, misspelt); return err },
	}
	err := gate.PauseUntil(t.Context(), misspelt, engine.Pause{})
	if err == nil || !strings.Contains(err.Error(), "knows no queue yet") {
		t.Errorf("without any queue: %v", err)
	}
	if states, err := gate.State(t.Context()); len(states) != 0 || err != nil {
		t.Errorf("state of no queue: %v, %v", states, err)
	}
	put(t, rdb, open, 1)
	put(t, rdb, gated, 1)
	for name, call := range calls {
		err := call()
		unknown, ok := errors.AsType[*engine.UnknownQueueError](err)
		if !ok || unknown.Queue != misspelt || !slices.Equal(unknown.Known, []string{gated, open}) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want := `queue "emial:bulk" is unknown; known are "email:bulk", "email:critical"`; err.Error() != want {
			t.Errorf("%s: error %q, want %q", name, err, want)
		}
	}
	if n := exists(t, rdb, append(pausedKeys(misspelt), "postroom:gate:{"+misspelt+"}")...); n != 0 {
		t.Errorf("%d keys were written for a misspelt queue", n)
	}
	for _, bad := range []string{strings.Repeat("q", 201), "email\n", "\xff"} {
		if err := gate.PauseUntil(t.Context(), bad, engine.Pause{}); !isInvalid(err) {
			t.Errorf("pause of queue %.10q…: %v, want an InvalidError", bad, err)
		}
		if _, err := gate.Resume(t.Context(), bad); !isInvalid(err) {
			t.Errorf("resume of queue %.10q…: %v, want an InvalidError", bad, err)
		}
	}

	many := &engine.UnknownQueueError{Queue: "x\n"}
	for i := range 25 {
		many.Known = append(many.Known, fmt.Sprintf("q%02d\x1b", i))
	}
	if text := many.Error(); !strings.HasSuffix(text, `"q19\x1b" and 5 more`) || strings.ContainsAny(text, "\n\x1b") {
		t.Errorf("error with many queues: %q", text)
	}

	// A queue that asynq paused by a misspelt name can be resumed all the same.
	if err := asynq.NewInspectorFromRedisClient(rdb).PauseQueue(misspelt); err != nil {
		t.Fatal(err)
	}
	if was, err := gate.Resume(t.Context(), misspelt); !was || err != nil {
		t.Errorf("resume of a queue that only the pause knows: %v, %v", was, err)
	}
}

// asynq's inspector, and so asynqmon, pause and unpause beside us.
func TestGate_BesideAsynqsInspector(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	gate, inspector := engine.NewGate(rdb), asynq.NewInspectorFromRedisClient(rdb)
	put(t, rdb, gated, 1)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	// Paused by asynq, resumed by us.
	before := time.Now()
	must(inspector.PauseQueue(gated))
	s := stateOf(t, gate, gated)
	if !s.Paused || s.Pause != nil || s.Since.Before(before.Truncate(time.Second)) || s.Since.After(time.Now()) {
		t.Errorf("paused by asynq: %+v", s)
	}
	if was, err := gate.Resume(t.Context(), gated); !was || err != nil {
		t.Errorf("resume: %v, %v", was, err)
	}
	if s := stateOf(t, gate, gated); s.Paused || !s.Since.IsZero() {
		t.Errorf("after resume: %+v", s)
	}

	// Paused by us, unpaused by asynq: what is left is not shown.
	pause(t, gate, gated, engine.Pause{Until: redisTime(t, rdb).Add(time.Hour), Reason: "ours"})
	must(inspector.UnpauseQueue(gated))
	if s := stateOf(t, gate, gated); s.Paused || s.Pause != nil || !s.Since.IsZero() {
		t.Errorf("unpaused by asynq: %+v", s)
	}
	// Nor as the reason of a later pause by asynq, be it in the same second.
	must(inspector.PauseQueue(gated))
	if s := stateOf(t, gate, gated); !s.Paused || s.Pause != nil {
		t.Errorf("paused by asynq after a pause of ours: %+v, %+v", s, s.Pause)
	}
	// A pause of ours replaces asynq's, and all that was left.
	pause(t, gate, gated, engine.Pause{By: "second"})
	if s := stateOf(t, gate, gated); s.Pause == nil || *s.Pause != (engine.Pause{Since: s.Since, By: "second"}) {
		t.Errorf("paused by us over asynq's pause: %+v", s.Pause)
	}
	must(inspector.UnpauseQueue(gated))
	must(rdb.Set(t.Context(), pausedKeys(gated)[0], redisTime(t, rdb).Unix()+1, 0).Err()) // asynq, a second later
	if s := stateOf(t, gate, gated); !s.Paused || s.Pause != nil {
		t.Errorf("paused by asynq after an open pause of ours: %+v, %+v", s, s.Pause)
	}
	must(inspector.UnpauseQueue(gated))
	if was, err := gate.Resume(t.Context(), gated); was || err != nil {
		t.Errorf("resume after asynq's unpause: %v, %v, want it was not paused", was, err)
	}
	if n := exists(t, rdb, pausedKeys(gated)...); n != 0 {
		t.Errorf("%d keys of pauses are left", n)
	}
}

func TestGate_ResumeWakesOnlyForWork(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	gate := engine.NewGate(rdb)
	if err := rdb.SAdd(t.Context(), "asynq:queues", gated).Err(); err != nil {
		t.Fatal(err)
	}
	pause(t, gate, gated, engine.Pause{})
	if was, err := gate.Resume(t.Context(), gated); !was || err != nil {
		t.Errorf("resume: %v, %v", was, err)
	}
	limit(t, gate, gated, engine.Limits{Concurrency: 1})
	if n := exists(t, rdb, wake.Key(gated)); n != 0 {
		t.Error("an empty queue was announced")
	}
}

// A worker of stock asynq knows nothing of ends: Redis must lift the pause.
func TestGate_TimedPauseEndsForStockAsynq(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	gate := engine.NewGate(rdb)
	put(t, rdb, gated, 1)
	until := redisTime(t, rdb).Add(1500 * time.Millisecond)
	pause(t, gate, gated, engine.Pause{Until: until})
	started := make(chan time.Time, 1)
	stock := asynq.NewServerFromRedisClient(rdb.Dedicated("stock"), asynq.Config{
		Queues: map[string]int{gated: 1}, TaskCheckInterval: 10 * time.Millisecond, LogLevel: asynq.FatalLevel,
	})
	if err := stock.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error {
		started <- time.Now()
		return nil
	})); err != nil {
		t.Fatal(err)
	}
	defer stock.Shutdown()
	select {
	case at := <-started:
		if at.Before(until) {
			t.Errorf("the job started at %v, in a pause until %v", at, until)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the pause did not end")
	}
	if s := stateOf(t, gate, gated); s.Paused || s.Pause != nil {
		t.Errorf("after the pause: %+v", s)
	}
	if n := exists(t, rdb, pausedKeys(gated)...); n != 0 {
		t.Errorf("%d keys of the pause are left", n)
	}
}

func TestGate_SurvivesARestartOfRedis(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t, testenv.AOF())
	rdb := server.Open(t)
	gate := engine.NewGate(rdb)
	const brief = "email:default"
	for _, q := range []string{gated, open, brief} {
		put(t, rdb, q, 1)
	}
	until := redisTime(t, rdb).Add(time.Hour)
	pause(t, gate, gated, engine.Pause{Until: until, Reason: "maintenance", By: "ops"})
	pause(t, gate, open, engine.Pause{Reason: "until I say so"})
	limit(t, gate, open, engine.Limits{Concurrency: 7, Rate: 2.5})
	soon := redisTime(t, rdb).Add(500 * time.Millisecond)
	pause(t, gate, brief, engine.Pause{Until: soon})
	before, err := gate.State(t.Context(), gated, open)
	if err != nil {
		t.Fatal(err)
	}
	server.Kill()
	time.Sleep(time.Until(soon)) // this end passes while Redis is away
	server.Restart()
	var after []engine.QueueState
	eventually(t, "Redis answers again", func() bool {
		after, err = gate.State(t.Context())
		return err == nil
	})
	if len(after) != 3 || after[1].Queue != open || after[2].Queue != brief {
		t.Fatalf("after the restart: %+v", after)
	}
	if after[2].Paused || after[2].Pause != nil {
		t.Errorf("a pause that ended while Redis was away goes on: %+v", after[2])
	}
	for i := range before {
		b, a := before[i], after[i]
		if a.Pause == nil || *a.Pause != *b.Pause || a.Limits != b.Limits || a.Since != b.Since || !a.Paused {
			t.Errorf("before the restart %+v, %+v,\nafter %+v, %+v", b, b.Pause, a, a.Pause)
		}
	}
	if at := rdb.PExpireTime(t.Context(), pausedKeys(gated)[0]).Val(); at.Milliseconds() != until.UnixMilli() {
		t.Errorf("asynq's key expires at %d ms after the restart, want %d", at.Milliseconds(), until.UnixMilli())
	}
}

func TestGate_SetLimits(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	gate := engine.NewGate(rdb)
	put(t, rdb, gated, 1)
	key := "postroom:gate:{" + gated + "}"
	// In this order, on the same queue.
	for _, c := range []struct {
		set, want engine.Limits
		stored    []string
	}{
		{engine.Limits{Concurrency: 3}, engine.Limits{Concurrency: 3}, []string{"3", "", ""}},
		{engine.Limits{Rate: 0.25}, engine.Limits{Rate: 0.25, Burst: 1}, []string{"", "0.25", "1"}},
		{engine.Limits{Rate: 2.5}, engine.Limits{Rate: 2.5, Burst: 3}, []string{"", "2.5", "3"}},
		{engine.Limits{Concurrency: 1, Rate: 1e9}, engine.Limits{Concurrency: 1, Rate: 1e9, Burst: 1e9}, []string{"1", "1e+09", "1000000000"}},
		{engine.Limits{Concurrency: 9, Rate: 50, Burst: 5}, engine.Limits{Concurrency: 9, Rate: 50, Burst: 5}, []string{"9", "50", "5"}},
		{engine.Limits{}, engine.Limits{}, []string{"", "", ""}},
	} {
		limit(t, gate, gated, c.set)
		s := stateOf(t, gate, gated)
		if s.Limits != c.want {
			t.Errorf("set %+v: got %+v, want %+v", c.set, s.Limits, c.want)
		}
		if s.Tokens < 0 || s.Tokens > float64(c.want.Burst) || (c.want.Rate == 0 && s.Tokens != 0) {
			t.Errorf("set %+v: %v tokens", c.set, s.Tokens)
		}
		stored := rdb.HMGet(t.Context(), key, "concurrency", "rate", "burst").Val()
		for i, v := range stored {
			if got, _ := v.(string); got != c.stored[i] {
				t.Errorf("set %+v: stored %v, want %v", c.set, stored, c.stored)
				break
			}
		}
	}
	if n := exists(t, rdb, key); n != 0 {
		t.Errorf("a queue without limits keeps %v", rdb.HGetAll(t.Context(), key).Val())
	}

	limit(t, gate, gated, engine.Limits{Concurrency: 2, Rate: 4, Burst: 6})
	before := rdb.HGetAll(t.Context(), key).Val()
	for _, l := range []engine.Limits{
		{Concurrency: -1},
		{Rate: -1},
		{Rate: math.NaN()},
		{Rate: math.Inf(1)},
		{Rate: math.Inf(-1)},
		{Rate: 2e9},
		{Rate: 1, Burst: -1},
		{Rate: 1, Burst: 2e9},
		{Burst: 5},
		{Concurrency: 5, Burst: 5},
	} {
		if err := gate.SetLimits(t.Context(), gated, l); !isInvalid(err) {
			t.Errorf("set %+v: %v, want an InvalidError", l, err)
		}
	}
	if err := gate.SetLimits(t.Context(), gated, engine.Limits{Concurrency: -1, Rate: -1, Burst: -1}); strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("three mistakes: %v, want all of them", err)
	}
	if after := rdb.HGetAll(t.Context(), key).Val(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("refused limits changed %v to %v", before, after)
	}
}

// A change of limits neither makes jobs out of nothing nor takes earned ones away.
func TestGate_SetLimitsKeepsTheBucket(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	gate := engine.NewGate(rdb)
	put(t, rdb, gated, 1)
	key := "postroom:gate:{" + gated + "}"
	for name, c := range map[string]struct {
		rate   float64
		burst  int
		tokens float64
		idle   time.Duration // since the bucket was written; negative: by a clock ahead
		set    engine.Limits
		least  float64
	}{
		"raised rate does not reach back":     {1, 100, 0, 2 * time.Second, engine.Limits{Rate: 1000, Burst: 100}, 2},
		"lowered rate keeps what was earned":  {10, 100, 5, 2 * time.Second, engine.Limits{Rate: 0.001, Burst: 100}, 25},
		"lowered burst cuts":                  {0.001, 100, 50, 0, engine.Limits{Rate: 0.001, Burst: 10}, 10},
		"raised burst gives nothing":          {0.001, 10, 4, 0, engine.Limits{Rate: 0.001, Burst: 100}, 4},
		"raised burst keeps the old bound":    {10, 10, 4, time.Hour, engine.Limits{Rate: 10, Burst: 100}, 10},
		"a clock that went back earns naught": {1, 100, 7, -time.Hour, engine.Limits{Rate: 1, Burst: 100}, 7},
	} {
		start := redisTime(t, rdb)
		at := start.Add(-c.idle)
		if err := rdb.HSet(t.Context(), key, "rate", c.rate, "burst", c.burst, "tokens", c.tokens, "at", at.UnixMilli()).Err(); err != nil {
			t.Fatal(err)
		}
		limit(t, gate, gated, c.set)
		took := redisTime(t, rdb).Sub(start).Seconds()
		tokens, err := rdb.HGet(t.Context(), key, "tokens").Float64()
		if err != nil {
			t.Fatal(err)
		}
		if tokens < c.least || tokens > c.least+c.rate*took || tokens > float64(c.set.Burst) {
			t.Errorf("%s: %v tokens after %v s, want %v and what %v a second adds", name, tokens, took, c.least, c.rate)
		}
		written, err := rdb.HGet(t.Context(), key, "at").Int64()
		if now := time.UnixMilli(written); err != nil || now.Before(start) || now.After(redisTime(t, rdb)) {
			t.Errorf("%s: bucket of %v (%v), want now", name, now, err)
		}
		shown := stateOf(t, gate, gated).Tokens
		total := redisTime(t, rdb).Sub(start).Seconds()
		if shown < tokens || shown > min(float64(c.set.Burst), tokens+c.set.Rate*total) {
			t.Errorf("%s: %v tokens are shown, want %v and what %v a second adds", name, shown, tokens, c.set.Rate)
		}
	}
	// A bucket written by a clock ahead of ours.
	rdb.HSet(t.Context(), key, "rate", "2", "burst", "5", "tokens", "3", "at", redisTime(t, rdb).Add(time.Hour).UnixMilli())
	if s := stateOf(t, gate, gated); s.Tokens != 3 {
		t.Errorf("%v tokens are shown, want the 3 there were", s.Tokens)
	}
	// Limits written by hand: a bucket without a level is full.
	rdb.Del(t.Context(), key)
	rdb.HSet(t.Context(), key, "rate", "2", "burst", "5")
	if s := stateOf(t, gate, gated); s.Tokens != 5 {
		t.Errorf("%v tokens are shown, want a full bucket of 5", s.Tokens)
	}
	limit(t, gate, gated, engine.Limits{Rate: 2, Burst: 3})
	if s := stateOf(t, gate, gated); s.Tokens != 3 {
		t.Errorf("%v tokens are shown, want a full bucket of 3", s.Tokens)
	}
}

func TestGate_StateCountsValidLeases(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	gate := engine.NewGate(rdb)
	put(t, rdb, gated, 5)
	now := float64(redisTime(t, rdb).Unix())
	for id, expiry := range map[string]float64{"a": now + 3600, "b": now + 3600, "over": now, "crashed": now - 60} {
		if err := rdb.ZAdd(t.Context(), "asynq:{"+gated+"}:lease", redis.Z{Score: expiry, Member: id}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if s := stateOf(t, gate, gated); s.Running != 2 || s.Waiting != 5 {
		t.Errorf("%d running and %d waiting, want 2 and 5", s.Running, s.Waiting)
	}
}

// A queue with damaged data is an error of its own (trap of asynq's metrics: one
// bad queue and none is shown).
func TestGate_StateShowsTheOthers(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	gate := engine.NewGate(rdb)
	for _, q := range []string{gated, open, "email:default"} {
		put(t, rdb, q, 1)
	}
	rdb.Set(t.Context(), "asynq:{"+open+"}:lease", "not a set", 0)
	rdb.HSet(t.Context(), "postroom:gate:{"+gated+"}", "concurrency", "many", "rate", "NaN", "burst", "inf")
	for _, named := range [][]string{nil, {"email:default", open, gated, gated}} {
		states, err := gate.State(t.Context(), named...)
		if err == nil || !strings.Contains(err.Error(), open) || strings.Contains(err.Error(), "email:default") {
			t.Errorf("state of %v: error %v, want one of %s only", named, err, open)
		}
		want := []engine.QueueState{{Queue: gated, Waiting: 1}, {Queue: "email:default", Waiting: 1}}
		if !slices.Equal(states, want) {
			t.Errorf("state of %v:\n%+v, want\n%+v", named, states, want)
		}
	}
	rdb.Set(t.Context(), "asynq:{"+open+"}:paused", "by hand", 0)
	rdb.Del(t.Context(), "asynq:{"+open+"}:lease")
	if s := stateOf(t, gate, open); !s.Paused || s.Pause != nil {
		t.Errorf("a pause set by hand: %+v", s)
	}
}

func TestGate_RedisAway(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	rdb := server.Open(t)
	gate := engine.NewGate(rdb)
	put(t, rdb, gated, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := gate.PauseUntil(ctx, gated, engine.Pause{}); !errors.Is(err, context.Canceled) {
		t.Errorf("PauseUntil: %v", err)
	}
	if was, err := gate.Resume(ctx, gated); was || !errors.Is(err, context.Canceled) {
		t.Errorf("Resume: %v, %v", was, err)
	}
	if err := gate.SetLimits(ctx, gated, engine.Limits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("SetLimits: %v", err)
	}
	if states, err := gate.State(ctx); len(states) != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("State: %v, %v", states, err)
	}
	if n := exists(t, rdb, pausedKeys(gated)...); n != 0 {
		t.Errorf("%d keys were written", n)
	}
}

// The tests below hold the workers' fetch to what the gate says.

// crew is one server or more in this process, whose jobs are counted.
type crew struct {
	rdb     *rediskit.Client
	gate    *engine.Gate
	release chan struct{} // jobs of the gated queue that may end; closed: all

	running, peak, started, opened atomic.Int64

	mu     sync.Mutex
	starts []time.Time // of the gated queue's jobs
}

func newCrew(t *testing.T, rdb *rediskit.Client) *crew {
	t.Helper()
	for _, q := range []string{gated, open} {
		if err := rdb.SAdd(t.Context(), "asynq:queues", q).Err(); err != nil {
			t.Fatal(err)
		}
	}
	return &crew{rdb: rdb, gate: engine.NewGate(rdb), release: make(chan struct{})}
}

// free lets jobs end as they come.
func (c *crew) free() *crew {
	close(c.release)
	return c
}

func (c *crew) start(t *testing.T, servers, concurrency int) {
	t.Helper()
	for i := range servers {
		cfg := config()
		cfg.Queues = map[string]int{gated: 1, open: 1}
		cfg.Concurrency = concurrency
		log := zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)
		s := newServer(t, c.rdb.Dedicated("test-"+strconv.Itoa(i)), c.rdb, cfg, log)
		if err := s.Start(asynq.HandlerFunc(c.work)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Stop)
	}
}

func (c *crew) work(ctx context.Context, _ *asynq.Task) error {
	if q, _ := asynq.GetQueueName(ctx); q == open {
		c.opened.Add(1)
		return nil
	}
	now := time.Now()
	n := c.running.Add(1)
	defer c.running.Add(-1)
	for p := c.peak.Load(); n > p && !c.peak.CompareAndSwap(p, n); p = c.peak.Load() {
	}
	c.mu.Lock()
	c.starts = append(c.starts, now)
	c.mu.Unlock()
	c.started.Add(1)
	select {
	case <-c.release:
	case <-ctx.Done():
	}
	time.Sleep(time.Millisecond) // work, or jobs would hardly ever meet
	return nil
}

func (c *crew) waiting(t *testing.T) int {
	t.Helper()
	return stateOf(t, c.gate, gated).Waiting
}

// rounds makes the servers fetch, again and again, and returns when they did:
// what they may take of the gated queue they have taken then.
func (c *crew) rounds(t *testing.T) {
	t.Helper()
	for range 20 {
		n := c.opened.Load()
		put(t, c.rdb, open, 1)
		if err := c.rdb.Eval(t.Context(), wake.Lua+`wake(KEYS[1])`, []string{wake.Key(open)}).Err(); err != nil && !errors.Is(err, redis.Nil) {
			t.Fatal(err)
		}
		eventually(t, "a job of the open queue runs", func() bool { return c.opened.Load() == n+1 })
	}
}

func (c *crew) firstStart(t *testing.T) time.Time {
	t.Helper()
	eventually(t, "a job starts", func() bool { return c.started.Load() > 0 })
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.starts[0]
}

// keepsTo checks that, but for the first jobs, no more had started at any time
// than a bucket that was full at from could give.
func (c *crew) keepsTo(t *testing.T, from time.Time, first int, rate, burst float64) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.SortFunc(c.starts, time.Time.Compare)
	for i, at := range c.starts[first:] {
		elapsed := at.Round(0).Sub(from).Seconds() // by the clock that Redis has too
		if n := float64(i + 1); n > burst+rate*elapsed {
			t.Fatalf("%v jobs had started after %.3f s, want no more than %v + %v × %.3f", n, elapsed, burst, rate, elapsed)
		}
	}
}

func TestServer_StartsNothingWhilePaused(t *testing.T) {
	t.Parallel()
	c := newCrew(t, testenv.Redis(t).Open(t)).free()
	put(t, c.rdb, gated, 20)
	pause(t, c.gate, gated, engine.Pause{})
	c.start(t, 1, 4)
	c.rounds(t)
	if n, w := c.started.Load(), c.waiting(t); n != 0 || w != 20 {
		t.Errorf("%d jobs started and %d wait in the pause, want 0 and 20", n, w)
	}
	if _, err := c.gate.Resume(t.Context(), gated); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all jobs ran", func() bool { return c.started.Load() == 20 })
}

// The moment the pause is in Redis nothing more is taken.
func TestServer_TakesNothingAfterAPause(t *testing.T) {
	t.Parallel()
	c := newCrew(t, testenv.Redis(t).Open(t))
	const jobs = 50
	put(t, c.rdb, gated, jobs)
	c.start(t, 2, 4)
	for range 5 {
		c.release <- struct{}{}
	}
	pause(t, c.gate, gated, engine.Pause{})
	left := c.waiting(t)
	close(c.release)
	c.rounds(t)
	if w := c.waiting(t); w != left || left == 0 {
		t.Errorf("%d jobs wait, %d did when the pause began", w, left)
	}
	eventually(t, "what was taken has run", func() bool { return c.started.Load() == int64(jobs-left) && c.running.Load() == 0 })
	if _, err := c.gate.Resume(t.Context(), gated); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all jobs ran", func() bool { return c.started.Load() == jobs })
}

// Nobody tells the workers that a pause is over.
func TestServer_GoesOnAfterATimedPause(t *testing.T) {
	t.Parallel()
	c := newCrew(t, testenv.Redis(t).Open(t)).free()
	put(t, c.rdb, gated, 10)
	until := redisTime(t, c.rdb).Add(2 * time.Second)
	pause(t, c.gate, gated, engine.Pause{Until: until})
	c.start(t, 1, 4)
	if at := c.firstStart(t); at.Before(until) {
		t.Errorf("a job started at %v, in a pause until %v", at, until)
	}
	eventually(t, "all jobs ran", func() bool { return c.started.Load() == 10 })
}

func TestServer_KeepsToTheFleetsConcurrency(t *testing.T) {
	t.Parallel()
	c := newCrew(t, testenv.Redis(t).Open(t))
	const jobs, slots = 300, 3
	put(t, c.rdb, gated, jobs)
	limit(t, c.gate, gated, engine.Limits{Concurrency: slots})
	c.start(t, 2, 8)
	eventually(t, "all slots are used", func() bool { return c.running.Load() == slots })
	c.rounds(t) // the other queue is not held up, and no slot too many is used
	if s := stateOf(t, c.gate, gated); s.Running != slots || s.Waiting != jobs-slots {
		t.Errorf("%d running and %d waiting, want %d and %d", s.Running, s.Waiting, slots, jobs-slots)
	}
	close(c.release)
	eventually(t, "all jobs ran", func() bool { return c.started.Load() == jobs && c.running.Load() == 0 })
	if n := c.peak.Load(); n != slots {
		t.Errorf("%d jobs ran at once, want %d", n, slots)
	}
}

// A raised limit acts while all slots are taken: no job ends that could cause
// another look. A lowered one stops nothing and starts nothing.
func TestServer_FollowsAChangedConcurrency(t *testing.T) {
	t.Parallel()
	c := newCrew(t, testenv.Redis(t).Open(t))
	const jobs = 30
	put(t, c.rdb, gated, jobs)
	limit(t, c.gate, gated, engine.Limits{Concurrency: 1})
	c.start(t, 2, 5)
	eventually(t, "the slot is used", func() bool { return c.running.Load() == 1 })
	limit(t, c.gate, gated, engine.Limits{Concurrency: 4})
	eventually(t, "the new slots are used", func() bool { return c.running.Load() == 4 })
	limit(t, c.gate, gated, engine.Limits{Concurrency: 2})
	c.release <- struct{}{}
	c.release <- struct{}{}
	eventually(t, "two jobs have ended", func() bool { return stateOf(t, c.gate, gated).Running == 2 })
	c.rounds(t)
	if n := c.started.Load(); n != 4 {
		t.Errorf("%d jobs started, want 4: the lowered limit is used up", n)
	}
	c.release <- struct{}{}
	eventually(t, "a slot is used again", func() bool { return c.started.Load() == 5 })
	limit(t, c.gate, gated, engine.Limits{})
	eventually(t, "all workers are busy", func() bool { return c.running.Load() == 10 })
	close(c.release)
	eventually(t, "all jobs ran", func() bool { return c.started.Load() == jobs })
}

func TestServer_KeepsToTheRate(t *testing.T) {
	t.Parallel()
	c := newCrew(t, testenv.Redis(t).Open(t)).free()
	const jobs, rate, burst = 110, 50.0, 5.0
	put(t, c.rdb, gated, jobs)
	from := redisTime(t, c.rdb)
	limit(t, c.gate, gated, engine.Limits{Rate: rate, Burst: burst})
	c.start(t, 2, 8)
	eventually(t, "all jobs ran", func() bool { return c.started.Load() == jobs })
	c.keepsTo(t, from, 0, rate, burst)
}

// A worker that waits for a token a quarter of an hour away hears of a better rate.
func TestServer_FollowsARaisedRate(t *testing.T) {
	t.Parallel()
	c := newCrew(t, testenv.Redis(t).Open(t)).free()
	put(t, c.rdb, gated, 20)
	limit(t, c.gate, gated, engine.Limits{Rate: 0.001, Burst: 1})
	c.start(t, 1, 4)
	eventually(t, "the burst is used", func() bool { return c.started.Load() == 1 })
	c.rounds(t)
	if n := c.started.Load(); n != 1 {
		t.Errorf("%d jobs started, want the burst of 1", n)
	}
	limit(t, c.gate, gated, engine.Limits{Rate: 1000, Burst: 1})
	eventually(t, "all jobs ran", func() bool { return c.started.Load() == 20 })
}

// The leases of a worker that crashed hold its slots, and no longer than they last.
func TestServer_GetsTheSlotsOfACrashedWorkerBack(t *testing.T) {
	t.Parallel()
	for name, lasts := range map[string]time.Duration{"over": -5 * time.Second, "for two seconds more": 2 * time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCrew(t, testenv.Redis(t).Open(t))
			put(t, c.rdb, gated, 5)
			limit(t, c.gate, gated, engine.Limits{Concurrency: 2})
			end := time.Unix(redisTime(t, c.rdb).Add(lasts).Unix(), 0)
			for _, id := range []string{"lost-1", "lost-2"} {
				if err := c.rdb.ZAdd(t.Context(), "asynq:{"+gated+"}:lease", redis.Z{Score: float64(end.Unix()), Member: id}).Err(); err != nil {
					t.Fatal(err)
				}
			}
			c.start(t, 1, 8)
			if at := c.firstStart(t); at.Before(end) {
				t.Errorf("a job started at %v, all slots were taken until %v", at, end)
			}
			eventually(t, "both slots are used", func() bool { return c.running.Load() == 2 })
			close(c.release)
			eventually(t, "all jobs ran", func() bool { return c.started.Load() == 5 })
			if n := c.peak.Load(); n != 2 {
				t.Errorf("%d jobs ran at once, want 2", n)
			}
		})
	}
}

// On a cluster the fetch goes queue by queue, each with its own gate.
func TestServer_KeepsToTheGateOnCluster(t *testing.T) {
	t.Parallel()
	c := newCrew(t, testenv.Cluster(t).Open(t))
	const jobs, slots, rate, burst = 60, 2, 40.0, 3.0
	put(t, c.rdb, gated, jobs)
	pause(t, c.gate, gated, engine.Pause{})
	c.start(t, 2, 4)
	c.rounds(t)
	if n := c.started.Load(); n != 0 {
		t.Errorf("%d jobs started in the pause", n)
	}
	limit(t, c.gate, gated, engine.Limits{Concurrency: slots})
	if _, err := c.gate.Resume(t.Context(), gated); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all slots are used", func() bool { return c.running.Load() == slots })
	c.rounds(t)
	if s := stateOf(t, c.gate, gated); s.Running != slots || s.Waiting != jobs-slots {
		t.Errorf("%d running and %d waiting, want %d and %d", s.Running, s.Waiting, slots, jobs-slots)
	}
	from := redisTime(t, c.rdb)
	limit(t, c.gate, gated, engine.Limits{Concurrency: slots, Rate: rate, Burst: burst})
	close(c.release)
	eventually(t, "all jobs ran", func() bool { return c.started.Load() == jobs && c.running.Load() == 0 })
	if n := c.peak.Load(); n != slots {
		t.Errorf("%d jobs ran at once, want %d", n, slots)
	}
	c.keepsTo(t, from, slots, rate, burst)
}

// The drops of a slow rate are not lost to the many looks of a busy worker.
func TestServer_FillsASlowBucket(t *testing.T) {
	t.Parallel()
	c := newCrew(t, testenv.Redis(t).Open(t)).free()
	put(t, c.rdb, gated, 1)
	const rate = 0.004
	key := "postroom:gate:{" + gated + "}"
	from := redisTime(t, c.rdb)
	if err := c.rdb.HSet(t.Context(), key, "rate", rate, "burst", 1, "tokens", 0, "at", from.UnixMilli()).Err(); err != nil {
		t.Fatal(err)
	}
	put(t, c.rdb, open, 2000)
	c.start(t, 1, 1) // a fetch for each job
	eventually(t, "the other queue is empty", func() bool { return c.opened.Load() == 2000 })
	least := rate * redisTime(t, c.rdb).Sub(from).Seconds()
	tokens := stateOf(t, c.gate, gated).Tokens
	most := rate * redisTime(t, c.rdb).Sub(from).Seconds()
	const rounding = 1e-9
	if tokens < least-rounding || tokens > most+rounding {
		t.Errorf("the bucket holds %.7f tokens, want between %.7f and %.7f", tokens, least, most)
	}
	if n := c.started.Load(); n != 0 {
		t.Errorf("%d jobs started without a token", n)
	}
}
