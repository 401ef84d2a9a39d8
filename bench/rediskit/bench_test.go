package rediskit_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/rediskit/cache"
	"github.com/medicalink/postroom/rediskit/pubsub"
	"github.com/medicalink/postroom/rediskit/ratelimit"
)

var (
	rounds = flag.Int("rounds", 1, "how often each pair is measured")
	out    = flag.String("out", "", "file for the table; empty to write none")
)

const (
	callers  = 32   // at once, where calls a second are measured
	chunk    = 1000 // calls of one side before it is the other's turn
	stampede = 1000 // callers of one missing key
	loadTime = 10 * time.Millisecond
)

type user struct {
	ID    int      `json:"id"`
	Name  string   `json:"name"`
	Email string   `json:"email"`
	Roles []string `json:"roles"`
}

var ada = user{ID: 123, Name: "Ada Lovelace", Email: "ada@example.org", Roles: []string{"doctor", "admin"}}

// pair is a call of ours and what it stands beside. i counts the calls.
type pair struct {
	name, beside string
	bare, ours   func(i int) error
}

// BenchmarkRediskit measures every pair once a round.
func BenchmarkRediskit(b *testing.B) {
	client := testenv.Redis(b)
	cfg := client.Config()
	cfg.Service = "bench"
	lab := &lab{b: b, client: open(b, cfg), second: open(b, cfg)}
	load := loadAverage()
	latency, throughput := lab.pairs()
	report := newReport()
	for round := range *rounds {
		for _, p := range latency {
			var s sample
			b.Run(fmt.Sprintf("latency/%s/%s/%d", p.name, p.beside, round), func(b *testing.B) { s = compareLatency(b, p) })
			report.add(report.latency, p, s)
		}
		for _, p := range throughput {
			var s sample
			b.Run(fmt.Sprintf("throughput/%s/%s/%d", p.name, p.beside, round), func(b *testing.B) { s = compareThroughput(b, p) })
			report.add(report.throughput, p, s)
		}
		b.Run(fmt.Sprintf("stampede/%d", round), func(b *testing.B) {
			report.stampedes = append(report.stampedes, lab.stampede(b, round))
		})
	}
	if *out != "" {
		if err := report.write(b.Context(), *out, latency, throughput, load); err != nil {
			b.Fatal(err)
		}
	}
}

func open(b *testing.B, cfg rediskit.Config) *rediskit.Client {
	b.Helper()
	client, err := rediskit.Open(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = client.Close() })
	return client
}

// compareLatency lets one caller make both calls in turn.
func compareLatency(b *testing.B, p pair) sample {
	b.Helper()
	var bare, ours []time.Duration
	timed := func(i int, call func(int) error, times *[]time.Duration) {
		start := time.Now()
		err := call(i)
		*times = append(*times, time.Since(start))
		if err != nil {
			b.Fatal(err)
		}
	}
	for i := 0; b.Loop(); i++ {
		if i%2 == 0 {
			timed(i, p.bare, &bare)
			timed(i, p.ours, &ours)
		} else {
			timed(i, p.ours, &ours)
			timed(i, p.bare, &bare)
		}
	}
	s := sample{
		bare: quantile(bare, 0.5), ours: quantile(ours, 0.5),
		bareP99: quantile(bare, 0.99), oursP99: quantile(ours, 0.99),
	}
	b.ReportMetric(0, "ns/op") // of both together: means nothing
	b.ReportMetric(s.bare, "bare-µs")
	b.ReportMetric(s.ours, "ours-µs")
	b.ReportMetric(s.ratio(), "ours/bare")
	return s
}

// compareThroughput lets many callers make one call, then the other, in turn.
func compareThroughput(b *testing.B, p pair) sample {
	b.Helper()
	var bare, ours time.Duration
	done := 0
	for turn := 0; done == 0 || done < 5*b.N; turn++ {
		if turn%2 == 0 {
			bare += manyCalls(b, done, p.bare)
			ours += manyCalls(b, done, p.ours)
		} else {
			ours += manyCalls(b, done, p.ours)
			bare += manyCalls(b, done, p.bare)
		}
		done += chunk
	}
	s := sample{bare: float64(done) / bare.Seconds(), ours: float64(done) / ours.Seconds()}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(s.bare, "bare/s")
	b.ReportMetric(s.ours, "ours/s")
	b.ReportMetric(s.ratio(), "ours/bare")
	return s
}

func manyCalls(b *testing.B, first int, call func(int) error) time.Duration {
	b.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for range callers {
		wg.Go(func() {
			for i := next.Add(1); i <= chunk; i = next.Add(1) {
				if err := call(first + int(i)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(start)
}

// lab is what the calls are made with.
type lab struct {
	b              *testing.B
	client, second *rediskit.Client
}

func must[T any](b *testing.B, value T, err error) T {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
	return value
}

func (l *lab) pairs() (latency, throughput []pair) {
	get, getJSON, cached := l.cache()
	latency = append(latency, pair{"two equal calls", "GET", get, get})
	latency = append(latency, cached...)
	latency = append(latency, l.publish())
	throughput = append(throughput, pair{"two equal calls", "GET", get, get}, pair{"cache.Get", "GET + JSON", getJSON, cached[1].ours})
	for _, algorithm := range []ratelimit.Algorithm{ratelimit.SlidingWindow, ratelimit.GCRA} {
		same, incr := l.limit(algorithm)
		latency = append(latency, same, incr)
		throughput = append(throughput, same, incr)
	}
	return latency, throughput
}

// cache pairs reads and writes of one value with GET and SET; "+ JSON" is with
// the encoding that a service would have to write.
func (l *lab) cache() (get, getJSON func(int) error, pairs []pair) {
	b, ctx, client := l.b, l.b.Context(), l.client
	users, err := cache.Of[user](client, "user", cache.Config{TTL: time.Hour, OnError: cache.Fail})
	users = must(b, users, err)
	bypass, err := cache.Of[user](client, "user", cache.Config{TTL: time.Hour, OnError: cache.Bypass})
	bypass = must(b, bypass, err)
	if err := users.Set(ctx, "123", ada); err != nil {
		b.Fatal(err)
	}
	key := client.Key("user", "123")
	raw, err := json.Marshal(ada)
	raw = must(b, raw, err)

	get = func(int) error { return client.Get(ctx, key).Err() }
	getJSON = func(int) error {
		raw, err := client.Get(ctx, key).Bytes()
		if err != nil {
			return err
		}
		var u user
		return json.Unmarshal(raw, &u)
	}
	set := func(int) error { return client.Set(ctx, key, raw, time.Hour).Err() }
	setJSON := func(int) error {
		raw, err := json.Marshal(ada)
		if err != nil {
			return err
		}
		return client.Set(ctx, key, raw, time.Hour).Err()
	}
	load := func(context.Context) (user, error) { return user{}, errors.New("loaded although it is there") }
	oursGet := func(int) error { _, _, err := users.Get(ctx, "123"); return err }
	oursSet := func(int) error { return users.Set(ctx, "123", ada) }
	return get, getJSON, []pair{
		{"cache.Get", "GET", get, oursGet},
		{"cache.Get", "GET + JSON", getJSON, oursGet},
		{"cache.Get, Bypass", "GET + JSON", getJSON, func(int) error { _, _, err := bypass.Get(ctx, "123"); return err }},
		{"cache.GetOrLoad, hit", "GET + JSON", getJSON, func(int) error { _, err := users.GetOrLoad(ctx, "123", load); return err }},
		{"cache.Set", "SET", set, oursSet},
		{"cache.Set", "SET + JSON", setJSON, oursSet},
	}
}

// publish pairs a message from Publish to its handler with one from go-redis's
// Publish to a loop on ReceiveMessage that decodes it.
func (l *lab) publish() pair {
	b, ctx, client := l.b, l.b.Context(), l.client
	bus, err := pubsub.New(client, pubsub.Config{})
	bus = must(b, bus, err)
	topic, err := pubsub.Of[user](bus, "ours")
	topic = must(b, topic, err)
	got := make(chan struct{}, 1)
	sub, err := topic.Subscribe(ctx,
		func(context.Context, pubsub.Message[user]) { got <- struct{}{} },
		func(_ context.Context, g pubsub.Gap) { b.Error(g) })
	sub = must(b, sub, err)
	b.Cleanup(func() { _ = sub.Close() })

	publisher := client.Dedicated("bare-publisher")
	bare := client.Dedicated("bare-subscriber").Subscribe(ctx, "bare")
	_, err = bare.Receive(ctx) // the confirmation
	if err != nil {
		b.Fatal(err)
	}
	bareGot, ended := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			m, err := bare.ReceiveMessage(ctx)
			if err != nil {
				return // closed
			}
			var u user
			if err := json.Unmarshal([]byte(m.Payload), &u); err != nil {
				b.Error(err)
			}
			bareGot <- struct{}{}
		}
	}()
	b.Cleanup(func() { _ = bare.Close(); <-ended })

	return pair{
		"pubsub, publish to receive", "PUBLISH + JSON",
		func(int) error {
			raw, err := json.Marshal(ada)
			if err != nil {
				return err
			}
			if err := publisher.Publish(ctx, "bare", raw).Err(); err != nil {
				return err
			}
			<-bareGot
			return nil
		},
		func(int) error {
			if err := topic.Publish(ctx, ada); err != nil {
				return err
			}
			<-got
			return nil
		},
	}
}

// limit pairs a decision with the EVALSHA that it sends, and with an INCR, the
// least that a counter can cost. A hundred users have 100 calls a second each, so
// that some calls are admitted and some refused.
func (l *lab) limit(algorithm ratelimit.Algorithm) (same, incr pair) {
	b, ctx, client := l.b, l.b.Context(), l.client
	const limit, window = 100, time.Second
	name := map[ratelimit.Algorithm]string{ratelimit.SlidingWindow: "ratelimit.Allow, sliding window", ratelimit.GCRA: "ratelimit.Allow, GCRA"}[algorithm]
	cfg := ratelimit.Config{Algorithm: algorithm, OnError: ratelimit.FailClosed, Timeout: 10 * time.Second}

	// What a limiter sends is seen by a hook on a client of its own.
	watched := open(b, client.Config())
	seen := &recorder{}
	watched.AddHook(seen)
	limiter, err := ratelimit.New(watched, cfg)
	limiter = must(b, limiter, err)
	for range 2 { // the first loads the script
		if _, err := limiter.Allow(ctx, "user:", limit, window); err != nil {
			b.Fatal(err)
		}
	}
	sha, prefix, args := seen.script(b)

	limiter, err = ratelimit.New(client, cfg)
	limiter = must(b, limiter, err)
	ours := func(i int) error {
		_, err := limiter.Allow(ctx, "user:"+strconv.Itoa(i%100), limit, window)
		return err
	}
	same = pair{name, "the same EVALSHA", func(i int) error {
		_, err := client.EvalSha(ctx, sha, []string{prefix + strconv.Itoa(i%100)}, args...).Int64Slice()
		return err
	}, ours}
	incr = pair{name, "INCR", func(i int) error { return client.Incr(ctx, "incr:"+strconv.Itoa(i%100)).Err() }, ours}
	return same, incr
}

// recorder keeps the last script call.
type recorder struct{ last []any }

func (r *recorder) DialHook(next redis.DialHook) redis.DialHook { return next }

func (r *recorder) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" {
			r.last = cmd.Args()
		}
		return next(ctx, cmd)
	}
}

func (r *recorder) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// script takes EVALSHA sha 1 key args… apart.
func (r *recorder) script(b *testing.B) (sha, key string, args []any) {
	b.Helper()
	if len(r.last) < 4 || fmt.Sprint(r.last[2]) != "1" {
		b.Fatalf("a decision is not one script call on one key: %v", r.last)
	}
	return fmt.Sprint(r.last[1]), fmt.Sprint(r.last[3]), r.last[4:]
}

// stampede lets many callers of two clients want the same missing key at once,
// whose load takes loadTime, first with GET and SET, then with GetOrLoad.
func (l *lab) stampede(b *testing.B, round int) (s stampedeSample) {
	b.Helper()
	var loads atomic.Int64
	load := func(context.Context) (user, error) {
		loads.Add(1)
		time.Sleep(loadTime)
		return ada, nil
	}
	var caches [2]*cache.Cache[user]
	clients := [2]*rediskit.Client{l.client, l.second}
	for i, client := range clients {
		users, err := cache.Of[user](client, "stampede", cache.Config{TTL: time.Hour, OnError: cache.Fail})
		caches[i] = must(b, users, err)
	}
	// Without a benchmark's loop: a key is missing once.
	id := strconv.Itoa(round)
	s.bareTime = l.rush(b, func(ctx context.Context, i int) error {
		client, key := clients[i%2], l.client.Key("bare", id)
		if err := client.Get(ctx, key).Err(); !errors.Is(err, redis.Nil) {
			return err
		}
		value, err := load(ctx)
		if err != nil {
			return err
		}
		raw, err := json.Marshal(value)
		if err != nil {
			return err
		}
		return client.Set(ctx, key, raw, time.Hour).Err()
	})
	s.bareLoads = loads.Swap(0)
	s.oursTime = l.rush(b, func(ctx context.Context, i int) error {
		_, err := caches[i%2].GetOrLoad(ctx, id, load)
		return err
	})
	s.oursLoads = loads.Load()
	// A second run for this round (the testing package may do that) finds nothing missing.
	if err := errors.Join(l.client.Del(b.Context(), l.client.Key("bare", id)).Err(), caches[0].Delete(b.Context(), id)); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(s.bareLoads), "bare-loads")
	b.ReportMetric(float64(s.oursLoads), "our-loads")
	return s
}

func (l *lab) rush(b *testing.B, call func(ctx context.Context, i int) error) time.Duration {
	b.Helper()
	ctx := b.Context()
	gate := make(chan struct{})
	var wg sync.WaitGroup
	for i := range stampede {
		wg.Go(func() {
			<-gate
			if err := call(ctx, i); err != nil {
				b.Error(err)
			}
		})
	}
	start := time.Now()
	close(gate)
	wg.Wait()
	return time.Since(start)
}
