package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// The test binary is also the program under test: signals need a process of their own.
const asProgram = "POSTROOM_TEST_CLI_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(Main(newStubborn))
	}
	os.Exit(m.Run())
}

// newStubborn returns a program that tells of the first signal. "stop" ends then, "stay" does not.
func newStubborn(Process) *cobra.Command {
	root := &cobra.Command{Use: "tool"}
	wait := func(cmd *cobra.Command) {
		fmt.Fprintln(cmd.OutOrStdout(), "ready")
		<-cmd.Context().Done()
		fmt.Fprintln(cmd.OutOrStdout(), context.Cause(cmd.Context()))
	}
	root.AddCommand(
		&cobra.Command{Use: "stop", RunE: func(cmd *cobra.Command, _ []string) error {
			wait(cmd)
			return fmt.Errorf("send: %w", cmd.Context().Err())
		}},
		&cobra.Command{Use: "stay", RunE: func(cmd *cobra.Command, _ []string) error {
			wait(cmd)
			select {}
		}},
	)
	return root
}

func TestMain_Signals(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		command string
		signal  syscall.Signal
		cause   string
	}{
		{"stop", syscall.SIGINT, "interrupt signal received"},
		{"stop", syscall.SIGTERM, "terminated signal received"},
		{"stay", syscall.SIGINT, "interrupt signal received"},
		{"stay", syscall.SIGTERM, "terminated signal received"},
	} {
		t.Run(fmt.Sprint(tt.command, tt.signal), func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], tt.command)
			cmd.Env = append(os.Environ(), asProgram+"=1")
			var stderr strings.Builder
			cmd.Stderr = &stderr
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(stdout)
			expect := func(want string) {
				t.Helper()
				if !lines.Scan() || lines.Text() != want {
					t.Errorf("program said %q, want %q", lines.Text(), want)
				}
			}
			send := func() {
				t.Helper()
				if err := cmd.Process.Signal(tt.signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
					t.Fatal(err)
				}
			}
			expect("ready")
			send()
			expect(tt.cause)
			if tt.command == "stop" {
				exit, _ := errors.AsType[*exec.ExitError](cmd.Wait())
				if exit == nil || exit.ExitCode() != ExitFailed || stderr.String() != "tool: send: "+tt.cause+"\n" {
					t.Errorf("ended with %v and %q", exit, stderr.String())
				}
				return
			}
			// The first signal's handler may still be on its way out; then the second is sent again.
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			for {
				send()
				select {
				case err := <-ended:
					exit, _ := errors.AsType[*exec.ExitError](err)
					if status, ok := exit.Sys().(syscall.WaitStatus); !ok || status.Signal() != tt.signal {
						t.Errorf("ended with %v, want the signal", err)
					}
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
		})
	}
}
