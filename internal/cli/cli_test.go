package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func newTestRoot(Process) *cobra.Command {
	root := &cobra.Command{Use: "tool", Short: "Test tool"}
	send := &cobra.Command{
		Use: "send FILE", Short: "Send", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "broken":
				return errors.New("read file: broken")
			case "wrong":
				return fmt.Errorf("check flags: %w", Usagef("--rate must be positive"))
			case "cancelled":
				return fmt.Errorf("send: %w", cmd.Context().Err())
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "sent", args[0])
			return err
		},
	}
	send.Flags().String("to", "", "recipient")
	if err := send.MarkFlagRequired("to"); err != nil {
		panic(err)
	}
	queue := &cobra.Command{Use: "queue", Short: "Queues"}
	queue.AddCommand(
		&cobra.Command{Use: "ls", Short: "List", RunE: func(*cobra.Command, []string) error { return nil }},
		&cobra.Command{Use: "pause", Short: "Pause", RunE: func(*cobra.Command, []string) error { return nil }},
	)
	root.AddCommand(send, queue, NewVersionCommand("tool"))
	return root
}

func TestRun(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		args   string
		code   int
		stdout string // contained; "" means nothing is printed
		stderr string // exact
	}{
		{"done", "send --to a x", ExitDone, "sent x\n", ""},
		{"failed", "send --to a broken", ExitFailed, "", "tool: read file: broken\n"},
		{"usage found by the command", "send --to a wrong", ExitUsage, "", "tool: check flags: --rate must be positive\n"},
		{"cancelled", "send --to a cancelled", ExitFailed, "", "tool: send: interrupt signal received\n"},
		{"unknown flag", "send --tp a x", ExitUsage, "", "tool: unknown flag: --tp\nRun 'tool send --help' for usage.\n"},
		{"too few arguments", "send --to a", ExitUsage, "", "tool: accepts 1 arg(s), received 0\nRun 'tool send --help' for usage.\n"},
		{"required flag", "send x", ExitUsage, "", "tool: required flag(s) \"to\" not set\nRun 'tool send --help' for usage.\n"},
		{"bad flag value", "version -o yaml", ExitUsage, "", "tool: invalid argument \"yaml\" for \"-o, --output\" flag: must be text or json\nRun 'tool version --help' for usage.\n"},
		{"no command", "", ExitUsage, "", "tool: tool needs a command: queue, send, version\nRun 'tool --help' for usage.\n"},
		{"no command in a group", "queue", ExitUsage, "", "tool: tool queue needs a command: ls, pause\nRun 'tool queue --help' for usage.\n"},
		{"unknown command in a group", "queue pasue", ExitUsage, "", "tool: unknown command \"pasue\" for \"tool queue\" (did you mean pause?)\nRun 'tool queue --help' for usage.\n"},
		{"unknown command", "queu", ExitUsage, "", "tool: unknown command \"queu\" for \"tool\"\n\nDid you mean this?\n\tqueue\nRun 'tool --help' for usage.\n"},
		{"help flag", "--help", ExitDone, "Available Commands", ""},
		{"help flag of a group", "queue -h", ExitDone, "Available Commands", ""},
		{"help command", "help", ExitDone, "Available Commands", ""},
		{"help command for a group", "help queue", ExitDone, "Available Commands", ""},
		{"completion", "completion bash", ExitDone, "bash completion", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			if tt.name == "cancelled" {
				c, cancel := context.WithCancelCause(ctx)
				cancel(signalled{})
				ctx = c
			}
			var stdout, stderr bytes.Buffer
			p := Process{Args: strings.Fields(tt.args), Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr}
			if got := Run(ctx, p, newTestRoot(p)); got != tt.code {
				t.Errorf("exit code = %d, want %d", got, tt.code)
			}
			if got := stderr.String(); got != tt.stderr {
				t.Errorf("stderr = %q, want %q", got, tt.stderr)
			}
			if got := stdout.String(); !strings.Contains(got, tt.stdout) || (tt.stdout == "" && got != "") {
				t.Errorf("stdout = %q, want %q in it", got, tt.stdout)
			}
		})
	}
}

// signalled stands for the cause that signal.NotifyContext gives a context.
type signalled struct{}

func (signalled) Error() string        { return "interrupt signal received" }
func (signalled) Is(target error) bool { return target == context.Canceled }

func TestVersionOf(t *testing.T) {
	t.Parallel()
	vcs := func(modified string) []debug.BuildSetting {
		return []debug.BuildSetting{
			{Key: "vcs.revision", Value: "0123456789abcdef0123"},
			{Key: "vcs.time", Value: "2026-11-23T15:00:00Z"},
			{Key: "vcs.modified", Value: modified},
		}
	}
	tests := []struct {
		name string
		info debug.BuildInfo
		want string
	}{
		{"released", debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}, Settings: vcs("false")}, "v1.2.3"},
		{"revision", debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: vcs("false")}, "0123456789ab"},
		{"changed tree", debug.BuildInfo{Settings: vcs("true")}, "0123456789ab-dirty"},
		{"nothing known", debug.BuildInfo{}, "devel"},
		{"go run", debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, "devel"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := versionOf("tool", &tt.info).Version; got != tt.want {
				t.Errorf("version = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestNewVersionCommand_JSON(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	p := Process{Args: []string{"version", "--output", "json"}, Stdout: &stdout, Stderr: &stderr}
	if code := Run(t.Context(), p, newTestRoot(p)); code != ExitDone {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	var v Version
	if err := json.Unmarshal(stdout.Bytes(), &v); err != nil {
		t.Fatal(err)
	}
	if v.Name != "tool" || v.Version == "" || v.Go == "" {
		t.Errorf("version = %+v", v)
	}
}
