// Package child starts the programs that a benchmark drives, talks to them, reads their CPU time and ends them.
package child

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is a child that the benchmark started and will end.
type Process struct {
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Reader // of its standard output, when asked for
	log   *os.File
	end   syscall.Signal
	done  chan struct{}
}

// Options of a child.
type Options struct {
	// Dir is where the child runs and where its log goes. Required.
	Dir string
	// Talk leaves the child's standard output to Line; otherwise it goes to the log.
	Talk bool
	// Env is added to PATH and HOME, which is all that the child gets of ours.
	Env []string
	// Credential is the user to run as. Default: ours.
	Credential *syscall.Credential
	// End is the signal that asks the child to end. Default: SIGTERM.
	End syscall.Signal
}

// Spawn starts a program. Its standard error goes to a log file.
func Spawn(o Options, name, path string, args ...string) (*Process, error) {
	log, err := os.Create(filepath.Join(o.Dir, name+".log"))
	if err != nil {
		return nil, fmt.Errorf("make log: %w", err)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = o.Dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, o.Env...)
	cmd.Stderr = log
	p := &Process{name: name, cmd: cmd, log: log, end: o.End, done: make(chan struct{})}
	if p.end == 0 {
		p.end = syscall.SIGTERM
	}
	// A benchmark that is killed takes its children with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: p.end, Credential: o.Credential}
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	if o.Talk {
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			return nil, errors.Join(err, log.Close())
		}
		p.lines = bufio.NewReader(stdout)
	} else {
		cmd.Stdout = log
	}
	started := make(chan error)
	go func() {
		// The kernel sends the death signal when the thread ends that started the child, so it has to stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_, _ = cmd.Process.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), log.Close())
	}
	return p, nil
}

// PID is the child's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Line reads one line of the child's standard output.
func (p *Process) Line(ctx context.Context) (string, error) {
	type read struct {
		text string
		err  error
	}
	got := make(chan read, 1)
	go func() {
		text, err := p.lines.ReadString('\n')
		got <- read{strings.TrimSpace(text), err}
	}()
	select {
	case r := <-got:
		if r.err != nil {
			return "", fmt.Errorf("read from %s: %w\n%s", p.name, r.err, p.Tail())
		}
		return r.text, nil
	case <-ctx.Done():
		return "", fmt.Errorf("wait for %s: %w", p.name, context.Cause(ctx))
	}
}

// Alive fails with the end of the log when the child has ended.
func (p *Process) Alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended by itself:\n%s", p.name, p.Tail())
	default:
		return nil
	}
}

// Tail is the end of the child's log.
func (p *Process) Tail() string {
	text, _ := os.ReadFile(p.log.Name())
	if len(text) > 2000 {
		text = text[len(text)-2000:]
	}
	return string(text)
}

// Stop asks the child to end and makes it end after ten seconds.
func (p *Process) Stop() error {
	_ = p.stdin.Close()
	_ = p.cmd.Process.Signal(p.end)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	return p.log.Close()
}

// ticksPerSecond is the unit of /proc/PID/stat; it is 100 on every Linux that Go supports (proc(5), USER_HZ).
const ticksPerSecond = 100

// CPU returns the user and system time that the process and its ended children have used so far.
func (p *Process) CPU() (time.Duration, error) {
	used, _, err := usage(p.PID())
	if err != nil {
		return 0, fmt.Errorf("read CPU time of %s (the benchmark needs Linux's /proc): %w", p.name, err)
	}
	return used, nil
}

// FamilyCPU is CPU with that of the children that have not ended.
func (p *Process) FamilyCPU() (time.Duration, error) {
	sum, err := p.CPU()
	if err != nil {
		return 0, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		// A process that has just ended is in its parent's time by now.
		if used, parent, err := usage(pid); err == nil && parent == p.PID() {
			sum += used
		}
	}
	return sum, nil
}

func usage(pid int) (used time.Duration, parent int, err error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	// The second field is the name in parentheses, which may hold anything; ppid is field 4, utime 14, cstime 17.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if parent, err = strconv.Atoi(fields[1]); err != nil {
		return 0, 0, err
	}
	var ticks int64
	for _, field := range fields[11:15] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond, parent, nil
}

// Resident is the memory that the process holds, in bytes.
func (p *Process) Resident() (int, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID()) + "/statm")
	if err != nil {
		return 0, fmt.Errorf("read memory of %s: %w", p.name, err)
	}
	fields := strings.Fields(string(text))
	pages, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0, fmt.Errorf("read memory of %s: %w", p.name, err)
	}
	return pages * os.Getpagesize(), nil
}

// Tell writes one line to the child's standard input and decodes the line of JSON that it answers with.
func (p *Process) Tell(ctx context.Context, line string, answer any) error {
	if _, err := io.WriteString(p.stdin, line+"\n"); err != nil {
		return fmt.Errorf("tell %s: %w\n%s", p.name, err, p.Tail())
	}
	text, err := p.Line(ctx)
	if err != nil || answer == nil {
		return err
	}
	if err := json.Unmarshal([]byte(text), answer); err != nil {
		return fmt.Errorf("read answer of %s: %w", p.name, err)
	}
	return nil
}

// FreePort returns a loopback port that nobody listened on a moment ago.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// Poll asks every interval until done says so.
func Poll(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
