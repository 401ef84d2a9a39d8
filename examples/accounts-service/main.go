// Command accounts-service is an example of a service that uses rediskit and
// tasks: login sessions, users behind a cache, and a welcome email that a worker
// sends. README.md says how to try it.
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
	err := run(ctx, os.Environ(), cmp.Or(os.Getenv("LISTEN_ADDR"), "127.0.0.1:8082"), logger)
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
	// A Redis that deletes keys would lose emails and log people out.
	fitness, err := client.Preflight(ctx, rediskit.ForQueues)
	if err != nil {
		return err
	}
	for _, warning := range fitness.Warnings {
		logger.Warn(warning)
	}

	accounts, err := newAccounts(client, newStore(), logger)
	if err != nil {
		return err
	}
	defer accounts.users.Wait()
	return serve(ctx, addr, accounts.routes(), logger)
}

// serve answers requests until ctx ends, and lets those under way finish.
func serve(ctx context.Context, addr string, handler http.Handler, logger *slog.Logger) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("listen on LISTEN_ADDR: %w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
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
	return errors.Join(server.Shutdown(stopping), <-failed)
}
