package main

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/medicalink/postroom/internal/cli"
	"github.com/medicalink/postroom/internal/testenv"
)

// check runs `worker check` and returns what it printed and its exit code.
func check(t *testing.T, environ []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	p := cli.Process{Args: append([]string{"check"}, args...), Environ: environ, Dir: t.TempDir(), Stdout: &out, Stderr: &errs}
	root := &cobra.Command{Use: "worker"}
	root.AddCommand(newCheckCommand(p))
	code = cli.Run(t.Context(), p, root)
	return out.String(), errs.String(), code
}

func checkJSON(t *testing.T, environ ...string) (checkReport, int) {
	t.Helper()
	stdout, stderr, code := check(t, environ, "--output", "json")
	var report checkReport
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatalf("%v: %s%s", err, stdout, stderr)
	}
	if report.OK != (code == cli.ExitDone) {
		t.Errorf("ok is %v, exit code %d", report.OK, code)
	}
	return report, code
}

// has tells whether there is a finding with this result whose detail has text.
func (r *checkReport) has(check string, result verdict, text string) bool {
	return slices.ContainsFunc(r.Checks, func(f finding) bool {
		return f.Check == check && f.Result == result && strings.Contains(f.Detail, text)
	})
}

func TestCheck_allIsWell(t *testing.T) {
	t.Parallel()
	redis := testenv.Redis(t, testenv.AOF(), testenv.ACL("alice", "s3cret", "~* &* +@all"))
	smtp := testenv.SMTP(t)
	environ := []string{"REDIS_URL=" + redis.URL(), "SMTP_URL=" + smtp.URL(), "MAIL_FROM=no-reply@medicalink.example"}

	stdout, stderr, code := check(t, environ)
	if code != cli.ExitDone || stderr != "" {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	for _, want := range []string{
		"SERVICE_NAME", "redis://alice:<secret>@" + redis.Addr() + "/0", "append-only file on", "maxmemory-policy noeviction",
		"role master", "welcome (", "smtp ",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is missing in:\n%s", want, stdout)
		}
	}
	if strings.Contains(stdout, "s3cret") {
		t.Errorf("the password is shown:\n%s", stdout)
	}
	report, code := checkJSON(t, environ...)
	if code != cli.ExitDone || len(report.Settings) == 0 {
		t.Errorf("exit code %d, %+v", code, report)
	}
	for _, f := range report.Checks {
		if f.Result != checkOK {
			t.Errorf("%+v", f)
		}
	}
	if n := smtp.Count(); n != 0 {
		t.Errorf("%d messages were sent", n)
	}
}

func TestCheck_unsuitableRedisFails(t *testing.T) {
	t.Parallel()
	queues := testenv.Redis(t, testenv.RedisSetting("maxmemory-policy allkeys-lru"))
	smtp := testenv.SMTP(t)
	environ := []string{"SMTP_URL=" + smtp.URL(), "MAIL_FROM=no-reply@medicalink.example"}
	report, code := checkJSON(t, append(environ, "REDIS_URL="+queues.URL())...)
	if code != cli.ExitFailed || !report.has("redis", checkFail, "deletes queued jobs") || !report.has("redis", checkWarn, "append-only file is off") {
		t.Errorf("exit code %d, %+v", code, report.Checks)
	}

	node := testenv.Redis(t, testenv.AOF(), testenv.RedisSetting("cluster-enabled yes"))
	report, code = checkJSON(t, append(environ, "REDIS_URL="+node.URL())...)
	if code != cli.ExitFailed || !report.has("redis", checkFail, "use REDIS_CLUSTER") {
		t.Errorf("exit code %d, %+v", code, report.Checks)
	}

	// A cache may evict.
	kept := testenv.Redis(t, testenv.AOF())
	report, code = checkJSON(t, append(environ, "REDIS_URL="+kept.URL(), "CACHE_REDIS_URL="+queues.URL())...)
	if code != cli.ExitDone || !report.has("cache redis", checkOK, "allkeys-lru") {
		t.Errorf("exit code %d, %+v", code, report.Checks)
	}
}

func TestCheck_everythingIsDown(t *testing.T) {
	t.Parallel()
	redis := testenv.Redis(t)
	url := redis.URL()
	redis.Kill()
	report, code := checkJSON(t, "REDIS_URL="+url, "SMTP_URL=smtp://user:s3cret@"+redis.Addr(), "MONITOR_ADDR=0.0.0.0:8080")
	if code != cli.ExitFailed {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []finding{
		{"settings", checkFail, "MAIL_FROM"},
		{"monitor", checkFail, "no login"},
		{"redis", checkFail, "connection refused"},
		{"smtp 127.0.0.1", checkFail, ""},
		{"templates", checkOK, "welcome"},
	} {
		if !report.has(want.Check, want.Result, want.Detail) {
			t.Errorf("%+v is missing in %+v", want, report.Checks)
		}
	}
}

func TestCheck_badSettings(t *testing.T) {
	t.Parallel()
	report, code := checkJSON(t, "REDIS_DB=one", "SMTP_URL=http://user:s3cret@smtp", "WORKER_CONCURENCY=2")
	if code != cli.ExitFailed {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"REDIS_DB", "SMTP_URL", "WORKER_CONCURRENCY"} {
		if !report.has("settings", checkFail, want) {
			t.Errorf("%s is missing in %+v", want, report.Checks)
		}
	}
	if stdout, stderr, _ := check(t, []string{"SMTP_URL=http://user:s3cret@smtp"}); strings.Contains(stdout+stderr, "s3cret") {
		t.Errorf("the password is shown: %s%s", stdout, stderr)
	}
	if _, _, code := check(t, nil, "--output", "xml"); code != cli.ExitUsage {
		t.Errorf("a wrong flag: exit code %d", code)
	}
}
