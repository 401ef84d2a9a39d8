package monitor_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/monitor"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
)

func setup(t *testing.T, checks ...monitor.Check) (*testenv.RedisServer, *rediskit.Client, *httptest.Server) {
	t.Helper()
	srv := testenv.Redis(t)
	rdb := srv.Open(t)
	return srv, rdb, serve(t, rdb, checks...)
}

func serve(t *testing.T, rdb *rediskit.Client, checks ...monitor.Check) *httptest.Server {
	t.Helper()
	mon, err := monitor.New(rdb, monitor.Config{Checks: checks})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(mon)
	t.Cleanup(func() {
		web.Close()
		if err := mon.Close(); err != nil {
			t.Error(err)
		}
	})
	return web
}

// answer is an http.Response whose body has been read.
type answer struct {
	StatusCode int
	Header     http.Header
}

func request(t *testing.T, method, url string, change func(*http.Request)) (answer, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(req)
	}
	res, err := http.DefaultTransport.RoundTrip(req) // follows no redirect
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header}, string(body)
}

func get(t *testing.T, url string) (answer, string) {
	t.Helper()
	return request(t, http.MethodGet, url, nil)
}

func TestMonitor_healthRedis(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t, testenv.ACL("alice", "s3cret", "~* &* +@all"))
	web := serve(t, srv.Open(t))

	ask := func() (int, map[string]string) {
		t.Helper()
		res, body := get(t, web.URL+"/health/redis")
		if got := res.Header.Get("Content-Type"); got != "application/json" {
			t.Errorf("Content-Type %q", got)
		}
		if strings.Contains(body, "s3cret") || strings.Contains(body, "alice") || strings.Contains(body, srv.Addr()) {
			t.Errorf("the answer tells too much: %s", body)
		}
		fields := map[string]string{}
		if err := json.Unmarshal([]byte(body), &fields); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		stamp := fields["timestamp"]
		if !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`).MatchString(stamp) {
			t.Errorf("timestamp %q", stamp)
		}
		if at, err := time.Parse(time.RFC3339, stamp); err != nil || time.Since(at).Abs() > time.Minute {
			t.Errorf("timestamp %q is not now", stamp)
		}
		return res.StatusCode, fields
	}

	code, fields := ask()
	if code != http.StatusOK || fields["status"] != "healthy" || len(fields) != 2 {
		t.Errorf("healthy: %d %v", code, fields)
	}
	srv.Kill()
	code, fields = ask()
	if code != http.StatusServiceUnavailable || fields["status"] != "unhealthy" || fields["error"] != "connection refused" || len(fields) != 3 {
		t.Errorf("unhealthy: %d %v", code, fields)
	}
	srv.Restart()
	if code, fields = ask(); code != http.StatusOK {
		t.Errorf("after the restart: %d %v", code, fields)
	}
}

func TestMonitor_readiness(t *testing.T) {
	t.Parallel()
	ready := true
	srv, _, web := setup(t,
		monitor.Check{Name: "worker", Run: func(context.Context) error {
			if ready {
				return nil
			}
			return errors.New("s3cret detail")
		}},
		monitor.Check{Name: "clock", Run: func(context.Context) error { return nil }},
	)
	for _, tt := range []struct {
		name   string
		change func()
		code   int
		body   string
	}{
		{"all pass", func() {}, http.StatusOK, `{"status":"ready"}`},
		{"the worker stops", func() { ready = false }, http.StatusServiceUnavailable, `{"status":"unready","failing":["worker"]}`},
		{"redis is gone too", srv.Kill, http.StatusServiceUnavailable, `{"status":"unready","failing":["redis","worker"]}`},
	} {
		tt.change()
		if res, body := get(t, web.URL+"/readyz"); res.StatusCode != tt.code || strings.TrimSpace(body) != tt.body {
			t.Errorf("%s: /readyz = %d %s, want %d %s", tt.name, res.StatusCode, body, tt.code, tt.body)
		}
		if res, _ := get(t, web.URL+"/livez"); res.StatusCode != http.StatusOK {
			t.Errorf("%s: /livez = %d: a restart would not help", tt.name, res.StatusCode)
		}
	}
}

func TestNew_refusesBadOptions(t *testing.T) {
	t.Parallel()
	if _, err := monitor.New(nil, monitor.Config{}); err == nil {
		t.Error("a monitor without Redis")
	}
	rdb := testenv.Redis(t).Open(t)
	pass := func(context.Context) error { return nil }
	for _, checks := range [][]monitor.Check{
		{{Name: "redis", Run: pass}},
		{{Name: "", Run: pass}},
		{{Name: "worker"}},
		{{Name: "worker", Run: pass}, {Name: "worker", Run: pass}},
	} {
		if _, err := monitor.New(rdb, monitor.Config{Checks: checks}); err == nil {
			t.Errorf("checks %v are accepted", checks)
		}
	}
}

func TestMonitor_Close_leavesTheSharedClientOpen(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	mon, err := monitor.New(rdb, monitor.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := mon.Close(); err != nil {
		t.Fatal(err)
	}
	if err := rdb.Health(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCheckAddr(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]bool{
		"127.0.0.1:8080": true, "localhost:8080": true, "[::1]:0": true, "127.9.9.9:1": true,
		":8080": false, "0.0.0.0:8080": false, "[::]:8080": false, "10.0.0.1:8080": false, "example.com:80": false, "8080": false,
	} {
		if err := monitor.CheckAddr(addr); (err == nil) != want {
			t.Errorf("CheckAddr(%q) = %v", addr, err)
		}
	}
}

// Job data and addresses that must not come out of any answer.
const canary = "canary-7f3a"

// fill puts one email job into each state that stores something of it.
func fill(t *testing.T, rdb *rediskit.Client) {
	t.Helper()
	client := asynq.NewClientFromRedisClient(rdb.Dedicated("test"))
	payload, err := json.Marshal(map[string]any{
		"v": 1, "to": canary + "@example.org", "subject": canary, "template": "welcome", "class": "clinical",
		"data": map[string]any{"name": canary}, "attachments": []any{map[string]any{"name": canary}},
	})
	if err != nil {
		t.Fatal(err)
	}
	enqueue := func(queue, id string, opts ...asynq.Option) {
		t.Helper()
		opts = append(opts, asynq.Queue(queue), asynq.TaskID(id))
		if _, err := client.EnqueueContext(t.Context(), asynq.NewTask(tasks.TypeEmail, payload), opts...); err != nil {
			t.Fatal(err)
		}
	}
	enqueue("email:critical", "done", asynq.Retention(time.Hour))
	enqueue("email:critical", "refused", asynq.MaxRetry(1))
	enqueue("email:critical", "later", asynq.ProcessIn(time.Hour))
	enqueue("email:bulk", "waiting")
	held := make(chan struct{})
	enqueue("email:critical", "held")
	server := asynq.NewServerFromRedisClient(rdb.Dedicated("test-server"), asynq.Config{
		Queues: map[string]int{"email:critical": 1}, Concurrency: 3, LogLevel: asynq.FatalLevel,
		TaskCheckInterval: 10 * time.Millisecond,
		RetryDelayFunc:    func(int, error, *asynq.Task) time.Duration { return time.Hour },
	})
	if err := server.Start(asynq.HandlerFunc(func(ctx context.Context, task *asynq.Task) error {
		switch id, _ := asynq.GetTaskID(ctx); id {
		case "done":
			_, err := task.ResultWriter().Write([]byte(canary))
			return err
		case "held":
			select {
			case <-held:
			case <-ctx.Done():
			}
			return nil
		default:
			return fmt.Errorf("550 5.1.1 <%s@example.org>: no such user", canary)
		}
	})); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(held); server.Shutdown() })

	inspector := asynq.NewInspectorFromRedisClient(rdb.Dedicated("test-inspector"))
	wanted := map[string]asynq.TaskState{"done": asynq.TaskStateCompleted, "refused": asynq.TaskStateRetry, "held": asynq.TaskStateActive}
	for deadline := time.Now().Add(30 * time.Second); len(wanted) > 0; time.Sleep(5 * time.Millisecond) {
		for id, state := range wanted {
			if info, err := inspector.GetTaskInfo("email:critical", id); err == nil && info.State == state {
				delete(wanted, id)
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("not reached: %v", wanted)
		}
	}
}

func TestMonitor_dashboardShowsNoValues(t *testing.T) {
	t.Parallel()
	_, rdb, web := setup(t)
	fill(t, rdb)
	api := web.URL + "/monitor/api"
	var all strings.Builder
	for _, path := range []string{
		"/queues", "/queues/email:critical", "/queue_stats", "/servers", "/scheduler_entries", "/redis_info",
		"/queues/email:critical/active_tasks", "/queues/email:bulk/pending_tasks", "/queues/email:critical/scheduled_tasks",
		"/queues/email:critical/retry_tasks", "/queues/email:critical/completed_tasks", "/queues/email:critical/archived_tasks",
		"/queues/email:critical/tasks/done", "/queues/email:critical/tasks/refused", "/queues/email:critical/tasks/later",
		"/queues/email:critical/groups",
	} {
		res, body := get(t, api+path)
		if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "application/json" || !json.Valid([]byte(body)) {
			t.Errorf("%s: %d %s: %s", path, res.StatusCode, res.Header.Get("Content-Type"), body)
		}
		if strings.Contains(body, canary) || strings.Contains(body, "example.org") {
			t.Errorf("%s shows job data: %s", path, body)
		}
		all.WriteString(body)
	}
	// What operators need is there: the absence above is not that of an empty answer.
	for _, want := range []string{
		`{\"type\":\"email:send\",\"template\":\"welcome\",\"class\":\"clinical\",\"attachments\":1,\"bytes\":`,
		`{\"bytes\":11}`, `550 5.1.1 \u003c[address]\u003e: no such user`, `"email:bulk"`,
	} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("%s is missing", want)
		}
	}
	if res, body := get(t, api+"/queues/email:critical/tasks/"+canary+"@example.org"); strings.Contains(body, "example.org") {
		t.Errorf("an error answer shows an address: %d %s", res.StatusCode, body)
	}
}

func TestMonitor_dashboardChangesNothing(t *testing.T) {
	t.Parallel()
	_, rdb, web := setup(t)
	fill(t, rdb)
	inspector := asynq.NewInspectorFromRedisClient(rdb.Dedicated("test"))
	api := web.URL + "/monitor/api"
	for _, tt := range []struct{ method, path string }{
		{http.MethodPost, "/queues/email:bulk:pause"},
		{http.MethodDelete, "/queues/email:bulk"},
		{http.MethodPost, "/queues/email:bulk/pending_tasks:archive_all"},
		{http.MethodPost, "/queues/email:critical/scheduled_tasks/later:run"},
		{http.MethodPost, "/queues/email:critical/active_tasks/held:cancel"},
	} {
		for site, want := range map[string]int{"same-origin": http.StatusMethodNotAllowed, "cross-site": http.StatusForbidden} {
			res, _ := request(t, tt.method, api+tt.path, func(r *http.Request) {
				r.Header.Set("Sec-Fetch-Site", site)
				r.Header.Set("Content-Type", "text/plain")
			})
			if res.StatusCode != want {
				t.Errorf("%s %s %s: %d, want %d", site, tt.method, tt.path, res.StatusCode, want)
			}
		}
	}
	if res, _ := request(t, http.MethodPost, web.URL+"/monitor/", nil); res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST to the page: %d", res.StatusCode)
	}
	// The page then offers no buttons.
	if _, body := get(t, web.URL+"/monitor/"); !strings.Contains(body, `FLAG_READ_ONLY="true"`) {
		t.Errorf("the page does not know that it is read-only:\n%s", body)
	}
	// An old browser sends only Origin.
	res, _ := request(t, http.MethodPost, api+"/queues/email:bulk:pause", func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") })
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("a POST from another origin: %d, want 403", res.StatusCode)
	}
	if info, err := inspector.GetQueueInfo("email:bulk"); err != nil || info.Paused || info.Pending != 1 {
		t.Errorf("the queue has changed: %+v, %v", info, err)
	}
}

func TestMonitor_dashboardRefusesForeignHosts(t *testing.T) {
	t.Parallel()
	_, _, web := setup(t)
	for host, want := range map[string]int{
		"localhost:1234": http.StatusOK, "127.0.0.1": http.StatusOK, "[::1]:80": http.StatusOK,
		"evil.example": http.StatusMisdirectedRequest, "evil.example:8080": http.StatusMisdirectedRequest, "10.0.0.1": http.StatusMisdirectedRequest,
	} {
		for _, path := range []string{"/monitor/", "/monitor/api/queues"} {
			if res, _ := request(t, http.MethodGet, web.URL+path, func(r *http.Request) { r.Host = host }); res.StatusCode != want {
				t.Errorf("Host %s, %s: %d, want %d", host, path, res.StatusCode, want)
			}
		}
	}
	// A probe of health may come by any name.
	if res, _ := request(t, http.MethodGet, web.URL+"/health/redis", func(r *http.Request) { r.Host = "pod-1" }); res.StatusCode != http.StatusOK {
		t.Errorf("health by another name: %d", res.StatusCode)
	}
}

func TestMonitor_headers(t *testing.T) {
	t.Parallel()
	_, _, web := setup(t)
	for _, path := range []string{"/monitor/", "/monitor/queues/email:default", "/monitor/api/queues", "/monitor/favicon.ico", "/health/redis", "/livez", "/missing", "/monitor"} {
		res, _ := get(t, web.URL+path)
		for name, want := range map[string]string{
			"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
			"Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got := res.Header.Get(name); got != want {
				t.Errorf("%s: %s %q, want %q", path, name, got, want)
			}
		}
		policy := strings.Split(res.Header.Get("Content-Security-Policy"), "; ")
		for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'"} {
			if !slices.Contains(policy, want) {
				t.Errorf("%s: the policy lacks %s: %s", path, want, policy)
			}
		}
		if slices.ContainsFunc(policy, func(s string) bool {
			return strings.HasPrefix(s, "script-src") && strings.Contains(s, "unsafe")
		}) {
			t.Errorf("%s: the policy allows any script: %s", path, policy)
		}
	}
	res, body := get(t, web.URL+"/monitor/")
	if res.Header.Get("Content-Type") != "text/html; charset=utf-8" || strings.Contains(body, "googleapis") || !strings.Contains(body, `id="root"`) {
		t.Errorf("the page: %s\n%s", res.Header, body)
	}
	res, _ = get(t, web.URL+"/monitor/android-chrome-192x192.png")
	if res.Header.Get("Content-Type") != "image/png" {
		t.Errorf("an image is sent as %s", res.Header.Get("Content-Type"))
	}
	// Its handler would ask a Prometheus that is not there, with a query from outside.
	if res, _ := get(t, web.URL+`/monitor/api/metrics?duration_sec=60&queues={__name__=~".%2B"}`); res.StatusCode != http.StatusNotFound {
		t.Errorf("/api/metrics: %d", res.StatusCode)
	}
}
