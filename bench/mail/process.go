package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a child that the benchmark started and will end.
type process struct {
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Reader // of its standard output, when asked for
	log   *os.File
	done  chan struct{}
	err   error // valid after done
}

// spawn starts a program with nothing of our own environment but where programs and home are. Its standard error,
// and its standard output unless talk is set, go to a log file in dir.
func spawn(dir, name string, talk bool, env []string, path string, args ...string) (*process, error) {
	log, err := os.Create(dir + "/" + name + ".log")
	if err != nil {
		return nil, fmt.Errorf("make log: %w", err)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, env...)
	cmd.Stderr = log
	p := &process{name: name, cmd: cmd, log: log, done: make(chan struct{})}
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	if talk {
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			return nil, errors.Join(err, log.Close())
		}
		p.lines = bufio.NewReader(stdout)
	} else {
		cmd.Stdout = log
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), log.Close())
	}
	go func() {
		_, p.err = p.cmd.Process.Wait()
		close(p.done)
	}()
	return p, nil
}

// line reads one line of the child's standard output.
func (p *process) line(ctx context.Context) (string, error) {
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
			return "", fmt.Errorf("read from %s: %w\n%s", p.name, r.err, p.tail())
		}
		return r.text, nil
	case <-ctx.Done():
		return "", fmt.Errorf("wait for %s: %w", p.name, context.Cause(ctx))
	}
}

// alive fails with the end of the log when the child has ended.
func (p *process) alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended by itself:\n%s", p.name, p.tail())
	default:
		return nil
	}
}

func (p *process) tail() string {
	text, _ := os.ReadFile(p.log.Name())
	if len(text) > 2000 {
		text = text[len(text)-2000:]
	}
	return string(text)
}

// stop asks the child to end and makes it end after ten seconds.
func (p *process) stop() error {
	_ = p.stdin.Close()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
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

// cpu returns the user and system time that the process and its ended children have used so far.
func (p *process) cpu() (time.Duration, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("read CPU time of %s (the benchmark needs Linux's /proc): %w", p.name, err)
	}
	// The second field is the name in parentheses, which may hold anything; utime is field 14, cstime 17.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var ticks int64
	for _, field := range fields[11:15] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time of %s: %w", p.name, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond, nil
}

// freePort returns a loopback port that nobody listened on a moment ago.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// poll asks every interval until done says so.
func poll(ctx context.Context, every time.Duration, done func() (bool, error)) error {
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
