//go:build unix

package devbox

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
)

func gone(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

func TestRun_CtrlC(t *testing.T) {
	t.Parallel()
	r := startChild(t, bothKinds(t)["redis-server"])
	pid := redisPID(t, r.open(t))
	if pid == r.cmd.Process.Pid || gone(pid) {
		t.Fatalf("Redis is process %d: want a child of its own", pid)
	}
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	<-r.ended
	if err := r.cmd.Wait(); err != nil || r.stderr.Len() > 0 {
		t.Errorf("Ctrl-C ended it with %v and said %q, want a quiet success", err, r.stderr)
	}
	if !gone(pid) {
		t.Errorf("redis-server (process %d) outlived it", pid)
	}
	for _, entry := range r.cmd.Env {
		if dir, ok := strings.CutPrefix(entry, "TMPDIR="); ok {
			if left, _ := os.ReadDir(dir); len(left) > 0 && dir != os.TempDir() {
				t.Errorf("left in %s: %v", dir, left)
			}
		}
	}
}

// Redis gone is the end, with a reason, not a process that hangs around.
func TestRun_RedisDies(t *testing.T) {
	t.Parallel()
	r := startChild(t, bothKinds(t)["redis-server"])
	if err := syscall.Kill(redisPID(t, r.open(t)), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-r.ended
	if err := r.cmd.Wait(); err == nil || !strings.Contains(r.stderr.String(), "redis-server ended") {
		t.Errorf("ended with %v and said %q", err, r.stderr)
	}
}
