package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/medicalink/postroom/config"
	"github.com/medicalink/postroom/internal/cli"
	"github.com/medicalink/postroom/internal/lifecycle"
	"github.com/medicalink/postroom/rediskit"
)

func newMonitorCommand(p cli.Process) *cobra.Command {
	return &cobra.Command{
		Use:   "monitor",
		Short: "Serve the dashboard and health alone",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			cfg, err := config.Load(p.Environ, p.Dir)
			if err != nil {
				return &cli.UsageError{Err: err}
			}
			ctx, log := cmd.Context(), newLogger(cfg, p.Stderr)
			rdb, err := rediskit.Open(ctx, cfg.Redis)
			if err != nil {
				return err
			}
			var started lifecycle.Stack
			defer func() {
				stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopMargin)
				defer cancel()
				err = errors.Join(err, started.Stop(stopping))
			}()
			started.Add("redis", func(context.Context) error { return rdb.Close() })

			failed := make(chan error, 1)
			stop, err := serveMonitor(ctx, cfg, rdb, nil, log, failed)
			if err != nil {
				return err
			}
			started.Add("monitor", stop)
			select {
			case <-ctx.Done():
				return nil
			case err := <-failed:
				return err
			}
		},
	}
}
