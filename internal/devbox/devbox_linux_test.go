package devbox

import "testing"

// Nothing of ours runs when this process is killed; Linux ends the child.
func TestRun_Killed(t *testing.T) {
	t.Parallel()
	r := startChild(t, bothKinds(t)["redis-server"])
	pid := redisPID(t, r.open(t))
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "redis-server ends with its killed parent", func() bool { return gone(pid) })
}
