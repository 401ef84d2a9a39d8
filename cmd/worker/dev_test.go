package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/medicalink/postroom/config"
	"github.com/medicalink/postroom/internal/cli"
)

// The second command of the README, with the real program, in an environment
// that has a Redis and a relay: neither may be used.
func TestDev_Once(t *testing.T) {
	t.Parallel()
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	for name, env := range map[string][]string{
		"nothing set": nil,
		"somebody's settings": {
			"REDIS_URL=redis://user:password@redis.invalid:6379/0", "SMTP_URL=smtp://user:password@smtp.invalid:587",
			"MAIL_FROM=Clinic <clinic@example.com>", "QUEUE_NAMESPACE=staging", "LOG_FORMAT=json",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(filepath.Join(bin, "worker"), "dev", "--once")
			cmd.Env, cmd.Dir = append(env, "PATH="+os.Getenv("PATH"), "TMPDIR="+t.TempDir()), t.TempDir()
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v\n%s", err, stderr.String())
			}
			if got, want := stdout.String(), "delivered: \"Welcome to MedicaLink\" to ada@example.com\n"; got != want {
				t.Errorf("printed %q, want %q", got, want)
			}
			if stderr.Len() > 0 {
				t.Errorf("not quiet: %s", stderr.String())
			}
		})
	}
}

func TestDev_Usage(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, want string
		args       []string
		environ    []string
	}{
		{"address of others", "loopback", []string{"--addr", "0.0.0.0:8080"}, nil},
		{"MONITOR_ADDR of others", "loopback", nil, []string{"MONITOR_ADDR=0.0.0.0:8080"}},
		{"no port", "host:port", []string{"--addr", "localhost"}, nil},
		{"bad setting", "WORKER_CONCURRENCY", nil, []string{"WORKER_CONCURRENCY=many"}},
		{"argument", "unknown", []string{"now"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			p := cli.Process{Args: append([]string{"dev"}, tt.args...), Environ: tt.environ, Dir: t.TempDir(), Stdout: &stdout, Stderr: &stderr}
			root := &cobra.Command{Use: "worker"}
			root.AddCommand(newDevCommand(p))
			if code := cli.Run(t.Context(), p, root); code != cli.ExitUsage || !strings.Contains(stderr.String(), tt.want) || stdout.Len() > 0 {
				t.Errorf("exit code %d, said %q, printed %q; want 2 and an error with %q", code, stderr.String(), stdout.String(), tt.want)
			}
		})
	}
}

func TestUnusedSettings(t *testing.T) {
	t.Parallel()
	for want, environ := range map[string][]string{
		"":                        {"MAIL_FROM=a@example.com", "MONITOR_ADDR=127.0.0.1:1"},
		"SMS_URL is":              {"SMS_URL=twilio://AC00000000000000000000000000000000:token@api.twilio.com?from=+15551234567"},
		"SMTP_URL is":             {"SMTP_URL=smtp://localhost:25"},
		"REDIS_URL, SMTP_URL are": {"SMTP_URL=smtp://localhost:25", "REDIS_URL=redis://localhost:6379/0"},
	} {
		cfg, err := config.Load(environ, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if got := unusedSettings(cfg); got != want {
			t.Errorf("%v: %q, want %q", environ, got, want)
		}
	}
}
