package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/cli"
	"github.com/medicalink/postroom/internal/notifier/webpush"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/preferences"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/rediskit/cache"
	"github.com/medicalink/postroom/rediskit/pubsub"
	"github.com/medicalink/postroom/rediskit/ratelimit"
	"github.com/medicalink/postroom/rediskit/session"
	"github.com/medicalink/postroom/tasks"
)

const aclTestPassword = "acl-password"

// aclOf returns what `worker check --acl` prints.
func aclOf(t *testing.T, environ ...string) map[string]aclUser {
	t.Helper()
	stdout, stderr, code := check(t, environ, "--acl", "--output", "json")
	var users []aclUser
	if err := json.Unmarshal([]byte(stdout), &users); err != nil || code != cli.ExitDone {
		t.Fatalf("exit code %d, %v: %s%s", code, err, stdout, stderr)
	}
	byName := map[string]aclUser{}
	for _, u := range users {
		byName[u.User] = u
	}
	return byName
}

// everyNode calls f for the server, or for each node of a cluster: users are not
// replicated.
func everyNode(t *testing.T, admin *rediskit.Client, f func(*redis.Client) error) {
	t.Helper()
	for _, addr := range admin.Config().Addrs {
		node, err := rediskit.Open(t.Context(), rediskit.Config{Addrs: []string{addr}})
		if err != nil {
			t.Fatal(err)
		}
		err = f(node.UniversalClient.(*redis.Client))
		_ = node.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// grant makes the users exactly as they are printed.
func grant(t *testing.T, admin *rediskit.Client, users map[string]aclUser) {
	t.Helper()
	for _, u := range users {
		args := []any{"ACL", "SETUSER"}
		for _, word := range strings.Fields(strings.Replace(u.Rule, aclPassword, ">"+aclTestPassword, 1))[1:] {
			args = append(args, word)
		}
		everyNode(t, admin, func(node *redis.Client) error { return node.Do(t.Context(), args...).Err() })
	}
}

// refusals returns what the servers refused since the last call.
func refusals(t *testing.T, admin *rediskit.Client) []string {
	t.Helper()
	var list []string
	everyNode(t, admin, func(node *redis.Client) error {
		entries, err := node.ACLLog(t.Context(), 100).Result()
		if err != nil {
			return err
		}
		for _, e := range entries {
			list = append(list, fmt.Sprintf("%s: %s of %s (%s, %s)", e.Username, e.Reason, e.Object, e.Context, e.ClientInfo.LastCmd))
		}
		return node.Do(t.Context(), "ACL", "LOG", "RESET").Err()
	})
	return list
}

// as returns a client of one of the users.
func as(t *testing.T, cfg rediskit.Config, user string) *rediskit.Client {
	t.Helper()
	cfg.Username, cfg.Password, cfg.Service = user, aclTestPassword, "accounts-service"
	client, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// The real programs, each under its own rules, deliver, retry, archive and show
// mail, and the server refuses them nothing.
func TestACL_programsCanDoTheirWork(t *testing.T) {
	t.Parallel()
	for _, namespace := range []string{"", "staging"} {
		t.Run("namespace "+namespace, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			admin := f.redis.Open(t)
			environ := append(f.env, "SERVICE_NAME=accounts-service", "QUEUE_NAMESPACE="+namespace)
			users := aclOf(t, environ...)
			grant(t, admin, users)
			under := func(user string, more ...string) {
				url := "redis://" + user + ":" + aclTestPassword + "@" + f.redis.Addr() + "/0"
				f.env = append(slices.Clone(environ), append(more, "REDIS_URL="+url)...)
			}
			mustEnqueue := func(args ...string) {
				t.Helper()
				if _, stderr, code := f.enqueue(t, append([]string{"email", "--subject", "Hello", "--body", "World"}, args...)...); code != 0 {
					t.Fatalf("enqueue %q: exit %d\n%s\n%q", args, code, stderr, refusals(t, admin))
				}
			}

			f.smtp.SetFaults(
				testenv.Refuse(550, "5.1.1 no such user", testenv.StageRcpt).For("gone@example.com"),
				testenv.Refuse(451, "4.3.0 try later", testenv.StageRcpt).For("later@example.com"),
				testenv.Hang(testenv.StageVerdict).For("hang@example.com").Times(1),
			)
			under("accounts-service-producer")
			mustEnqueue("--to", "ada@example.com", "--priority", "critical")
			mustEnqueue("--to", "ada@example.com", "--idempotency-key", "once")
			mustEnqueue("--to", "ada@example.com", "--idempotency-key", "once")
			mustEnqueue("--to", "soon@example.com", "--delay", "2s")
			mustEnqueue("--to", "much-later@example.com", "--delay", "1h")
			mustEnqueue("--to", "gone@example.com")
			mustEnqueue("--to", "later@example.com")
			mustEnqueue("--to", "late@example.com", "--deadline", "1s", "--delay", "2s")
			notify := func(args ...string) {
				t.Helper()
				args = append([]string{"notification", "--user", "u-1", "--title", "Hello"}, args...)
				if _, stderr, code := f.enqueue(t, args...); code != 0 {
					t.Fatalf("enqueue %q: exit %d\n%s\n%q", args, code, stderr, refusals(t, admin))
				}
			}
			notify("--step", "in_app", "--step", "email after 1s if unread", "--step", "sms after 2s if unsent",
				"--email", "nora@example.com", "--phone", "+4930123456", "--collapse", "k", "--dedupe", "d")
			notify("--channel", "webhook", "--webhook", "clinic")
			notify("--channel", "chat", "--chat", "ward-3")
			notify("--channel", "push", "--critical", "a recall") // switched off below
			notify("--digest-key", "k", "--digest-window", "1s", "--digest-max", "2")
			notify("--digest-key", "k", "--digest-window", "1s", "--priority", "bulk")

			// As a service does for its users, under its own rules.
			under("accounts-service-realtime")
			service := as(t, f.redis.Config(), "accounts-service-realtime")
			switches := map[string]map[tasks.Channel]bool{preferences.AllCategories: {tasks.ChannelPush: false}}
			if err := preferences.NewStore(service, namespace).Set(t.Context(), "u-1", preferences.Preferences{Switches: switches}); err != nil {
				t.Fatal(err)
			}
			subscriptions, err := webpush.NewSubscriptions(service, namespace)
			if err != nil {
				t.Fatal(err)
			}
			browser, err := webpush.ParseSubscription([]byte(`{"endpoint":"https://push.invalid/1","keys":{` +
				`"p256dh":"BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4","auth":"BTBZMqHH6r4Tts7J_aSIgg"}}`))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := subscriptions.Add(t.Context(), "u-1", *browser); err != nil {
				t.Fatalf("%v\n%q", err, refusals(t, admin))
			}

			addr := freeAddr(t)
			under("postroom-worker", "MONITOR_ADDR="+addr, "VAPID_SUBJECT=mailto:operations@medicalink.example",
				"VAPID_PRIVATE_KEY=yI_v2JP8Dp1wwjYlsWCgHqgIrPUZ3CHp0ftcEAyeOGQ")
			for _, args := range [][]string{
				{"webhook", "add", "clinic", "--url", "https://127.0.0.1:1/", "--allow-private", "127.0.0.0/8"},
				{"webhook", "add", "other", "--url", "https://example.com/"},
				{"webhook", "rotate", "clinic"},
				{"webhook", "disable", "other"},
				{"webhook", "enable", "other"},
				{"webhook", "show", "other"},
				{"webhook", "ls"},
				{"webhook", "rm", "other"},
				{"webhook", "replay", "clinic", "--from", "2026-01-01T00:00:00Z", "--dry-run"},
				{"chat", "add", "ward-3", "--kind", "json", "--url", "https://127.0.0.1:1/", "--allow-private", "127.0.0.0/8"},
				{"chat", "ls"},
			} {
				if out, err := f.command("worker", args...).CombinedOutput(); err != nil {
					t.Fatalf("worker %q: %v\n%s\n%q", args, err, out, refusals(t, admin))
				}
			}
			first := f.command("worker", "run")
			if err := first.Start(); err != nil {
				t.Fatal(err)
			}
			killed := false
			kill := func() {
				if !killed {
					killed = true
					_ = first.Process.Kill()
					_ = first.Wait()
				}
			}
			defer kill()
			f.delivered(t, 4)
			waitFor(t, "notifications in every channel", func() bool {
				if list := refusals(t, admin); len(list) > 0 {
					t.Fatalf("refused:\n%s", strings.Join(list, "\n"))
				}
				entries, err := admin.XLen(t.Context(), "postroom:inbox:{"+namespace+":u-1}").Result()
				overrides, auditErr := admin.XLen(t.Context(), "postroom:audit").Result()
				// What webhook, chat and push answer is refused by the closed port: each waits for its next try.
				var retry string
				if code, body := get(t, "http://"+addr+"/monitor/api/queues/"+prefixed(namespace, "notification:default")); code == http.StatusOK {
					retry = body
				}
				return err == nil && auditErr == nil && entries == 2 && overrides >= 1 && strings.Contains(retry, `"retry":3`)
			})
			waitFor(t, "an archived job", func() bool {
				return strings.Contains(apiOf(t, addr, namespace, ""), `"archived":1`)
			})
			waitFor(t, "a job to retry", func() bool { return strings.Contains(apiOf(t, addr, namespace, ""), `"retry":1`) })

			// A worker that is killed leaves its job to another one.
			under("accounts-service-producer")
			mustEnqueue("--to", "hang@example.com")
			f.smtp.WaitHang(t, 1)
			kill()
			under("postroom-worker")
			stop := f.worker(t)
			waitFor(t, "the job of the dead worker", func() bool {
				n, err := admin.ZCard(t.Context(), "asynq:{"+prefixed(namespace, "email:default")+"}:lease").Result()
				return err == nil && n == 0
			})

			dashboard := freeAddr(t)
			under("postroom-dashboard", "MONITOR_ADDR="+dashboard)
			monitor := f.command("worker", "monitor")
			if err := monitor.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = monitor.Process.Kill(); _ = monitor.Wait() }()
			for _, path := range []string{
				"", "/active_tasks", "/pending_tasks", "/scheduled_tasks", "/retry_tasks", "/archived_tasks", "/completed_tasks", "/groups",
			} {
				if body := apiOf(t, dashboard, namespace, path); body == "" {
					t.Errorf("%s is empty", path)
				}
			}
			var archived struct{ Tasks []struct{ ID string } }
			if err := json.Unmarshal([]byte(apiOf(t, dashboard, namespace, "/archived_tasks")), &archived); err != nil || len(archived.Tasks) != 1 {
				t.Fatalf("archived jobs: %+v, %v", archived, err)
			}
			if apiOf(t, dashboard, namespace, "/tasks/"+archived.Tasks[0].ID) == "" {
				t.Error("a job cannot be shown")
			}
			for _, path := range []string{
				"/monitor/api/queues", "/monitor/api/queue_stats", "/monitor/api/servers", "/monitor/api/scheduler_entries",
				"/monitor/api/redis_info", "/health/redis?verbose", "/readyz",
			} {
				if code, body := get(t, "http://"+dashboard+path); code != http.StatusOK {
					t.Errorf("%s: %d %s", path, code, body)
				}
			}
			if log, code := stop(); code != 0 {
				t.Errorf("the worker's exit code is %d:\n%s", code, log)
			}
			if list := refusals(t, admin); len(list) > 0 {
				t.Errorf("refused:\n%s", strings.Join(list, "\n"))
			}
		})
	}
}

func prefixed(namespace, queue string) string {
	if namespace == "" {
		return queue
	}
	return namespace + ":" + queue
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within two minutes", what)
		}
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	var resp *http.Response
	waitFor(t, "answer of "+url, func() bool {
		resp, err = http.DefaultClient.Do(req) //nolint:bodyclose // closed below
		return err == nil
	})
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// apiOf returns what the dashboard says of the default queue, "" if it fails.
func apiOf(t *testing.T, addr, namespace, path string) string {
	t.Helper()
	code, body := get(t, "http://"+addr+"/monitor/api/queues/"+prefixed(namespace, "email:default")+path)
	if code != http.StatusOK {
		return ""
	}
	return body
}

// What the rules leave out is refused.
func TestACL_refusesTheRest(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t)
	admin := srv.Open(t)
	grant(t, admin, aclOf(t, "SERVICE_NAME=accounts-service", "QUEUE_NAMESPACE=staging"))
	const job = "asynq:{staging:email:default}:t:1"
	for user, commands := range map[string][]string{
		"accounts-service-producer": {
			"FLUSHALL", "KEYS *", "CONFIG GET *", "DEL " + job, "LRANGE asynq:{staging:email:default}:pending 0 -1", "EVAL return(redis.call('DEL',KEYS[1])) 1 " + job,
			"GET accounts-service:user:1", "SADD asynq:servers x", "GET postroom:job:{1}", "GET postroom:idempotency:{staging:other-service:x}",
			"EXISTS asynq:{email:default}:t:1", "EXISTS asynq:{production:email:default}:t:1", "PUBLISH asynq:cancel 1", "SUBSCRIBE accounts-service:updates",
			"RPUSH postroom:wake:{email:default} 1", "LPOP postroom:wake:{staging:email:default}", "EXISTS postroom:pause:{staging:email:default}",
			"ZADD postroom:due:{staging:email:default}:claim 1 x", "EXISTS postroom:gate:{staging:email:default}",
			"HGETALL postroom:endpoint:{staging:clinic}", "XRANGE postroom:inbox:{staging:u-1} - +", "LPUSH asynq:{production:notification:default}:pending x",
		},
		"postroom-worker": {
			"FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG SET dir /tmp", "ACL LIST", "SCRIPT FLUSH", "SHUTDOWN", "MIGRATE h 1 k 0 1", "REPLICAOF NO ONE",
			"GET accounts-service:user:1", "GET asynq:{email:default}:t:1", "PUBLISH accounts-service:updates x",
			"BLPOP postroom:wake:{email:default} 1", "HGETALL postroom:gate:{production:email:default}",
		},
		"accounts-service-realtime": {
			"FLUSHALL", "KEYS *", "HGET " + job + " msg", "XADD postroom:inbox:{staging:u-1} * n x", "XRANGE postroom:inbox:{production:u-1} - +",
			"GET postroom:preferences:{:u-1}", "HGETALL postroom:endpoint:{staging:clinic}", "XRANGE postroom:audit - +", "SUBSCRIBE postroom:inbox",
		},
		"postroom-dashboard": {
			"HGETALL postroom:endpoint:{staging:clinic}", "XRANGE postroom:inbox:{staging:u-1} - +",
			"FLUSHALL", "KEYS *", "DEL " + job, "HSET " + job + " state x", "LPUSH asynq:{staging:email:default}:pending x",
			"EVAL return(redis.call('DEL',KEYS[1])) 1 " + job, "GET postroom:job:{1}", "PUBLISH asynq:cancel 1", "CONFIG GET *",
		},
		"accounts-service": {
			"FLUSHALL", "KEYS *", "SCAN 0", "GET api-gateway:user:1", "HGET " + job + " msg", "SUBSCRIBE api-gateway:updates", "PUBLISH api-gateway:updates x",
			"EVAL return(redis.call('GET',KEYS[1])) 1 api-gateway:user:1", "CONFIG GET *", "CLIENT KILL TYPE normal",
		},
	} {
		client := as(t, srv.Config(), user)
		for _, command := range commands {
			var args []any
			for word := range strings.FieldsSeq(command) {
				args = append(args, word)
			}
			err := client.Do(t.Context(), args...).Err()
			if err == nil || !strings.Contains(err.Error(), "NOPERM") && !strings.Contains(err.Error(), "can't run this command") && !strings.Contains(err.Error(), "No permissions") {
				t.Errorf("%s: %s: %v, want NOPERM", user, command, err)
			}
		}
	}
	if list := refusals(t, admin); len(list) == 0 {
		t.Error("ACL LOG is empty: the tests that want it empty prove nothing")
	}
}

// The packages of rediskit under the rules of a service.
func TestACL_serviceCanUseRediskit(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		start func(t *testing.T) (rediskit.Config, *rediskit.Client)
	}{
		{"one server", func(t *testing.T) (rediskit.Config, *rediskit.Client) {
			t.Helper()
			srv := testenv.Redis(t)
			return srv.Config(), srv.Open(t)
		}},
		{"cluster", func(t *testing.T) (rediskit.Config, *rediskit.Client) {
			t.Helper()
			set := testenv.Cluster(t)
			return set.Config(), set.Open(t)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg, admin := tt.start(t)
			environ := []string{"SERVICE_NAME=accounts-service"}
			if cfg.Cluster {
				environ = append(environ, "REDIS_CLUSTER="+strings.Join(cfg.Addrs, ","))
			}
			grant(t, admin, aclOf(t, environ...))
			// A subscription by pattern needs its pattern, literally.
			everyNode(t, admin, func(node *redis.Client) error {
				return node.Do(t.Context(), "ACL", "SETUSER", "accounts-service", "&accounts-service:orders:*").Err()
			})
			useRediskit(t, admin, as(t, cfg, "accounts-service"))
			if list := refusals(t, admin); len(list) > 0 {
				t.Errorf("refused:\n%s", strings.Join(list, "\n"))
			}
		})
	}
}

type note struct{ Text string }

// useRediskit calls what a service calls, so that every command is sent.
func useRediskit(t *testing.T, admin, client *rediskit.Client) {
	t.Helper()
	ctx := t.Context()
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if p, err := client.Preflight(ctx, rediskit.ForCache); err != nil || len(p.Servers) == 0 {
		t.Errorf("preflight: %+v, %v", p, err)
	}

	notes, err := cache.Of[note](client, "note", cache.Config{TTL: time.Minute, NegativeTTL: time.Minute, OnError: cache.Fail, LockTTL: 50 * time.Millisecond})
	check("cache", err)
	check("set", notes.Set(ctx, "1", note{"a"}))
	check("set many", notes.SetMany(ctx, map[string]note{"2": {"b"}, "3": {"c"}}))
	_, err = notes.GetMany(ctx, "1", "2", "3", "4")
	check("get many", err)
	_, err = notes.GetOrLoad(ctx, "5", func(context.Context) (note, error) {
		time.Sleep(200 * time.Millisecond) // the lock is renewed meanwhile
		return note{"e"}, nil
	})
	check("get or load", err)
	if _, err = notes.GetOrLoad(ctx, "6", func(context.Context) (note, error) { return note{}, cache.ErrNotFound }); err == nil {
		t.Error("a value that does not exist was loaded")
	}
	if _, err = notes.GetOrLoad(ctx, "7", func(context.Context) (note, error) { return note{}, context.DeadlineExceeded }); err == nil {
		t.Error("a failed load was no error")
	}
	check("delete", notes.Delete(ctx, "1", "2"))
	notes.Wait()

	logins, err := session.New[note](client, session.Config{Idle: time.Minute, Absolute: time.Hour, MaxPerUser: 2})
	check("session", err)
	var token string
	for range 3 { // the third ends the first
		token, err = logins.Create(ctx, "ada", note{"x"})
		check("create", err)
	}
	_, err = logins.Read(ctx, token)
	check("read", err)
	_, err = logins.Renew(ctx, token)
	check("renew", err)
	token, err = logins.Rotate(ctx, token, note{"y"})
	check("rotate", err)
	_, err = logins.List(ctx, "ada")
	check("list", err)
	check("revoke", logins.Revoke(ctx, token))
	check("revoke all", logins.RevokeAll(ctx, "ada"))

	for _, algorithm := range []ratelimit.Algorithm{ratelimit.SlidingWindow, ratelimit.GCRA} {
		limiter, err := ratelimit.New(client, ratelimit.Config{Algorithm: algorithm, OnError: ratelimit.FailClosed, Timeout: 10 * time.Second})
		check("limiter", err)
		for range 5 {
			_, err = limiter.AllowN(ctx, fmt.Sprint("user", algorithm), 3, 100*time.Millisecond, 1)
			check("allow", err)
		}
		time.Sleep(150 * time.Millisecond) // entries expire, so that the next call trims them
		_, err = limiter.AllowN(ctx, fmt.Sprint("user", algorithm), 3, 100*time.Millisecond, 2)
		check("allow again", err)
	}

	bus, err := pubsub.New(client, pubsub.Config{DeadAfter: 200 * time.Millisecond}) // PINGs while silent
	check("bus", err)
	got := make(chan string, 2)
	handle := func(_ context.Context, m pubsub.Message[note]) { got <- m.Value.Text }
	topic, err := pubsub.Of[note](bus, "orders:1")
	check("topic", err)
	one, err := topic.Subscribe(ctx, handle, pubsub.IgnoreGaps)
	check("subscribe", err)
	pattern, err := pubsub.Matching[note](bus, "orders:*")
	check("pattern", err)
	all, err := pattern.Subscribe(ctx, handle, pubsub.IgnoreGaps)
	check("subscribe to the pattern", err)
	if t.Failed() {
		t.Fatalf("refused: %q", refusals(t, admin))
	}
	check("publish", topic.Publish(ctx, note{"hello"}))
	for range 2 {
		select {
		case text := <-got:
			if text != "hello" {
				t.Errorf("message %q", text)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no message; refused: %q", refusals(t, admin))
		}
	}
	time.Sleep(300 * time.Millisecond) // past the PING of a silent connection
	check("close", one.Close())
	check("close", all.Close())
}

func TestACL_text(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := check(t, []string{"QUEUE_NAMESPACE=staging"}, "--acl")
	if code != cli.ExitDone || stderr != "" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	for _, want := range []string{
		"\nuser SERVICE-producer on >PASSWORD resetkeys resetchannels -@all ~asynq:queues ~asynq:{staging:email:*}:t:*",
		" ~postroom:wake:{staging:email:*}* ~postroom:due:{staging:email:*} ", "~postroom:idempotency:{staging:SERVICE:*", "\nuser postroom-worker on >PASSWORD", "\nuser postroom-dashboard on >PASSWORD",
		"\nuser SERVICE on >PASSWORD resetkeys resetchannels -@all ~SERVICE:* &SERVICE:* ",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is missing in:\n%s", want, stdout)
		}
	}
	if _, _, code := check(t, []string{"QUEUE_NAMESPACE=no colon:"}, "--acl"); code != cli.ExitUsage {
		t.Errorf("bad settings: exit code %d", code)
	}
}
