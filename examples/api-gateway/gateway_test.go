package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testenv.IgnorePools()) }

// start runs the program as main does and returns its address and how to end it.
func start(t *testing.T, redis *testenv.RedisServer) (url string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	read, write := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		environ := []string{"SERVICE_NAME=api-gateway", "REDIS_URL=" + redis.URL()}
		ended <- run(ctx, environ, "127.0.0.1:0", slog.New(slog.NewTextHandler(write, nil)))
		_ = write.Close()
	}()
	address := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(read); lines.Scan(); {
			if _, after, ok := strings.Cut(lines.Text(), "address="); ok {
				address <- after
			}
		}
		close(address)
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(stop)
	url, ok := <-address
	if !ok {
		t.Fatalf("the gateway did not start: %v", <-ended)
	}
	return url, stop
}

// answer is what came back.
type answer struct {
	code   int
	header http.Header
	body   string
}

// call returns the answer to a request, its body read.
func call(t *testing.T, method, url, body string) answer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, string(text)}
}

// listen returns the lines of the stream of updates, which ends after 30 s at the latest.
func listen(t *testing.T, url string) *bufio.Scanner {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/appointments/updates", nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	stream, err := browser.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stream.Body.Close() })
	return bufio.NewScanner(stream.Body)
}

func TestGateway_CachesUsers(t *testing.T) {
	t.Parallel()
	redis := testenv.Redis(t)
	url, _ := start(t, redis)
	for range 2 {
		if r := call(t, "GET", url+"/users/123", ""); r.code != http.StatusOK || strings.TrimSpace(r.body) != `{"id":"123","name":"Ada Lovelace"}` {
			t.Errorf("answered %d %s", r.code, r.body)
		}
		if r := call(t, "GET", url+"/users/404", ""); r.code != http.StatusNotFound {
			t.Errorf("an unknown user is answered %d", r.code)
		}
	}
	client := redis.Open(t)
	if got := client.Get(t.Context(), "api-gateway:user:123").Val(); got != `{"id":"123","name":"Ada Lovelace"}` {
		t.Errorf("the cache holds %q", got)
	}
	// What the cache holds is what is served.
	if err := client.Set(t.Context(), "api-gateway:user:123", `{"id":"123","name":"from the cache"}`, time.Minute).Err(); err != nil {
		t.Fatal(err)
	}
	if r := call(t, "GET", url+"/users/123", ""); !strings.Contains(r.body, "from the cache") {
		t.Errorf("answered %s, which is not from the cache", r.body)
	}
}

func TestGateway_LimitsCallers(t *testing.T) {
	t.Parallel()
	url, _ := start(t, testenv.Redis(t))
	for i := range 100 {
		if r := call(t, "GET", url+"/users/123", ""); r.code != http.StatusOK {
			t.Fatalf("request %d of 100 is answered %d", i+1, r.code)
		}
	}
	r := call(t, "GET", url+"/users/123", "")
	for more := 0; r.code == http.StatusOK && more < 20; more++ {
		r = call(t, "GET", url+"/users/123", "") // on a machine so slow that a decision was not waited for
	}
	if r.code != http.StatusTooManyRequests || r.header.Get("Retry-After") == "" ||
		r.header.Get("RateLimit-Limit") != "100" || r.header.Get("RateLimit-Remaining") != "0" {
		t.Errorf("the request after is answered %d with %v", r.code, r.header)
	}
	if r := call(t, "GET", url+"/health/redis", ""); r.code != http.StatusOK {
		t.Errorf("health is limited too: %d", r.code)
	}
}

func TestGateway_StreamsUpdates(t *testing.T) {
	t.Parallel()
	redis := testenv.Redis(t)
	here, _ := start(t, redis)
	there, stopThere := start(t, redis) // another replica

	lines := listen(t, there)
	if r := call(t, "POST", here+"/appointments/a-17/status", `{"status":""}`); r.code != http.StatusBadRequest {
		t.Errorf("no status is answered %d %s", r.code, r.body)
	}
	if r := call(t, "POST", here+"/appointments/a-17/status", `{"status":"confirmed","appointmentId":"another"}`); r.code != http.StatusAccepted {
		t.Fatalf("answered %d %s", r.code, r.body)
	}
	if !lines.Scan() || lines.Text() != "event: update" || !lines.Scan() {
		t.Fatalf("the stream said %q", lines.Text())
	}
	var got Update
	if err := json.Unmarshal([]byte(strings.TrimPrefix(lines.Text(), "data: ")), &got); err != nil {
		t.Fatal(err)
	}
	if got.AppointmentID != "a-17" || got.Status != "confirmed" || got.Timestamp.IsZero() {
		t.Errorf("the stream said %+v", got)
	}

	// An open stream does not hold up the end of the process.
	stopThere()
	for lines.Scan() {
		if lines.Text() != "" {
			t.Errorf("the ending stream said %q", lines.Text())
		}
	}
	if err := lines.Err(); err != nil {
		t.Errorf("the stream did not end well: %v", err)
	}
}

func TestGateway_WithoutRedis(t *testing.T) {
	t.Parallel()
	redis := testenv.Redis(t)
	url, _ := start(t, redis)
	if r := call(t, "GET", url+"/health/redis", ""); r.code != http.StatusOK || !strings.Contains(r.body, `"status":"healthy"`) {
		t.Errorf("healthy is answered %d %s", r.code, r.body)
	}

	lines := listen(t, url)
	redis.Kill()
	if r := call(t, "GET", url+"/health/redis", ""); r.code != http.StatusServiceUnavailable || !strings.Contains(r.body, `"status":"unhealthy"`) {
		t.Errorf("without Redis, health is answered %d %s", r.code, r.body)
	}
	// Neither the limit nor the cache stops the service: that is what it chose.
	if r := call(t, "GET", url+"/users/123", ""); r.code != http.StatusOK {
		t.Errorf("without Redis, a lookup is answered %d %s", r.code, r.body)
	}
	redis.Restart()
	if !lines.Scan() || lines.Text() != "event: gap" {
		t.Errorf("after a lost connection the stream said %q", lines.Text())
	}
}

func TestRun_RefusesBadSettings(t *testing.T) {
	t.Parallel()
	err := run(t.Context(), []string{"REDIS_URL=http://localhost"}, "127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "SERVICE_NAME") || !strings.Contains(err.Error(), "REDIS_URL") {
		t.Errorf("run: %v", err)
	}
}
