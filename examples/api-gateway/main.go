// Command api-gateway is an example of a service that uses rediskit: a rate
// limit for each caller, lookups behind a cache, live updates of appointments,
// a page of notifications and the health of Redis. README.md says how to try it.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/medicalink/postroom/rediskit"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	rediskit.LogTo(func(message string) { logger.Warn(message) })
	err := run(ctx, os.Environ(), cmp.Or(os.Getenv("LISTEN_ADDR"), "127.0.0.1:8081"), logger)
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends. What it opens it closes, in the opposite order.
func run(ctx context.Context, environ []string, addr string, logger *slog.Logger) (err error) {
	cfg, err := rediskit.FromEnv(environ)
	if err != nil {
		return err
	}
	client, err := rediskit.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	fitness, err := client.Preflight(ctx, rediskit.ForCache)
	if err != nil {
		return err
	}
	for _, warning := range fitness.Warnings {
		logger.Warn(warning)
	}

	gw, err := newGateway(ctx, client, findUser, logger)
	if err != nil {
		return err
	}
	defer func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		err = errors.Join(err, gw.close(stopping))
	}()
	return serve(ctx, addr, gw, logger)
}

// serve answers requests until ctx ends, and lets those under way finish.
func serve(ctx context.Context, addr string, gw *gateway, logger *slog.Logger) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("listen on LISTEN_ADDR: %w", err)
	}
	server := &http.Server{Handler: gw.routes(), ReadHeaderTimeout: 5 * time.Second}
	server.RegisterOnShutdown(gw.feed.close) // streams would never finish by themselves
	logger.Info("listening", "address", "http://"+listener.Addr().String())

	failed := make(chan error, 1)
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
		}
		close(failed)
	}()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	logger.Info("stopping")
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	// Shutdown waits for the pages' connections, and the handler's Close ends them.
	closed := make(chan error, 1)
	go func() { closed <- gw.realtime.Close(stopping) }()
	return errors.Join(server.Shutdown(stopping), <-closed, <-failed)
}

// findUser stands for the call of the accounts service or of a database.
func findUser(_ context.Context, id string) (User, error) {
	people := map[string]string{"123": "Ada Lovelace", "124": "Grace Hopper"}
	name, ok := people[id]
	if !ok {
		return User{}, errNoUser
	}
	return User{ID: id, Name: name}, nil
}
