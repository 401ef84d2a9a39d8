package child

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"
)

func spawn(t *testing.T, script string) *Process {
	t.Helper()
	p, err := Spawn(Options{Dir: t.TempDir(), Talk: true, Env: []string{"WHO=child"}}, "child", "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop() })
	return p
}

func TestProcess_Tell(t *testing.T) {
	t.Parallel()
	p := spawn(t, `while read line; do echo "{\"who\":\"$WHO\",\"line\":\"$line\"}"; done`)
	var answer struct{ Who, Line string }
	if err := p.Tell(t.Context(), "hello", &answer); err != nil || answer.Who != "child" || answer.Line != "hello" {
		t.Errorf("%+v (%v)", answer, err)
	}
}

// What a child says before it ends by itself is in the error.
func TestProcess_Alive(t *testing.T) {
	t.Parallel()
	p := spawn(t, "echo sorry >&2; exit 3")
	<-p.done
	if err := p.Alive(); err == nil || !strings.Contains(err.Error(), "sorry") {
		t.Errorf("%v, want what the child said", err)
	}
	if _, err := p.Line(t.Context()); err == nil || !strings.Contains(err.Error(), "sorry") {
		t.Errorf("%v, want what the child said", err)
	}
}

func TestProcess_StopEndsTheChild(t *testing.T) {
	t.Parallel()
	p := spawn(t, "echo here; exec sleep 60")
	if _, err := p.Line(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(p.PID(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the child is there after Stop (%v)", err)
	}
}

func TestProcess_CPU(t *testing.T) {
	t.Parallel()
	// The shell works and so does its child, which it waits for; a second one is still there.
	p := spawn(t, `sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'
		sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done; exec sleep 60' & trap "kill $!" TERM; wait`)
	if _, err := p.Line(t.Context()); err != nil {
		t.Fatal(err)
	}
	own, err := p.CPU()
	if err != nil || own < 10*time.Millisecond {
		t.Errorf("%s of CPU time (%v), want that of the child that has ended at least", own, err)
	}
	family, err := p.FamilyCPU()
	if err != nil || family < own+10*time.Millisecond {
		t.Errorf("%s with the child that goes on (%v), %s without", family, err, own)
	}
	if bytes, err := p.Resident(); err != nil || bytes < 1<<16 {
		t.Errorf("%d bytes of memory (%v)", bytes, err)
	}
}
