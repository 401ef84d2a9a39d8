package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/cli"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
)

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){
		"enqueue": func() { os.Exit(cli.Main(newRootCommand)) },
	})
}

// leakChecked fails the run if a goroutine is left when all tests are done.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// TestScripts runs the real binary, as a process of its own, against a real Redis for each script.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			server := testenv.Redis(t)
			data, err := filepath.Abs(filepath.Join("..", "..", "testdata"))
			if err != nil {
				return err
			}
			env.Setenv("REDIS_URL", server.URL())
			env.Setenv("TESTDATA", data)
			env.Values["redis"] = server.Open(t)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"jobs":   scriptJobs,
			"await":  scriptAwait,
			"goon":   scriptGoOn,
			"unique": scriptUnique,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

func redisOf(ts *testscript.TestScript) *rediskit.Client {
	client, ok := ts.Value("redis").(*rediskit.Client)
	if !ok {
		ts.Fatalf("the script has no Redis")
	}
	return client
}

// scriptJobs implements "jobs FILE": it writes every job that is pending or scheduled to FILE, one a
// line: queue, state, retries, timeout, retention, headers, payload.
func scriptJobs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: jobs file")
	}
	jobs, err := allJobs(redisOf(ts))
	ts.Check(err)
	var lines strings.Builder
	for _, j := range jobs {
		headers, err := json.Marshal(j.Headers)
		ts.Check(err)
		fmt.Fprintf(&lines, "%s %s retry=%d timeout=%v retention=%v %s %s\n", j.Queue, j.State, j.MaxRetry, j.Timeout, j.Retention, headers, j.Payload)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(lines.String()), 0o600))
}

// scriptAwait implements "await QUEUE N": it waits until the queue has at least N pending jobs.
func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await queue number")
	}
	key := "asynq:{" + args[0] + "}:pending"
	want, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	for deadline := time.Now().Add(30 * time.Second); ; {
		n, err := redisOf(ts).LLen(context.Background(), key).Result()
		ts.Check(err)
		if n >= want {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s has %d jobs", args[0], n)
		}
		time.Sleep(5 * time.Millisecond) // polling a real server
	}
}

// scriptGoOn implements "goon FILE": it sets RESUME and KEY from the summary in FILE.
func scriptGoOn(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: goon file")
	}
	var sum summary
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &sum))
	if sum.ResumeFrom == 0 || sum.IdempotencyKey == "" {
		ts.Fatalf("summary says neither where to go on nor with which key: %+v", sum)
	}
	ts.Setenv("RESUME", fmt.Sprint(sum.ResumeFrom))
	ts.Setenv("KEY", sum.IdempotencyKey)
}

// scriptUnique implements "unique N": there are N jobs, each for another recipient.
func scriptUnique(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: unique number")
	}
	jobs, err := allJobs(redisOf(ts))
	ts.Check(err)
	ts.Check(onePerRecipient(jobs))
	if fmt.Sprint(len(jobs)) != args[0] {
		ts.Fatalf("there are %d jobs, want %s", len(jobs), args[0])
	}
}

// onePerRecipient returns an error if two jobs of a type have the same recipient.
func onePerRecipient(jobs []*asynq.TaskInfo) error {
	seen := make(map[string]bool)
	for _, j := range jobs {
		to, err := recipientOf(j)
		if err != nil {
			return err
		}
		if seen[j.Type+to] {
			return fmt.Errorf("two jobs for %s", to)
		}
		seen[j.Type+to] = true
	}
	return nil
}

func recipientOf(j *asynq.TaskInfo) (string, error) {
	if j.Type == tasks.TypeNotification {
		n, err := tasks.DecodeNotification(j.Payload)
		return n.User, err
	}
	e, err := tasks.DecodeEmail(j.Payload)
	return e.To, err
}

func allJobs(client redis.UniversalClient) ([]*asynq.TaskInfo, error) {
	inspector := asynq.NewInspectorFromRedisClient(client)
	queues, err := inspector.Queues()
	if err != nil {
		return nil, err
	}
	slices.Sort(queues)
	var all []*asynq.TaskInfo
	for _, q := range queues {
		for _, list := range []func(string, ...asynq.ListOption) ([]*asynq.TaskInfo, error){inspector.ListPendingTasks, inspector.ListScheduledTasks} {
			for page := 1; ; page++ {
				some, err := list(q, asynq.Page(page), asynq.PageSize(1000))
				if err != nil && !errors.Is(err, asynq.ErrQueueNotFound) {
					return nil, err
				}
				all = append(all, some...)
				if len(some) < 1000 {
					break
				}
			}
		}
	}
	return all, nil
}
