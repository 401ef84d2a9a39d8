package tasks

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/internal/wake"
)

// A twin is two databases of one server that are to have the same history: one
// through asynq's own client, one through a producer.
type twin struct {
	theirs, ours *redis.Client
	client       *asynq.Client
	inspectors   [2]*asynq.Inspector
	producer     *Producer
	queues       []string

	due map[string]map[string]float64 // what the queues' DueKeys must hold
}

func newTwin(t *testing.T, server *testenv.RedisServer, db int, wrap func(redis.UniversalClient) redis.UniversalClient) *twin {
	t.Helper()
	open := func(db int) *redis.Client {
		c := redis.NewClient(&redis.Options{Addr: server.Addr(), DB: db})
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	w := &twin{theirs: open(db), ours: open(db + 1), due: map[string]map[string]float64{}}
	w.client = asynq.NewClientFromRedisClient(w.theirs)
	w.inspectors = [2]*asynq.Inspector{asynq.NewInspectorFromRedisClient(w.theirs), asynq.NewInspectorFromRedisClient(w.ours)}
	var rdb redis.UniversalClient = w.ours
	if wrap != nil {
		rdb = wrap(rdb)
	}
	w.producer = newProducer(t, rdb)
	for _, p := range []PriorityLevel{Critical, Default, Bulk} {
		w.queues = append(w.queues, EmailQueue(w.producer.namespace, p))
	}
	return w
}

// run makes a random history and returns the first difference.
func (w *twin) run(ctx context.Context, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 0))
	for step := range 12 {
		if rng.IntN(3) == 0 {
			if err := w.disturb(ctx, rng); err != nil {
				return err
			}
		}
		if err := w.enqueue(ctx, w.jobs(rng)); err != nil {
			return fmt.Errorf("seed %d, step %d: %w", seed, step, err)
		}
		if err := w.compare(ctx); err != nil {
			return fmt.Errorf("seed %d, step %d: %w", seed, step, err)
		}
	}
	return nil
}

// jobs returns a batch in which ids come twice, in it and in the history.
func (w *twin) jobs(rng *rand.Rand) []*job {
	jobs := make([]*job, 1+rng.IntN(40))
	for i := range jobs {
		now := time.Now().UTC()
		j := &job{
			plan: plan{
				queue: w.queues[rng.IntN(len(w.queues))], enqueuedAt: now, processAt: now,
				maxRetry: 1 + rng.IntN(3), timeout: time.Duration(1+rng.IntN(3)) * time.Minute, retention: time.Duration(rng.IntN(2)) * time.Hour,
			},
			id: fmt.Sprint("id", rng.IntN(80)), payload: fmt.Appendf(nil, `{"v":%d}`, rng.IntN(1000)),
		}
		switch rng.IntN(4) {
		case 0: // a whole second
			j.processAt = now.Truncate(time.Second).Add(time.Hour)
		case 1:
			j.processAt = now.Add(time.Hour + time.Duration(rng.IntN(3_000_000))*time.Microsecond)
		}
		for n := range rng.IntN(4) {
			j.headers = append(j.headers, header{fmt.Sprint("header", n), strings.Repeat("ä", rng.IntN(200))})
		}
		w.producer.put(j)
		jobs[i] = j
	}
	return jobs
}

// enqueue hands jobs to asynq one by one and to the producer at once.
func (w *twin) enqueue(ctx context.Context, jobs []*job) error {
	conflicts := make([]bool, len(jobs))
	for i, j := range jobs {
		task, opts := j.task()
		_, err := w.client.EnqueueContext(ctx, task, opts...)
		if conflicts[i] = errors.Is(err, asynq.ErrTaskIDConflict); err != nil && !conflicts[i] {
			return err
		}
	}
	markers := map[string]bool{}
	for _, queue := range w.queues {
		if err := w.ours.Del(ctx, wake.Key(queue), wake.DelayedKey(queue)).Err(); err != nil {
			return err
		}
	}
	taken := w.producer.enqueue(ctx, jobs)
	for i, j := range jobs {
		if got := slices.Contains(taken, j); got != conflicts[i] {
			return fmt.Errorf("job %d: taken = %v, asynq says %v", i, got, conflicts[i])
		}
		if !conflicts[i] && (!j.settled || j.result.Err != nil || j.result.Receipt.ID != j.id) {
			return fmt.Errorf("job %d: settled = %v, %+v", i, j.settled, j.result)
		}
		switch ms := ceilMilli(j.processAt); {
		case conflicts[i]:
		case !j.delayed():
			markers[j.queue] = true
		case ms%1000 != 0:
			if w.due[j.queue] == nil {
				w.due[j.queue] = map[string]float64{}
			}
			w.due[j.queue][j.id] = float64(ms)
		}
	}
	for _, queue := range w.queues {
		n, err := w.ours.LLen(ctx, wake.Key(queue)).Result()
		if want := map[bool]int64{true: 1}[markers[queue]]; err != nil || n != want {
			return fmt.Errorf("marker of %s has %d elements, want %d (%w)", queue, n, want, err)
		}
		if n, err := w.ours.Exists(ctx, wake.DelayedKey(queue)).Result(); err != nil || n != 0 {
			return fmt.Errorf("%s has a marker for jobs that are due in an hour (%w)", queue, err)
		}
		due := map[string]float64{}
		entries, err := w.ours.ZRangeWithScores(ctx, wake.DueKey(queue), 0, -1).Result()
		for _, z := range entries {
			due[z.Member.(string)] = z.Score
		}
		if err != nil || !maps.Equal(due, w.due[queue]) {
			return fmt.Errorf("due times of %s are %v, want %v (%w)", queue, due, w.due[queue], err)
		}
	}
	return nil
}

// disturb does the same to both databases: what workers and people do.
func (w *twin) disturb(ctx context.Context, rng *rand.Rand) error {
	prefix := "asynq:{" + w.queues[rng.IntN(len(w.queues))] + "}:"
	id := fmt.Sprint("id", rng.IntN(80))
	what := rng.IntN(4)
	for _, rdb := range []*redis.Client{w.theirs, w.ours} {
		pipe := rdb.Pipeline()
		switch what {
		case 0:
			pipe.RPopLPush(ctx, prefix+"pending", prefix+"active")
		case 1:
			pipe.Del(ctx, prefix+"t:"+id)
			pipe.LRem(ctx, prefix+"pending", 0, id)
			pipe.ZRem(ctx, prefix+"scheduled", id)
		case 2:
			pipe.Del(ctx, prefix+"pending")
		case 3:
			pipe.PExpireAt(ctx, prefix+"t:"+id, time.Unix(4e9, 0))
		}
		if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
	}
	return nil
}

// compare compares everything in the two databases but the producer's own keys.
func (w *twin) compare(ctx context.Context) error {
	theirs, err := w.contents(ctx, w.theirs, w.inspectors[0])
	if err != nil {
		return err
	}
	ours, err := w.contents(ctx, w.ours, w.inspectors[1])
	if err != nil {
		return err
	}
	for key := range maps.All(theirs) {
		if !reflect.DeepEqual(theirs[key], ours[key]) {
			return fmt.Errorf("%s is\n%+v, after asynq\n%+v", key, ours[key], theirs[key])
		}
	}
	for key := range ours {
		if theirs[key] == nil {
			return fmt.Errorf("%s would not be there after asynq", key)
		}
	}
	return nil
}

func (w *twin) contents(ctx context.Context, rdb *redis.Client, inspector *asynq.Inspector) (map[string]any, error) {
	keys, err := rdb.Keys(ctx, "*").Result()
	if err != nil {
		return nil, err
	}
	found := map[string]any{}
	for _, key := range keys {
		if strings.HasPrefix(key, "postroom:wake:") || strings.HasPrefix(key, "postroom:due:") {
			continue
		}
		kind, err := rdb.Type(ctx, key).Result()
		if err != nil {
			return nil, err
		}
		var value any
		switch kind {
		case "list":
			value, err = rdb.LRange(ctx, key, 0, -1).Result()
		case "zset":
			value, err = rdb.ZRangeWithScores(ctx, key, 0, -1).Result()
		case "set":
			var members []string
			members, err = rdb.SMembers(ctx, key).Result()
			slices.Sort(members)
			value = members
		case "hash":
			value, err = w.task(ctx, rdb, inspector, key)
		default:
			err = fmt.Errorf("%s is a %s", key, kind)
		}
		if err != nil {
			return nil, err
		}
		expiry, err := rdb.PExpireTime(ctx, key).Result()
		if err != nil {
			return nil, err
		}
		found[key] = []any{value, expiry}
	}
	return found, nil
}

// task returns the fields of a job's hash, with the message decoded (protobuf
// writes the headers in any order) and pending_since by its form.
func (w *twin) task(ctx context.Context, rdb *redis.Client, inspector *asynq.Inspector, key string) (any, error) {
	hash, err := rdb.HGetAll(ctx, key).Result()
	if err != nil {
		return nil, err
	}
	if since, ok := hash["pending_since"]; ok {
		hash["pending_since"] = fmt.Sprint(len(since), " digits")
	}
	delete(hash, "msg")
	queue, id, _ := strings.Cut(strings.TrimPrefix(key, "asynq:{"), "}:t:")
	info, err := inspector.GetTaskInfo(queue, id)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if info.State == asynq.TaskStatePending {
		info.NextProcessAt = time.Time{} // the time of the look
	}
	return []any{hash, *info}, nil
}

func TestEnqueueMany_DoesWhatAsynqDoes(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	for seed := range uint64(20) {
		w := newTwin(t, server, 0, nil)
		if err := w.run(t.Context(), seed); err != nil {
			t.Error(err)
		}
		if err := w.ours.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// brokenScript runs another script in the place of enqueueMany.
type brokenScript struct {
	redis.UniversalClient

	script string
}

func (c brokenScript) EvalSha(ctx context.Context, _ string, keys []string, args ...any) *redis.Cmd {
	return c.Eval(ctx, c.script, keys, args...)
}

func (c brokenScript) Pipeline() redis.Pipeliner {
	return brokenPipeline{c.UniversalClient.Pipeline(), c.script}
}

type brokenPipeline struct {
	redis.Pipeliner

	script string
}

func (p brokenPipeline) EvalSha(ctx context.Context, _ string, keys []string, args ...any) *redis.Cmd {
	return p.Eval(ctx, p.script, keys, args...)
}

// The test above sees a script that does anything else.
func TestEnqueueMany_DifferencesAreSeen(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	for name, change := range map[string][2]string{
		"forgets who is there":        {`call("EXISTS", unpack(KEYS, 6)) == 0`, `true`},
		"takes all for new":           {`call("EXISTS", key) == 1`, `false`},
		"takes the rest for old":      {`call("EXISTS", key) == 1`, `true`},
		"overlooks twins":             {`seen[key] or `, ``},
		"overlooks pending twins":     {"seen[key] = true\n\t\tcall(\"HSET\", key, \"msg\", ARGV[a + 1], \"state\", \"pending\"", "call(\"HSET\", key, \"msg\", ARGV[a + 1], \"state\", \"pending\""},
		"overlooks scheduled twins":   {"seen[key] = true\n\t\tcall(\"HSET\", key, \"msg\", ARGV[a + 1], \"state\", \"scheduled\"", "call(\"HSET\", key, \"msg\", ARGV[a + 1], \"state\", \"scheduled\""},
		"pushes to the wrong end":     {`call("LPUSH"`, `call("RPUSH"`},
		"calls delayed jobs pending":  {`"state", "scheduled"`, `"state", "pending"`},
		"calls pending jobs active":   {`"state", "pending"`, `"state", "active"`},
		"forgets since when":          {`, "pending_since", at`, ``},
		"puts since when on all":      {`"state", "scheduled")`, `"state", "scheduled", "pending_since", at)`},
		"mixes up messages":           {`"msg", ARGV[a + 1], "state", "pending"`, `"msg", ARGV[2], "state", "pending"`},
		"forgets the schedule":        {`call("ZADD", KEYS[2], at, id)`, ``},
		"schedules at the exact time": {`call("ZADD", KEYS[2], at, id)`, `call("ZADD", KEYS[2], due / 1000, id)`},
		"answers late":                {`taken[#taken + 1] = i - 6`, `taken[#taken + 1] = i - 5`},
		"does not wake":               {`wake(KEYS[3])`, ``},
		"always wakes for delayed":    {`if soonest <=`, `if true or soonest <=`},
		"forgets exact times":         {`due % 1000 ~= 0`, `false`},
		"keeps whole seconds exact":   {`due % 1000 ~= 0`, `true`},
	} {
		script := strings.Replace(enqueueManyLua, change[0], change[1], 1)
		if script == enqueueManyLua {
			t.Fatalf("%s: the script has no %q", name, change[0])
		}
		err := error(nil)
		for seed := uint64(0); seed < 20 && err == nil; seed++ {
			w := newTwin(t, server, 0, func(rdb redis.UniversalClient) redis.UniversalClient { return brokenScript{rdb, script} })
			err = w.run(t.Context(), seed)
			if err := w.ours.FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		}
		if err == nil {
			t.Errorf("nobody notices a script that %s", name)
		}
	}
}
