package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/mailer"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/internal/worker"
	"github.com/medicalink/postroom/tasks"
	"github.com/medicalink/postroom/templates"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testenv.IgnorePools()) }

const (
	ada      = `{"email":"Ada@example.com","password":"analytical engine","name":"Ada"}`
	adaWrong = `{"email":"ada@example.com","password":"difference engine"}`
)

// start runs the program as main does, until the end of the test.
func start(t *testing.T, redis *testenv.RedisServer) (url string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	read, write := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		environ := []string{"SERVICE_NAME=accounts-service", "REDIS_URL=" + redis.URL()}
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
	url, ok := <-address
	if !ok {
		cancel()
		t.Fatalf("the service did not start: %v", <-ended)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return url
}

// answer is what came back.
type answer struct {
	code    int
	header  http.Header
	body    string
	cookies []*http.Cookie
}

// call returns the answer to a request with a session's token, if any.
func call(t *testing.T, method, url, body, token string) answer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		request.AddCookie(&http.Cookie{Name: sessionCookie, Value: token})
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
	return answer{response.StatusCode, response.Header, string(text), response.Cookies()}
}

// want fails the test unless the answer has the status.
func want(t *testing.T, status int, method, url, body, token string) answer {
	t.Helper()
	got := call(t, method, url, body, token)
	if got.code != status {
		t.Fatalf("%s %s is answered %d, not %d: %s", method, url, got.code, status, got.body)
	}
	return got
}

// login returns the token of a new session.
func login(t *testing.T, url, token string) string {
	t.Helper()
	got := want(t, http.StatusNoContent, "POST", url+"/login", ada, token)
	for _, cookie := range got.cookies {
		if cookie.Name == sessionCookie && cookie.Secure && cookie.HttpOnly && cookie.SameSite == http.SameSiteLaxMode {
			return cookie.Value
		}
	}
	t.Fatalf("the login sets %v", got.header["Set-Cookie"])
	return ""
}

func TestAccounts_Sessions(t *testing.T) {
	t.Parallel()
	url := start(t, testenv.Redis(t))
	want(t, http.StatusUnauthorized, "GET", url+"/me", "", "")
	want(t, http.StatusCreated, "POST", url+"/accounts", ada, "")
	want(t, http.StatusConflict, "POST", url+"/accounts", ada, "")
	want(t, http.StatusUnauthorized, "POST", url+"/login", adaWrong, "")

	telephone, laptop := login(t, url, ""), login(t, url, "")
	if r := want(t, http.StatusOK, "GET", url+"/me", "", telephone); !strings.Contains(r.body, `"name":"Ada","email":"ada@example.com"`) {
		t.Errorf("me is %s", r.body)
	}

	// A login ends the session that the browser came with.
	again := login(t, url, telephone)
	want(t, http.StatusUnauthorized, "GET", url+"/me", "", telephone)
	want(t, http.StatusOK, "GET", url+"/me", "", again)

	got := want(t, http.StatusNoContent, "POST", url+"/logout", "", again)
	if c := got.cookies; len(c) != 1 || c[0].MaxAge >= 0 {
		t.Errorf("the logout sets %v", c)
	}
	want(t, http.StatusUnauthorized, "GET", url+"/me", "", again)
	want(t, http.StatusOK, "GET", url+"/me", "", laptop)
	want(t, http.StatusNoContent, "POST", url+"/logout", "", "")

	tablet := login(t, url, "")
	want(t, http.StatusNoContent, "POST", url+"/logout-everywhere", "", laptop)
	for _, token := range []string{laptop, tablet} {
		want(t, http.StatusUnauthorized, "GET", url+"/me", "", token)
	}
}

func TestAccounts_LimitsAttempts(t *testing.T) {
	t.Parallel()
	url := start(t, testenv.Redis(t))
	want(t, http.StatusCreated, "POST", url+"/accounts", ada, "")
	for range 5 {
		want(t, http.StatusUnauthorized, "POST", url+"/login", adaWrong, "")
	}
	got := want(t, http.StatusTooManyRequests, "POST", url+"/login", ada, "")
	if got.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

func TestAccounts_CachesUsers(t *testing.T) {
	t.Parallel()
	redis := testenv.Redis(t)
	url := start(t, redis)
	created := want(t, http.StatusCreated, "POST", url+"/accounts", ada, "")
	token := login(t, url, "")
	want(t, http.StatusOK, "GET", url+"/me", "", token)

	client := redis.Open(t)
	_, id, _ := strings.Cut(created.body, `"id":"`)
	id, _, _ = strings.Cut(id, `"`)
	key := "accounts-service:user:" + id
	if got := client.Get(t.Context(), key).Val(); got != strings.TrimSpace(created.body) {
		t.Errorf("the cache holds %q", got)
	}
	want(t, http.StatusBadRequest, "PATCH", url+"/me", `{"name":"two\nlines"}`, token)
	want(t, http.StatusNoContent, "PATCH", url+"/me", `{"name":"Ada, Countess of Lovelace"}`, token)
	if r := want(t, http.StatusOK, "GET", url+"/me", "", token); !strings.Contains(r.body, "Countess") {
		t.Errorf("after the change me is %s", r.body)
	}
}

// The email is in the queue, and a worker brings it to the mail server.
func TestAccounts_SendsWelcome(t *testing.T) {
	t.Parallel()
	redis, smtp := testenv.Redis(t), testenv.SMTP(t)
	url := start(t, redis)
	want(t, http.StatusCreated, "POST", url+"/accounts", ada, "")

	client := redis.Open(t)
	queue := tasks.EmailQueue("", tasks.Default)
	waiting, err := asynq.NewInspectorFromRedisClient(client).ListPendingTasks(queue)
	if err != nil || len(waiting) != 1 {
		t.Fatalf("waiting: %v, %v", waiting, err)
	}
	email, err := tasks.DecodeEmail(waiting[0].Payload)
	if err != nil || email.To != `"Ada" <ada@example.com>` || email.Template != "welcome" || waiting[0].Headers[tasks.HeaderService] != "accounts-service" {
		t.Errorf("waiting: %+v from %v, %v", email, waiting[0].Headers, err)
	}

	providers, err := mailer.ParseProviders(smtp.URL())
	if err != nil {
		t.Fatal(err)
	}
	relay, err := mailer.New(mailer.Config{Providers: providers})
	if err != nil {
		t.Fatal(err)
	}
	set, err := templates.Load("")
	if err != nil {
		t.Fatal(err)
	}
	cfg := worker.Config{Queues: map[string]int{queue: 1}, From: "MedicaLink <noreply@medicalink.example>"}
	postman, err := worker.New(cfg, client, set, relay, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if err := postman.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	smtp.WaitCount(t, 1)
	stopping, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := errors.Join(postman.Stop(stopping), relay.Close(stopping)); err != nil {
		t.Errorf("stop the worker: %v", err)
	}
	if got := smtp.Messages()[0]; got.To != "ada@example.com" || !strings.Contains(string(got.Raw), "Ada") {
		t.Errorf("delivered to %s:\n%s", got.To, got.Raw)
	}
}

// Nobody is logged in, registered or let in on a guess while Redis is away.
func TestAccounts_WithoutRedis(t *testing.T) {
	t.Parallel()
	redis := testenv.Redis(t, testenv.AOF())
	url := start(t, redis)
	want(t, http.StatusCreated, "POST", url+"/accounts", ada, "")
	token := login(t, url, "")
	grace := `{"email":"grace@example.com","password":"nanoseconds of wire","name":"Grace"}`

	redis.Kill()
	want(t, http.StatusServiceUnavailable, "GET", url+"/me", "", token)
	want(t, http.StatusServiceUnavailable, "POST", url+"/login", ada, "")
	want(t, http.StatusServiceUnavailable, "POST", url+"/logout", "", token)
	want(t, http.StatusServiceUnavailable, "POST", url+"/accounts", grace, "")
	want(t, http.StatusServiceUnavailable, "GET", url+"/health/redis", "", "")

	redis.Restart()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if r := call(t, "GET", url+"/health/redis", "", ""); r.code == http.StatusOK {
			break // go-redis dials a server that was away once a second
		}
		if time.Now().After(deadline) {
			t.Fatal("the service does not find Redis again")
		}
	}
	want(t, http.StatusOK, "GET", url+"/me", "", token)
	want(t, http.StatusCreated, "POST", url+"/accounts", grace, "")
}

func TestRun_RefusesAServerThatDeletesJobs(t *testing.T) {
	t.Parallel()
	redis := testenv.Redis(t, testenv.RedisSetting("maxmemory-policy allkeys-lru"))
	err := run(t.Context(), []string{"SERVICE_NAME=accounts-service", "REDIS_URL=" + redis.URL()}, "127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "noeviction") {
		t.Errorf("run: %v", err)
	}
}
