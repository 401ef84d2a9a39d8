package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/medicalink/postroom/internal/notifier/webhook"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
)

// TestScripts runs the real binary against a real Redis for each script.
func TestScripts(t *testing.T) {
	t.Parallel()
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			server := testenv.Redis(t)
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("REDIS_URL", server.URL())
			env.Values["redis"] = server.Open(t)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"sent": scriptSent,
			"mark": scriptMark,
			"jobs": scriptJobs,
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

// scriptSent implements "sent LETTER OUTCOME": it writes to the log of the endpoint lab,
// as a worker does, that the notification whose id ends with the letter came to that
// end. The outcome damaged leaves out the job.
func scriptSent(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: sent letter outcome")
	}
	id := "0199b2c0-7d1c-7a63-9d1f-00000000000" + args[0]
	job, err := json.Marshal(tasks.Delivery{
		V: tasks.Version, Notification: id, Channel: tasks.ChannelWebhook, Target: "lab", Kind: "lab.result.ready", User: "u-1",
		Category: "lab", Created: time.Now(), OnlyIf: tasks.OnlyIfUnread, Class: tasks.ClassTransactional,
		Payload: json.RawMessage(fmt.Sprintf(`{"type":"lab.result.ready","n":%q}`, args[0])),
	})
	ts.Check(err)
	outcome := webhook.Outcome(args[1])
	if args[1] == "damaged" {
		job, outcome = []byte("{"), webhook.OutcomeFailed
	}
	ts.Check(webhook.NewLog(redisOf(ts), "").Append(context.Background(), "lab",
		webhook.Record{Notification: id, Outcome: outcome, Job: job}))
}

// scriptMark implements "mark from" and "mark to": it sets FROM, or TO, to a time of
// Redis between what was logged before and what comes after.
func scriptMark(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: mark name")
	}
	now := func() time.Time {
		at, err := redisOf(ts).Time(context.Background()).Result()
		ts.Check(err)
		return at.Truncate(time.Millisecond)
	}
	tick := func(after time.Time) time.Time {
		for {
			if at := now(); at.After(after) {
				return at
			}
			time.Sleep(100 * time.Microsecond) // polling a real server's clock
		}
	}
	at := tick(now())
	ts.Setenv(strings.ToUpper(args[0]), at.Format(time.RFC3339Nano))
	tick(at)
}

// scriptJobs implements "jobs FILE": it writes every pending job of notifications to
// FILE, one a line: queue, state, retries, payload.
func scriptJobs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: jobs file")
	}
	inspector := asynq.NewInspectorFromRedisClient(redisOf(ts))
	queues, err := inspector.Queues()
	ts.Check(err)
	slices.Sort(queues)
	var lines strings.Builder
	for _, q := range queues {
		list, err := inspector.ListPendingTasks(q, asynq.PageSize(1000))
		if err != nil && !errors.Is(err, asynq.ErrQueueNotFound) {
			ts.Check(err)
		}
		for _, j := range list {
			fmt.Fprintf(&lines, "%s %s retry=%d %s\n", j.Queue, j.State, j.MaxRetry, j.Payload)
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(lines.String()), 0o600))
}
