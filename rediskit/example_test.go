//go:build unix

package rediskit_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

// connect is what a service does with rediskit.FromEnv(os.Environ()) and
// rediskit.Open; here the server is one of the tests'.
func connect() (client *rediskit.Client, closeAll func()) {
	cfg, stop := testenv.ExampleRedis()
	client, err := rediskit.Open(context.Background(), cfg)
	if err != nil {
		panic(err)
	}
	return client, func() { _ = client.Close(); stop() }
}

func ExampleOpen() {
	cfg, stop := testenv.ExampleRedis() // in a service: rediskit.FromEnv(os.Environ())
	defer stop()
	ctx := context.Background()
	client, err := rediskit.Open(ctx, cfg)
	if err != nil {
		fmt.Println(err) // says what was tried, why it failed and what to set
		return
	}
	defer func() { _ = client.Close() }()
	if err := client.Set(ctx, client.Key("greeting"), "hello", 0).Err(); err != nil {
		fmt.Println(err)
	}
	fmt.Println(client.Get(ctx, "api-gateway:greeting").Val())
	// Output: hello
}

func ExampleOpen_error() {
	_, err := rediskit.Open(context.Background(), rediskit.Config{Addrs: []string{"/nonexistent/redis.sock"}})
	fmt.Println(err)
	// Output: connect to Redis at /nonexistent/redis.sock (user default, password no, TLS no, database 0): no socket at that path; check the path in REDIS_URL, and that the server is running
}

func ExampleFromEnv() {
	cfg, err := rediskit.FromEnv([]string{ // os.Environ()
		"SERVICE_NAME=accounts-service",
		"REDIS_URL=rediss://alice:wonder-land@redis.example:6380/0",
	})
	fmt.Println(cfg.Service, cfg, err)

	_, err = rediskit.FromEnv([]string{"SERVICE_NAME=accounts-service", "REDIS_URL=rediss://redis.example", "REDIS_TLS=false"})
	fmt.Println(err)
	// Output:
	// accounts-service redis.example:6380 (user alice, password yes, TLS yes, database 0) <nil>
	// REDIS_TLS: "false" is not accepted: contradicts REDIS_URL, which begins with rediss:// (TLS): remove REDIS_TLS, or use redis://
}

func ExampleCacheFromEnv() {
	cfg, err := rediskit.CacheFromEnv([]string{
		"SERVICE_NAME=accounts-service",
		"REDIS_URL=redis://queues.example",
		"CACHE_REDIS_URL=redis://cache.example",
	})
	fmt.Println(cfg.Addrs, err)
	// Output: [cache.example:6379] <nil>
}

func ExampleParseURL() {
	cfg, err := rediskit.ParseURL("rediss://alice:p%40ss@redis.example/2")
	fmt.Println(cfg.Addrs, cfg.Username, cfg.Password, cfg.TLS, cfg.DB, err)
	// Output: [redis.example:6379] alice <secret> true 2 <nil>
}

func ExampleReadSecret() {
	dir, err := os.MkdirTemp("", "secrets-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, "redis-password")
	if err := os.WriteFile(file, []byte("wonder-land\n"), 0o600); err != nil {
		fmt.Println(err)
	}
	secret, err := rediskit.ReadSecret(file)
	fmt.Println(secret, len(string(secret)), err)
	// Output: <secret> 11 <nil>
}

func ExampleConfig_Validate() {
	err := rediskit.Config{Addrs: []string{"redis.example"}, DB: -1}.Validate()
	fmt.Println(err)
	// Output:
	// redis config: address must be host:port with a port of 1 to 65535
	// redis config: database -1: must not be negative
}

func ExampleConfig_Loopback() {
	fmt.Println(rediskit.Config{}.Loopback(), rediskit.Config{Addrs: []string{"redis.example:6379"}}.Loopback())
	// Output: true false
}

func ExampleConfig_Warnings() {
	fmt.Println(rediskit.Config{Addrs: []string{"redis.example:6379"}}.Warnings())
	// Output: [the connection to another machine is not encrypted: use rediss:// or REDIS_TLS=true]
}

func ExampleClient_Key() {
	client, closeAll := connect()
	defer closeAll()
	fmt.Println(client.Key("user", "123"))
	// A cluster keeps keys with the same hash tag together.
	fmt.Println(client.Key("basket", "{user-123}", "items"))
	// Output:
	// api-gateway:user:123
	// api-gateway:basket:{user-123}:items
}

func ExampleClient_Service() {
	client, closeAll := connect()
	defer closeAll()
	fmt.Println(client.Service())
	// Output: api-gateway
}

func ExampleClient_Config() {
	client, closeAll := connect()
	defer closeAll()
	cfg := client.Config()
	cfg.ClientName = "api-gateway-reports"
	reports, err := rediskit.Open(context.Background(), cfg)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = reports.Close() }()
	fmt.Println(reports.ClientGetName(context.Background()).Val())
	// Output: api-gateway-reports
}

func ExampleClient_Dedicated() {
	client, closeAll := connect()
	defer closeAll()
	// Connections of its own, and commands that are never sent twice.
	billing := client.Dedicated("billing", func(c *rediskit.Config) { c.MaxRetries, c.PoolSize = -1, 2 })
	ctx := context.Background()
	fmt.Println(billing.Incr(ctx, client.Key("invoices")).Val(), billing.ClientGetName(ctx).Val())
	// Output: 1 api-gateway:billing
}

func ExampleClient_Publisher() {
	client, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	channel := client.Key("updates")
	sub := client.Subscriber().Subscribe(ctx, channel)
	defer func() { _ = sub.Close() }()
	if _, err := sub.Receive(ctx); err != nil { // the subscription is there
		fmt.Println(err)
	}
	reached, err := client.Publisher().Publish(ctx, channel, "hello").Result()
	fmt.Println(reached, err)
	// Output: 1 <nil>
}

// Package pubsub does this with types, buffers and notices of what was missed.
func ExampleClient_Subscriber() {
	client, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	sub := client.Subscriber().Subscribe(ctx, client.Key("updates"))
	defer func() { _ = sub.Close() }()
	if _, err := sub.Receive(ctx); err != nil {
		fmt.Println(err)
	}
	client.Publisher().Publish(ctx, client.Key("updates"), "hello")
	message, err := sub.ReceiveMessage(ctx)
	fmt.Println(message.Channel, message.Payload, err)
	// Output: api-gateway:updates hello <nil>
}

func ExampleClient_ConnOpt() {
	client, closeAll := connect()
	defer closeAll()
	// asynq.NewInspector(client.ConnOpt("inspector")) closes only its own client.
	lent := client.ConnOpt("inspector").MakeRedisClient().(redis.UniversalClient)
	fmt.Println(lent.Close(), client.Ping(context.Background()).Val())
	// Output: <nil> PONG
}

func ExampleClient_Health() {
	client, closeAll := connect()
	fmt.Println(client.Health(context.Background()))
	closeAll()
	fmt.Println(client.Health(context.Background()) != nil)
	// Output:
	// <nil>
	// true
}

func ExampleClient_Close() {
	client, closeAll := connect()
	defer closeAll()
	reports := client.Dedicated("reports")
	fmt.Println(client.Close(), client.Close())
	fmt.Println(reports.Ping(context.Background()).Err())
	// Output:
	// <nil> <nil>
	// redis: client is closed
}

func ExampleClient_Preflight() {
	client, closeAll := connect()
	defer closeAll()
	found, err := client.Preflight(context.Background(), rediskit.ForQueues)
	if err != nil {
		fmt.Println(err) // refuse to start
		return
	}
	for _, w := range found.Warnings {
		fmt.Println(w)
	}
	// Output: the append-only file is off: a restart of Redis loses the jobs since its last snapshot; set appendonly yes
}

func ExampleClient_Server() {
	client, closeAll := connect()
	defer closeAll()
	server, err := client.Server(context.Background())
	fmt.Println(server.Role, server.MaxMemoryPolicy, err)
	// Output: master noeviction <nil>
}

func ExampleClient_Servers() {
	client, closeAll := connect()
	defer closeAll()
	servers, err := client.Servers(context.Background())
	fmt.Println(len(servers), err) // in a cluster one for each master
	// Output: 1 <nil>
}

func ExampleHealthHandler() {
	client, closeAll := connect()
	defer closeAll()
	mux := http.NewServeMux()
	mux.Handle("GET /health/redis", rediskit.HealthHandler(client))

	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/health/redis", nil))
	body, _, _ := strings.Cut(w.Body.String(), `","timestamp"`)
	fmt.Println(w.Code, body)
	// Output: 200 {"status":"healthy
}

func ExampleLogTo() {
	rediskit.LogTo(func(message string) { fmt.Fprintln(os.Stderr, message) }) // the service's logger
	defer rediskit.LogTo(nil)
	client, closeAll := connect()
	defer closeAll()
	fmt.Println(client.Ping(context.Background()).Val())
	// Output: PONG
}
