package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/internal/wake"
)

func testWatcher(rdb redis.UniversalClient, cluster bool, queues ...string) *watcher {
	weights := map[string]int{}
	for _, q := range queues {
		weights[q] = 1
	}
	return newWatcher(rdb, testPump(rdb, Config{Queues: weights, Concurrency: 4}, cluster), zerolog.Nop())
}

func redisNow(t *testing.T, rdb *redis.Client) time.Time {
	t.Helper()
	now, err := rdb.Time(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// due is an entry of the set of exact times.
type due struct {
	id string
	ms int64
}

// plan is what a queue holds at the start of a round.
type plan struct {
	scores map[string]int64 // of the scheduled jobs
	exact  []due
}

// delayedJobs writes queues with delayed jobs around now to each database: due,
// due at this second, due in the next, in groups, and with exact times, of which
// some are out of date.
func delayedJobs(t *testing.T, rnd *rand.Rand, now time.Time, queues []string, dbs ...*redis.Client) map[string]*plan {
	t.Helper()
	var commands [][]any
	add := func(args ...any) { commands = append(commands, args) }
	sec, ms := now.Unix(), now.UnixMilli()
	plans := map[string]*plan{}
	for _, q := range queues {
		p, pl := prefixOf(q), &plan{scores: map[string]int64{}}
		plans[q] = pl
		job := func(set, id string, score int64) {
			add("ZADD", p+set, score, id)
			state := []any{"HSET", p + "t:" + id, "msg", "m", "state", set}
			switch rnd.IntN(6) {
			case 0:
				state = append(state, "group", fmt.Sprint("g", rnd.IntN(2)))
			case 1:
				state = append(state, "group", "")
			case 2:
				return // its hash is gone
			}
			add(state...)
		}
		for _, set := range []string{"scheduled", "retry"} {
			n, same := rnd.IntN(20), false
			if rnd.IntN(8) == 0 {
				n, same = 90+rnd.IntN(200), rnd.IntN(2) == 0
			}
			for i := range n {
				id := fmt.Sprint(set, i)
				score := sec + []int64{0, 1, -1 - rnd.Int64N(100), -1 - rnd.Int64N(100), 3 + rnd.Int64N(100)}[rnd.IntN(5)]
				if same {
					score = sec // more at one time than a call moves
				}
				if set == "scheduled" {
					pl.scores[id] = score
				}
				job(set, id, score)
			}
		}
		n := rnd.IntN(8)
		if rnd.IntN(8) == 0 {
			n = 90 + rnd.IntN(150)
		}
		for i := range n {
			e := due{id: fmt.Sprint("exact", i), ms: ms - rnd.Int64N(1500)}
			ceil := (e.ms + 999) / 1000
			if e.ms%1000 == 0 {
				continue
			}
			switch rnd.IntN(7) {
			case 0: // the job is gone
			case 1: // it waits for another time
				pl.scores[e.id] = ceil + []int64{5, 1}[rnd.IntN(2)]
			case 2: // a job of that id failed meanwhile
				job("retry", e.id, sec+50)
			case 3: // not due
				e.ms += 10_000
				pl.scores[e.id] = (e.ms + 999) / 1000
			default:
				pl.scores[e.id] = ceil
			}
			if score, ok := pl.scores[e.id]; ok {
				job("scheduled", e.id, score)
			}
			add("ZADD", wake.DueKey(q), e.ms, e.id)
			pl.exact = append(pl.exact, e)
		}
		slices.SortFunc(pl.exact, func(a, b due) int { return cmp.Or(cmp.Compare(a.ms, b.ms), cmp.Compare(a.id, b.id)) })
		if rnd.IntN(3) == 0 {
			add("LPUSH", p+"pending", "waiting")
		}
	}
	for _, db := range dbs {
		if _, err := db.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			p.FlushDB(t.Context())
			for _, args := range commands {
				p.Do(t.Context(), args...)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return plans
}

// forwarding is asynq's script.
type forwarding struct {
	source *redis.Script
	db     *redis.Client
	now    time.Time
}

func (f forwarding) run(t *testing.T, queue, set string) {
	t.Helper()
	p := prefixOf(queue)
	if err := f.source.Run(t.Context(), f.db, []string{set, p + "pending"}, f.now.Unix(), p+"t:", f.now.UnixNano(), p+"g:").Err(); err != nil {
		t.Fatal(err)
	}
}

// once forwards what one call of ours is to forward: of each queue those whose
// exact time has come, then the scheduled ones and the retries, up to a hundred of
// each.
func (f forwarding) once(t *testing.T, queue string, pl *plan) {
	t.Helper()
	p := prefixOf(queue)
	for n := 0; n < maxForward && len(pl.exact) > 0 && pl.exact[0].ms <= f.now.UnixMilli(); n++ {
		e := pl.exact[0]
		pl.exact = pl.exact[1:]
		f.db.ZRem(t.Context(), wake.DueKey(queue), e.id)
		score, err := f.db.ZScore(t.Context(), p+"scheduled", e.id).Result()
		if err != nil || int64(score) != (e.ms+999)/1000 {
			continue
		}
		// asynq's script does the same to it as if it were the only one that is due.
		f.db.ZRem(t.Context(), p+"scheduled", e.id)
		f.db.ZAdd(t.Context(), p+"one", redis.Z{Score: 1, Member: e.id})
		f.run(t, queue, p+"one")
	}
	f.run(t, queue, p+"scheduled")
	f.run(t, queue, p+"retry")
}

var pendingSince = regexp.MustCompile(`pending_since:(\d{19})\b`)

// dumpDelayed is dump without claims, markers and the nanoseconds since when a job
// is pending, which must be those of now.
func dumpDelayed(t *testing.T, db *redis.Client, from, to time.Time) map[string]string {
	t.Helper()
	all := dump(t, db)
	for key, v := range all {
		if strings.HasPrefix(key, "postroom:wake:") || strings.HasSuffix(key, ":claim") {
			delete(all, key)
			continue
		}
		if m := pendingSince.FindStringSubmatch(v); m != nil {
			if m[1] < fmt.Sprint(from.UnixNano()) || m[1] > fmt.Sprint(to.UnixNano()) {
				t.Errorf("%s is pending since %s, which is not between %v and %v", key, m[1], from, to)
			}
			all[key] = pendingSince.ReplaceAllString(v, "pending_since:now")
		}
	}
	return all
}

// One call of ours does to every key what asynq's script does, over random
// histories, and says when the next job is due.
func TestWatcher_ForwardsLikeAsynq(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	source := asynqScripts(t, server).of(t, forwardCall).script()
	ours := redis.NewClient(&redis.Options{Addr: server.Addr(), DB: 1})
	theirs := redis.NewClient(&redis.Options{Addr: server.Addr(), DB: 2})
	defer ours.Close()
	defer theirs.Close()
	moves, ticks := 0, 0
	for round := 0; round < 80; {
		if forwardRound(t, rand.New(rand.NewPCG(uint64(round), 17)), source, ours, theirs, &moves) {
			round++
		} else if ticks++; ticks > 1000 {
			t.Fatal("no round ends in the second in which it begins")
		}
	}
	if moves == 0 {
		t.Error("no job was forwarded")
	}
}

// forwardRound returns false if Redis' clock went on to the next second meanwhile,
// which makes other jobs due than was planned.
func forwardRound(t *testing.T, rnd *rand.Rand, source *redis.Script, ours, theirs *redis.Client, moves *int) bool {
	t.Helper()
	queues := []string{"email:critical", "email:default", "email:bulk"}[:1+rnd.IntN(3)]
	now := redisNow(t, ours)
	plans := delayedJobs(t, rnd, now, queues, ours, theirs)
	w := testWatcher(ours, rnd.IntN(3) == 0, queues...)
	before, waited := map[string]int64{}, map[string]int64{}
	delayed := func(q string) int64 {
		p := prefixOf(q)
		return ours.ZCard(t.Context(), p+"scheduled").Val() + ours.ZCard(t.Context(), p+"retry").Val() + ours.ZCard(t.Context(), wake.DueKey(q)).Val()
	}
	for _, q := range queues {
		before[q] = ours.LLen(t.Context(), prefixOf(q)+"pending").Val()
		waited[q] = delayed(q)
	}
	for call := 0; ; call++ {
		start := redisNow(t, ours)
		found, err := w.forward(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		end := redisNow(t, ours)
		if end.Unix() != now.Unix() {
			return false
		}
		for _, q := range queues {
			forwarding{source: source, db: theirs, now: now}.once(t, q, plans[q])
		}
		a, b := dumpDelayed(t, ours, now, end), dumpDelayed(t, theirs, now, end)
		if diff := differences(a, b); diff != "" {
			t.Fatalf("call %d: the keys differ\n%s", call, diff)
		}
		waiting, more, many, next := false, false, false, int64(-1)
		for _, q := range queues {
			p, left := prefixOf(q), delayed(q)
			many = many || waited[q]-left >= maxForward
			waited[q] = left
			n := ours.LLen(t.Context(), p+"pending").Val()
			waiting = waiting || n > 0
			*moves += int(n - before[q])
			if marked := ours.LLen(t.Context(), wake.Key(q)).Val(); n > before[q] && marked != 1 || n == before[q] && marked != 0 {
				t.Fatalf("call %d: of %d jobs %d are pending, and %d markers are set", call, before[q], n, marked)
			}
			for set, scale := range map[string]int64{p + "scheduled": 1000, p + "retry": 1000, wake.DueKey(q): 1} {
				first := ours.ZRangeWithScores(t.Context(), set, 0, 0).Val()
				if len(first) == 0 {
					continue
				}
				ms := int64(first[0].Score) * scale
				if next < 0 || ms < next {
					next = ms
				}
				more = more || ms <= now.UnixMilli()
			}
		}
		if found.waiting != waiting {
			t.Fatalf("call %d: pending jobs: %t, and we found %t", call, waiting, found.waiting)
		}
		// The answer is one millisecond more than what is left, at Redis' time.
		switch {
		case more:
			if found.due != time.Millisecond {
				t.Fatalf("call %d: more jobs are due and we come back in %v", call, found.due)
			}
			continue
		case many && found.due == time.Millisecond: // there may be more
			continue
		case call > 0: // the claims are made
		case next < 0 || next > end.UnixMilli()+wake.Horizon.Milliseconds():
			if found.due >= 0 {
				t.Fatalf("no job is due soon and we come back in %v", found.due)
			}
		case next <= start.UnixMilli()+wake.Horizon.Milliseconds():
			if least, most := next-end.UnixMilli()+1, next-start.UnixMilli()+1; found.due.Milliseconds() < least || found.due.Milliseconds() > most {
				t.Fatalf("a job is due in %d to %d ms and we come back in %v", least, most, found.due)
			}
		}
		return true
	}
}

// schedule adds a delayed job with an exact time, as our producer does.
func schedule(t *testing.T, rdb *redis.Client, queue, id string, ms int64) {
	t.Helper()
	p := prefixOf(queue)
	if _, err := rdb.TxPipelined(t.Context(), func(tx redis.Pipeliner) error {
		tx.HSet(t.Context(), p+"t:"+id, "msg", "m", "state", "scheduled")
		tx.ZAdd(t.Context(), p+"scheduled", redis.Z{Score: float64((ms + 999) / 1000), Member: id})
		if ms%1000 != 0 {
			tx.ZAdd(t.Context(), wake.DueKey(queue), redis.Z{Score: float64(ms), Member: id})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// A job is moved in the millisecond in which it is due and never before, whoever
// had undertaken to do it.
func TestWatcher_ForwardsToTheMillisecond(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	w := testWatcher(rdb, false, testQueue)
	const p = "asynq:{" + testQueue + "}:"
	const jobs = 40
	left := map[string]int64{}
	begin := redisNow(t, rdb).UnixMilli()
	for i := range jobs {
		id, ms := fmt.Sprint("job", i), begin+20+int64(i)*37
		left[id] = ms
		schedule(t, rdb, testQueue, id, ms)
	}
	deadline := time.Now().Add(30 * time.Second)
	for len(left) > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("%d jobs were not forwarded", len(left))
		}
		// Another process has undertaken to forward the next one, and died.
		next := slices.Min(mapValues(left))
		if err := rdb.Set(t.Context(), claimKey(testQueue), fmt.Sprint(next, " other"), 0).Err(); err != nil {
			t.Fatal(err)
		}
		before := redisNow(t, rdb).UnixMilli()
		if _, err := w.forward(t.Context()); err != nil {
			t.Fatal(err)
		}
		after := redisNow(t, rdb).UnixMilli()
		pending := rdb.LRange(t.Context(), p+"pending", 0, -1).Val()
		for id, ms := range left {
			moved := slices.Contains(pending, id)
			if moved && after < ms {
				t.Fatalf("%s was moved %d ms before its time", id, ms-after)
			}
			if !moved && before >= ms {
				t.Fatalf("%s was not moved %d ms after its time", id, before-ms)
			}
			if moved {
				delete(left, id)
				_, inDue := rdb.ZScore(t.Context(), wake.DueKey(testQueue), id).Result()
				_, inScheduled := rdb.ZScore(t.Context(), p+"scheduled", id).Result()
				if !errors.Is(inDue, redis.Nil) || !errors.Is(inScheduled, redis.Nil) {
					t.Fatalf("%s was moved and still waits for its time", id)
				}
			}
		}
	}
	if n := rdb.LLen(t.Context(), p+"pending").Val(); n != jobs {
		t.Errorf("%d jobs are pending, want %d", n, jobs)
	}
	if n := rdb.LLen(t.Context(), wake.Key(testQueue)).Val(); n != 1 {
		t.Errorf("%d markers are set, want one", n)
	}
}

func mapValues(m map[string]int64) []int64 {
	var all []int64
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

// Of all that look at the same moment one is told to come back when the next job
// is due.
func TestWatcher_OneClaimsTheNextJob(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	claim := claimKey(testQueue)
	tests := []struct {
		name  string
		stale func(ctx context.Context, rdb *redis.Client, ms int64) // what is claimed already
		told  int
	}{
		{"nothing claimed", func(context.Context, *redis.Client, int64) {}, 1},
		{"an earlier one claimed", func(ctx context.Context, rdb *redis.Client, ms int64) {
			rdb.Set(ctx, claim, fmt.Sprint(ms-700, " other"), 0)
		}, 1},
		{"a later one claimed", func(ctx context.Context, rdb *redis.Client, ms int64) {
			rdb.Set(ctx, claim, fmt.Sprint(ms+700, " other"), 0)
		}, 1},
		{"claim unreadable", func(ctx context.Context, rdb *redis.Client, _ int64) { rdb.Set(ctx, claim, "x", 0) }, 1},
		{"this one claimed", func(ctx context.Context, rdb *redis.Client, ms int64) {
			rdb.Set(ctx, claim, fmt.Sprint(ms, " other"), time.Minute)
		}, 0},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), DB: i})
			defer rdb.Close()
			for checked, attempts := 0, 0; checked < 6; attempts++ {
				if attempts == 100 {
					t.Fatal("no look ends before the job is due")
				}
				exact := int64(attempts%2) * 250
				rdb.FlushDB(t.Context())
				now := redisNow(t, rdb)
				ms := now.Unix()*1000 + 1000 + exact // between 0 and 1.25 s from now
				schedule(t, rdb, testQueue, "job", ms)
				// A second delayed job changes nothing.
				schedule(t, rdb, testQueue, "later", ms+300)
				tt.stale(t.Context(), rdb, ms)
				var wg sync.WaitGroup
				var mu sync.Mutex
				told, begin := 0, make(chan struct{})
				for range 8 {
					w := testWatcher(rdb, false, testQueue)
					wg.Go(func() {
						<-begin
						found, err := w.forward(t.Context())
						mu.Lock()
						defer mu.Unlock()
						if err != nil {
							t.Error(err)
						}
						if found.due >= 0 {
							told++
						}
					})
				}
				close(begin)
				wg.Wait()
				if redisNow(t, rdb).UnixMilli() >= ms {
					continue // it became due meanwhile, and the next one was claimed as well
				}
				checked++
				if told != tt.told {
					t.Errorf("%d of 8 were told to come back, want %d", told, tt.told)
				}
				if ttl := rdb.PTTL(t.Context(), claim).Val(); ttl <= 0 {
					t.Errorf("the claim lives for %v: if its owner dies nobody else can claim", ttl)
				}
				if n := rdb.ZCard(t.Context(), prefixOf(testQueue)+"scheduled").Val(); n != 2 {
					t.Errorf("%d jobs wait, want 2", n)
				}
			}
		})
	}
	t.Run("who claimed is told again", func(t *testing.T) {
		t.Parallel()
		rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), DB: len(tests) + 1})
		defer rdb.Close()
		ms := redisNow(t, rdb).Unix()*1000 + 2000
		schedule(t, rdb, testQueue, "job", ms)
		w := testWatcher(rdb, false, testQueue)
		for look := range 3 { // another reason to look must not lose the appointment
			if found, err := w.forward(t.Context()); redisNow(t, rdb).UnixMilli() < ms && (err != nil || found.due < 0) {
				t.Errorf("look %d: not told to come back (%v)", look, err)
			}
		}
	})
	t.Run("not soon", func(t *testing.T) {
		t.Parallel()
		rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), DB: len(tests)})
		defer rdb.Close()
		schedule(t, rdb, testQueue, "job", redisNow(t, rdb).UnixMilli()+60_000)
		found, err := testWatcher(rdb, false, testQueue).forward(t.Context())
		if err != nil || found.due >= 0 || rdb.Exists(t.Context(), claim).Val() != 0 {
			t.Errorf("for a job in a minute: come back in %v (%v)", found.due, err)
		}
	})
}

// A queue whose time is out of date moves nothing that is not due by asynq's own
// time, and the entry is gone.
func TestWatcher_DropsStaleTimes(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	const p = "asynq:{" + testQueue + "}:"
	now := redisNow(t, rdb)
	past := now.UnixMilli() - 5_001
	for id, score := range map[string]float64{"later": float64(now.Unix() + 100), "much later": 4e9} {
		rdb.ZAdd(t.Context(), p+"scheduled", redis.Z{Score: score, Member: id})
		rdb.ZAdd(t.Context(), wake.DueKey(testQueue), redis.Z{Score: float64(past), Member: id})
	}
	rdb.ZAdd(t.Context(), wake.DueKey(testQueue), redis.Z{Score: float64(past), Member: "gone"})
	found, err := testWatcher(rdb, false, testQueue).forward(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if found.waiting || found.due >= 0 {
		t.Errorf("found %+v", found)
	}
	if n := rdb.ZCard(t.Context(), p+"scheduled").Val(); n != 2 {
		t.Errorf("%d of 2 jobs still wait", n)
	}
	if n := rdb.Exists(t.Context(), wake.DueKey(testQueue), p+"pending", p+"t:gone", p+"t:later", wake.Key(testQueue)).Val(); n != 0 {
		t.Errorf("%d keys exist of those that should not", n)
	}
}

// Redis gone, the watcher says so and moves nothing.
func TestWatcher_ForwardFails(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1})
	defer rdb.Close()
	server.Kill()
	for _, cluster := range []bool{false, true} {
		if found, err := testWatcher(rdb, cluster, testQueue).forward(t.Context()); err == nil || errors.Is(err, redis.Nil) || found.due >= 0 || found.waiting {
			t.Errorf("cluster %t: found %+v (%v)", cluster, found, err)
		}
	}
}

// A key of the wrong type is its job's misfortune: the other jobs are forwarded,
// and nobody comes back at once for it, again and again.
func TestWatcher_ADamagedJobStopsNobody(t *testing.T) {
	t.Parallel()
	rdb := redis.NewClient(&redis.Options{Addr: testenv.Redis(t).Addr()})
	defer rdb.Close()
	now := redisNow(t, rdb).UnixMilli()
	for i, id := range []string{"a", "bad", "c"} {
		schedule(t, rdb, testQueue, id, now-5000+int64(i)*1000)
	}
	if err := rdb.Set(t.Context(), prefixOf(testQueue)+"t:bad", "x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	found, err := testWatcher(rdb, false, testQueue).forward(t.Context())
	if err != nil || found.due >= 0 || !found.waiting {
		t.Errorf("found %+v (%v)", found, err)
	}
	if ids := rdb.LRange(t.Context(), prefixOf(testQueue)+"pending", 0, -1).Val(); !slices.Equal(ids, []string{"c", "a"}) {
		t.Errorf("forwarded %v", ids)
	}
}
