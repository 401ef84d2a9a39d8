package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/medicalink/postroom/config"
	"github.com/medicalink/postroom/internal/cli"
	"github.com/medicalink/postroom/internal/lifecycle"
	"github.com/medicalink/postroom/internal/mailer"
	"github.com/medicalink/postroom/internal/notifier/webhook"
	"github.com/medicalink/postroom/internal/worker"
	"github.com/medicalink/postroom/monitor"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/templates"
)

// stopMargin is what Stop may take beyond SHUTDOWN_TIMEOUT: to end handlers that
// did not finish, to write the ledger's journal, to close connections.
const stopMargin = 10 * time.Second

func newRunCommand(p cli.Process) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Consume the queues until told to stop",
		Long: `run consumes the queues and delivers each email and notification. It serves health and the
dashboard on MONITOR_ADDR.

SIGTERM or Ctrl-C stops it: no new jobs are taken, running ones finish for up to
SHUTDOWN_TIMEOUT and are handed back after that. A second signal quits at once.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(p.Environ, p.Dir)
			if err == nil {
				err = cfg.RequireWorker()
			}
			if err != nil {
				return &cli.UsageError{Err: err}
			}
			// A worker keeps little and throws away much: 64 MiB that are never
			// touched, and so never resident, let the collector rest for that much
			// garbage instead of the few MiB it would else allow.
			ballast := make([]byte, 64<<20)
			defer runtime.KeepAlive(ballast)
			return run(cmd.Context(), cfg, newLogger(cfg, p.Stderr))
		},
	}
}

func newLogger(cfg config.Config, w io.Writer) zerolog.Logger {
	if cfg.LogFormat == config.LogText {
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly}
	}
	return zerolog.New(w).Level(cfg.LogLevel).With().Timestamp().Str("service", cfg.Service).Logger()
}

// run is one straight line: what it opens it closes, in the opposite order,
// under one deadline.
func run(ctx context.Context, cfg config.Config, log zerolog.Logger) (err error) {
	var started lifecycle.Stack
	defer func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.ShutdownTimeout+stopMargin)
		defer cancel()
		err = errors.Join(err, started.Stop(stopping))
	}()

	set, err := templates.Load(cfg.TemplatesDir)
	if err != nil {
		return fmt.Errorf("load the templates: %w", err)
	}

	rdb, err := rediskit.Open(ctx, cfg.Redis)
	if err != nil {
		return err
	}
	started.Add("redis", func(context.Context) error { return rdb.Close() })
	flight, err := rdb.Preflight(ctx, rediskit.ForQueues)
	if err != nil {
		return err
	}
	for _, w := range flight.Warnings {
		log.Warn().Str("warning", w).Msg("redis")
	}

	mail, err := mailer.New(cfg.Mail)
	if err != nil {
		return fmt.Errorf("set up the mailer: %w", err)
	}
	started.Add("mailer", mail.Close)

	channels, client, err := newChannels(cfg, rdb)
	if err != nil {
		return err
	}
	started.Add("channels", func(context.Context) error { client.Close(); return nil })

	w, err := worker.New(worker.Config{
		Queues:          cfg.Queues,
		StrictPriority:  cfg.StrictPriority,
		Concurrency:     cfg.Concurrency,
		ShutdownTimeout: cfg.ShutdownTimeout,
		Namespace:       cfg.Namespace,
		From:            cfg.MailFrom,
		AppURL:          cfg.AppURL,
		ActionHosts:     cfg.ActionHosts,
		Channels:        channels,
		Webhooks:        webhook.NewLog(rdb, cfg.Namespace),
	}, rdb, set, mail, log)
	if err != nil {
		return err
	}

	failed := make(chan error, 1)
	stopHTTP, err := serveMonitor(ctx, cfg, rdb, monitorChecks(w), log, failed)
	if err != nil {
		return err
	}
	started.Add("monitor", stopHTTP)

	if err := w.Start(ctx); err != nil {
		return err
	}
	started.Add("worker", w.Stop)

	select {
	case <-ctx.Done():
		log.Info().Str("cause", context.Cause(ctx).Error()).Msg("stopping")
		return nil
	case err := <-failed:
		return err
	}
}

func monitorChecks(w *worker.Worker) []monitor.Check {
	return []monitor.Check{{Name: "worker", Run: func(context.Context) error { return w.Ready() }}}
}

// serveMonitor listens on MONITOR_ADDR. What the server dies of later arrives on failed.
func serveMonitor(ctx context.Context, cfg config.Config, rdb *rediskit.Client, checks []monitor.Check, log zerolog.Logger, failed chan<- error) (stop func(context.Context) error, err error) {
	if err := monitor.CheckAddr(cfg.MonitorAddr); err != nil {
		return nil, fmt.Errorf("serve MONITOR_ADDR: %w", err)
	}
	mon, err := monitor.New(rdb, monitor.Config{Checks: checks})
	if err != nil {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.MonitorAddr)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on MONITOR_ADDR: %w; set MONITOR_ADDR to another address", err), mon.Close())
	}
	srv := &http.Server{Handler: mon, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("serve the monitor: %w", err)
		}
	}()
	log.Info().Str("address", "http://"+l.Addr().String()).Msg("monitor listens")
	return func(ctx context.Context) error {
		return errors.Join(srv.Shutdown(ctx), mon.Close())
	}, nil
}
