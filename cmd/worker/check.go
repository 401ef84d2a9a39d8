package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/medicalink/postroom/config"
	"github.com/medicalink/postroom/internal/cli"
	"github.com/medicalink/postroom/internal/mailer"
	"github.com/medicalink/postroom/monitor"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/templates"
)

// checkTimeout bounds the whole of `worker check`: dial, TLS and log-in of a
// slow provider take up to 45 s.
const checkTimeout = time.Minute

type verdict string

const (
	checkOK   verdict = "ok"
	checkWarn verdict = "warn" // works, but can lose something
	checkFail verdict = "fail"
)

// finding is one line of the result.
type finding struct {
	Check  string  `json:"check"`
	Result verdict `json:"result"`
	Detail string  `json:"detail"`
}

type checkReport struct {
	OK       bool             `json:"ok"`
	Settings []config.Setting `json:"settings,omitempty"` // absent if they could not be read
	Checks   []finding        `json:"checks"`
}

func newCheckCommand(p cli.Process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Show the settings and try them",
		Long: `check prints the settings in effect, with secrets masked, and tries them: it
loads the templates, asks Redis for its state, and connects and logs in to every
SMTP provider. It changes nothing and sends no mail. It exits with 1 if
anything would keep "worker run" from working or make Redis lose jobs.

With --acl it tries nothing and prints the Redis users that the programs need,
with the least that each needs, as lines of an ACL file. QUEUE_NAMESPACE and the
SERVICE_NAME of the service in question are filled in.`,
		Args: cobra.NoArgs,
	}
	output := cli.AddOutput(cmd)
	acl := cmd.Flags().Bool("acl", false, "print the Redis users that the programs need, and try nothing")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *acl {
			return printACL(p, *output)
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), checkTimeout)
		defer cancel()
		var report checkReport
		cfg, err := config.Load(p.Environ, p.Dir)
		if err != nil {
			report.fail("settings", err)
		} else {
			report.Settings = cfg.Settings()
			report.tryAll(ctx, cfg)
		}
		failed := report.failed()
		report.OK = failed == 0

		write := report.writeText
		if *output == cli.JSON {
			write = func(w io.Writer) error { return cli.WriteJSON(w, report) }
		}
		if err := write(p.Stdout); err != nil {
			return err
		}
		if failed > 0 {
			return fmt.Errorf("%d of %d checks failed", failed, len(report.Checks))
		}
		return nil
	}
	return cmd
}

func printACL(p cli.Process, output cli.Output) error {
	cfg, err := config.Load(p.Environ, p.Dir)
	if err != nil {
		return &cli.UsageError{Err: err}
	}
	users := aclUsers(cfg, aclService(cfg))
	if output == cli.JSON {
		return cli.WriteJSON(p.Stdout, users)
	}
	return writeACL(p.Stdout, users)
}

func (r *checkReport) tryAll(ctx context.Context, cfg config.Config) {
	if err := cfg.RequireWorker(); err != nil {
		r.fail("settings", err)
	} else {
		r.add("settings", checkOK, "complete")
	}
	if err := monitor.CheckAddr(cfg.MonitorAddr); err != nil {
		r.fail("monitor", err)
	}
	if len(cfg.MonitorUsers) > 0 {
		r.add("monitor", checkWarn, "MONITOR_USERS is not in use: this version has no login and serves the dashboard on loopback only")
	}
	r.tryTemplates(cfg.TemplatesDir)
	r.tryRedis(ctx, "redis", cfg.Redis, rediskit.ForQueues)
	if !reflect.DeepEqual(cfg.CacheRedis, cfg.Redis) {
		r.tryRedis(ctx, "cache redis", cfg.CacheRedis, rediskit.ForCache)
	}
	if len(cfg.Mail.Providers) > 0 {
		r.trySMTP(ctx, cfg.Mail)
	}
}

func (r *checkReport) tryTemplates(dir string) {
	set, err := templates.Load(dir)
	if err != nil {
		r.fail("templates", err)
		return
	}
	var names []string
	for _, t := range set.List() {
		names = append(names, t.Name+" ("+strings.Join(t.Locales, ", ")+")")
	}
	r.add("templates", checkOK, strings.Join(names, "; "))
}

// tryRedis judges a server; one that only caches may evict and forget.
func (r *checkReport) tryRedis(ctx context.Context, name string, cfg rediskit.Config, use rediskit.Use) {
	rdb, err := rediskit.Open(ctx, cfg)
	if err != nil {
		r.fail(name, err)
		return
	}
	defer func() { _ = rdb.Close() }() // nothing was written
	start := time.Now()
	found, err := rdb.Preflight(ctx, use)
	if _, unfit := errors.AsType[*rediskit.UnfitError](err); err != nil && !unfit {
		r.fail(name, err)
		return
	}
	took := time.Since(start).Round(100 * time.Microsecond)
	for _, s := range found.Servers {
		r.add(name, checkOK, describeServer(s, took))
	}
	for _, f := range found.Faults {
		r.add(name, checkFail, f)
	}
	for _, w := range found.Warnings {
		r.add(name, checkWarn, w)
	}
}

func describeServer(s rediskit.Server, took time.Duration) string {
	policy, aof := s.MaxMemoryPolicy, "off"
	if policy == "" {
		policy = "unknown"
	}
	if s.AOF {
		aof = "on"
	}
	return fmt.Sprintf("Redis %s, role %s, maxmemory-policy %s, append-only file %s, INFO in %s", s.Version, s.Role, policy, aof, took)
}

func (r *checkReport) trySMTP(ctx context.Context, cfg mailer.Config) {
	m, err := mailer.New(cfg)
	if err != nil {
		r.fail("smtp", err)
		return
	}
	for _, result := range m.Check(ctx) {
		name := "smtp " + result.Provider
		if !result.OK {
			r.fail(name, result.Err)
			continue
		}
		encryption, login := result.TLS, "no log-in"
		if encryption == "" {
			encryption = "not encrypted"
		}
		if result.Auth != "" {
			login = "log-in " + result.Auth
		}
		r.add(name, checkOK, fmt.Sprintf("%s, %s, %s", encryption, login, result.Latency.Round(100*time.Microsecond)))
	}
	if err := m.Close(ctx); err != nil {
		r.fail("smtp", err)
	}
}

func (r *checkReport) add(check string, result verdict, detail string) {
	r.Checks = append(r.Checks, finding{Check: check, Result: result, Detail: detail})
}

// fail adds one line for each of the errors joined in err.
func (r *checkReport) fail(check string, err error) {
	if err == nil {
		err = errors.New("failed without a reason")
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			r.fail(check, e)
		}
		return
	}
	for line := range strings.Lines(err.Error()) {
		r.add(check, checkFail, strings.TrimSpace(line))
	}
}

func (r *checkReport) failed() int {
	n := 0
	for _, f := range r.Checks {
		if f.Result == checkFail {
			n++
		}
	}
	return n
}

func (r *checkReport) writeText(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(r.Settings) > 0 {
		fmt.Fprint(table, "SETTING\tVALUE\tFROM\n")
		for _, s := range r.Settings {
			value := s.Value
			if value == "" {
				value = "-"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\n", s.Name, value, s.Source)
		}
		if err := table.Flush(); err != nil {
			return fmt.Errorf("write settings: %w", err)
		}
		fmt.Fprintln(table)
	}
	fmt.Fprint(table, "CHECK\tRESULT\tDETAIL\n")
	for _, f := range r.Checks {
		fmt.Fprintf(table, "%s\t%s\t%s\n", f.Check, f.Result, f.Detail)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("write checks: %w", err)
	}
	return nil
}
