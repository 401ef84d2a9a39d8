package migration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/rediskit/cache"
	"github.com/medicalink/postroom/rediskit/pubsub"
	"github.com/medicalink/postroom/rediskit/ratelimit"
	"github.com/medicalink/postroom/rediskit/session"
	"github.com/medicalink/postroom/tasks"
)

// User is what the old examples call userData.
type User struct {
	Name string `json:"name"`
}

// Update is the message on appointment:updates.
type Update struct {
	AppointmentID string `json:"appointmentId"`
	Status        string `json:"status"`
	Timestamp     int64  `json:"timestamp"`
}

func Example_connect() {
	ctx := context.Background()
	cfg, err := rediskit.FromEnv(os.Environ())
	check(err)
	client, err := rediskit.Open(ctx, cfg)
	check(err)
	defer func() { check(client.Close()) }()
	_, err = client.Preflight(ctx, rediskit.ForQueues)
	check(err)

	fmt.Println(client.Key("user", "123"))
	check(client.Set(ctx, client.Key("feature", "new-calendar"), "on", time.Hour).Err())
	fmt.Println(client.Get(ctx, "api-gateway:feature:new-calendar").Val())
	// Output:
	// api-gateway:user:123
	// on
}

func Example_connections() {
	ctx, client := context.Background(), shared
	check(client.Publisher().Publish(ctx, client.Key("news"), "hello").Err())
	reports := client.Dedicated("reports", func(c *rediskit.Config) { c.PoolSize = 2 })
	fmt.Println(reports.BLPop(ctx, 10*time.Millisecond, client.Key("nothing")).Err()) // blocks nobody else

	// Output: redis: nil
}

func Example_cacheConnection() {
	ctx := context.Background()
	cacheCfg, err := rediskit.CacheFromEnv(os.Environ())
	check(err)
	cacheClient, err := rediskit.Open(ctx, cacheCfg)
	check(err)
	check(cacheClient.Close())

	cacheCfg, err = rediskit.CacheFromEnv([]string{
		"SERVICE_NAME=accounts-service",
		"REDIS_URL=redis://jobs.example:6379",
		"CACHE_REDIS_URL=redis://cache.example:6379",
	})
	fmt.Println(cacheCfg.Addrs, err)
	// Output: [cache.example:6379] <nil>
}

func Example_settings() {
	cfg, err := rediskit.FromEnv([]string{
		"SERVICE_NAME=accounts-service",
		"REDIS_URL=rediss://service:secret@redis.example:6380",
		"REDIS_CA_FILE=/etc/postroom/ca.pem",
	})
	check(err)
	fmt.Println(cfg.Service, cfg.TLS, cfg.Username, cfg.CAFile)

	cfg.DialTimeout, cfg.ReadTimeout, cfg.MaxRetries = 3*time.Second, time.Second, 5
	fmt.Println(cfg.Validate())

	cfg, err = rediskit.FromEnv([]string{"SERVICE_NAME=accounts-service", "REDIS_CLUSTER=node-1.example:6379,node-2.example:6379"})
	fmt.Println(cfg.Cluster, err)
	cfg, err = rediskit.FromEnv([]string{
		"SERVICE_NAME=accounts-service",
		"REDIS_SENTINELS=s-1.example:26379,s-2.example:26379,s-3.example:26379",
		"REDIS_MASTER_NAME=main",
	})
	fmt.Println(cfg.Master, err)

	_, err = rediskit.FromEnv([]string{"SERVICE_NAME=accounts-service", "REDIS_URL=rediss://redis.example", "REDIS_TLS=false"})
	fmt.Println(err)
	// Output:
	// accounts-service true service /etc/postroom/ca.pem
	// <nil>
	// true <nil>
	// main <nil>
	// REDIS_TLS: "false" is not accepted: contradicts REDIS_URL, which begins with rediss:// (TLS): remove REDIS_TLS, or use redis://
}

func Example_cache() {
	ctx, client, userID := context.Background(), shared, "123"
	database := func(context.Context) (User, error) { return User{Name: "Ada"}, nil }

	users, err := cache.Of[User](client, "user", cache.Config{TTL: time.Hour, OnError: cache.Bypass})
	check(err)
	user, err := users.GetOrLoad(ctx, userID, database)
	check(err)
	fmt.Println(user.Name)

	err = users.Set(ctx, userID, user)
	check(err)
	err = users.Set(ctx, userID, user, cache.TTL(10*time.Minute))
	check(err)
	user, found, err := users.Get(ctx, userID)
	fmt.Println(user.Name, found, err)
	err = users.Delete(ctx, userID)
	check(err)
	_, found, err = users.Get(ctx, userID)
	fmt.Println(found, err)
	users.Wait()
	// Output:
	// Ada
	// Ada true <nil>
	// false <nil>
}

func Example_email() {
	ctx, client, userEmail := context.Background(), shared, "ada@example.com"
	producer, err := tasks.NewProducer(client, tasks.FromService(client.Service()))
	check(err)
	email := tasks.Email{To: userEmail, Template: "welcome", Data: map[string]any{"name": "Ada"}}
	receipt, err := producer.SendEmail(ctx, email, tasks.Delay(5*time.Second), tasks.Priority(tasks.Critical))
	check(err)
	fmt.Println(receipt.Queue, receipt.State)

	reminder := tasks.Email{
		To: userEmail, Subject: "Your appointment", Body: "Tomorrow at nine.", Class: tasks.ClassClinical,
	}
	receipt, err = producer.SendEmail(ctx, reminder, tasks.MaxRetry(5), tasks.Retention(48*time.Hour), tasks.IdempotencyKey("reminder-a-17"))
	check(err)
	fmt.Println(receipt.Queue, receipt.State)
	// Output:
	// email:critical scheduled
	// email:default pending
}

func Example_publish() {
	ctx, client, id, status := context.Background(), shared, "a-17", "confirmed"
	bus, err := pubsub.New(client, pubsub.Config{})
	check(err)
	updates, err := pubsub.Of[Update](bus, "appointment:updates")
	check(err)

	received := make(chan Update, 2)
	onUpdate := func(_ context.Context, m pubsub.Message[Update]) { received <- m.Value }
	onGap := func(context.Context, pubsub.Gap) { fmt.Println("read the appointments again") }
	sub, err := updates.Subscribe(ctx, onUpdate, onGap)
	check(err)
	defer func() { check(sub.Close()) }()

	err = updates.Publish(ctx, Update{AppointmentID: id, Status: status, Timestamp: time.Now().UnixMilli()})
	check(err)
	fmt.Println((<-received).Status)

	// A service with the old module says the same.
	message, err := json.Marshal(map[string]any{"appointmentId": id, "status": "cancelled", "timestamp": 1705314600000})
	check(err)
	check(client.Publish(ctx, "api-gateway:appointment:updates", message).Err())
	fmt.Println((<-received).Status)
	// Output:
	// confirmed
	// cancelled
}

func Example_otherService() {
	ctx, client := context.Background(), shared
	bus, err := pubsub.New(client, pubsub.Config{})
	check(err)
	received := make(chan string, 1)
	onDeleted := func(_ context.Context, m pubsub.Message[string]) { received <- m.Topic + " " + m.Value }

	deleted, err := pubsub.Of[string](bus.Service("accounts-service"), "user:deleted")
	check(err)
	one, err := deleted.Subscribe(ctx, onDeleted, pubsub.IgnoreGaps)
	check(err)
	check(client.Publish(ctx, "accounts-service:user:deleted", `"123"`).Err())
	fmt.Println(<-received)
	check(one.Close())

	everything, err := pubsub.Matching[string](bus, "user:*")
	check(err)
	all, err := everything.Subscribe(ctx, onDeleted, pubsub.IgnoreGaps)
	check(err)
	check(client.Publish(ctx, "api-gateway:user:renamed", `"124"`).Err())
	fmt.Println(<-received)
	check(all.Close())
	// Output:
	// user:deleted 123
	// user:renamed 124
}

func Example_rateLimit() {
	ctx, client, userID := context.Background(), shared, "123"
	limiter, err := ratelimit.New(client, ratelimit.Config{OnError: ratelimit.FailOpen})
	check(err)
	result, err := limiter.Allow(ctx, "user:"+userID, 100, time.Minute)
	check(err)
	fmt.Println(result.Allowed, result.Remaining)

	caller := func(r *http.Request) (string, bool) { return "user:" + r.Header.Get("X-User"), true }
	rule := ratelimit.Rule{Limit: 100, Window: time.Minute, Key: caller}
	limit, err := ratelimit.Middleware(limiter, rule)
	check(err)
	handler := limit(http.NotFoundHandler())
	answers := map[int]int{}
	for range 101 {
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/", nil))
		answers[answer.Code]++
	}
	fmt.Println(answers)
	// Output:
	// true 99
	// map[404:100 429:1]
}

func Example_session() {
	ctx, client, userID := context.Background(), shared, "123"
	type Login struct{ Device string }
	sessions, err := session.New[Login](client, session.Config{Idle: 30 * time.Minute, Absolute: 12 * time.Hour})
	check(err)
	token, err := sessions.Create(ctx, userID, Login{Device: "telephone"})
	check(err)
	s, err := sessions.Renew(ctx, token)
	fmt.Println(s.User, s.Data.Device, err)
	err = sessions.Revoke(ctx, token)
	check(err)
	err = sessions.RevokeAll(ctx, userID)
	check(err)
	_, err = sessions.Read(ctx, token)
	fmt.Println(err)
	// Output:
	// 123 telephone <nil>
	// session not found
}

func Example_health() {
	client := shared
	mux := http.NewServeMux()
	mux.Handle("GET /health/redis", rediskit.HealthHandler(client))
	answer := httptest.NewRecorder()
	mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/health/redis", nil))
	fmt.Println(answer.Code)
	// Output: 200
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
