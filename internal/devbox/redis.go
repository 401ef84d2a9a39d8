package devbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/rediskit"
)

// redisStartTimeout is how long a redis-server child may take to answer. It
// normally takes milliseconds; a machine busy compiling takes longer.
const redisStartTimeout = 10 * time.Second

// embeddedRedis is a Redis that belongs to this process and ends with it.
type embeddedRedis struct {
	addr string // host:port on loopback
	kind string // for people: "redis-server" or "in-process"
	died <-chan struct{}
	stop func() error
}

func (r *embeddedRedis) url() string { return "redis://" + r.addr + "/0" }

// startRedis starts the redis-server on PATH, or an in-process Redis if there is
// none or it does not start.
func startRedis(ctx context.Context, log zerolog.Logger) (*embeddedRedis, error) {
	binary, err := exec.LookPath("redis-server")
	if err == nil {
		var r *embeddedRedis
		if r, err = startRedisServer(ctx, binary); err == nil {
			return r, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		log.Warn().Err(err).Msg("redis-server on PATH does not start; using the in-process Redis instead")
	}
	return startMiniredis()
}

func startMiniredis() (*embeddedRedis, error) {
	m := miniredis.NewMiniRedis()
	// Keys expire as time passes; by default they only do so on a test's command.
	m.ClockTTL(true)
	if err := m.StartAddr("127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("start in-process Redis: %w", err)
	}
	return &embeddedRedis{
		addr: m.Addr(),
		kind: "in-process",
		stop: func() error { m.Close(); return nil },
	}, nil
}

func startRedisServer(ctx context.Context, binary string) (*embeddedRedis, error) {
	dir, err := os.MkdirTemp("", "postroom-dev-")
	if err != nil {
		return nil, fmt.Errorf("make directory for Redis: %w", err)
	}
	// A port found free can be taken before the server has it: try another.
	for range 5 {
		var r *embeddedRedis
		if r, err = startRedisOnce(ctx, binary, dir); err == nil {
			kill := r.stop
			r.stop = func() error { return errors.Join(kill(), os.RemoveAll(dir)) }
			return r, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(err, os.RemoveAll(dir))
}

func startRedisOnce(ctx context.Context, binary, dir string) (*embeddedRedis, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	var output bytes.Buffer     // read only after died is closed
	cmd := exec.Command(binary, //nolint:gosec,noctx // the redis-server the user has on PATH; it outlives ctx by the time the worker needs to drain
		"--bind", "127.0.0.1", "--port", strconv.Itoa(port), "--dir", dir,
		"--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning")
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = childAttributes()

	started, died := make(chan error, 1), make(chan struct{})
	go func() {
		// On Linux the child is told to die with its parent *thread*; this one
		// stays until the child is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(died)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in output
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(binary), err)
	}
	stop := func() error {
		// Nothing in it is kept, so there is nothing to wait for.
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("end redis-server: %w", err)
		}
		<-died
		return nil
	}

	ctx, cancel := context.WithTimeout(ctx, redisStartTimeout)
	defer cancel()
	for {
		client, err := rediskit.Open(ctx, rediskit.Config{Addrs: []string{addr}, MaxRetries: -1})
		if err == nil {
			if err = errors.Join(isOurs(ctx, client, dir), client.Close()); err == nil {
				return &embeddedRedis{addr: addr, kind: "redis-server", died: died, stop: stop}, nil
			}
		}
		select {
		case <-died:
			return nil, fmt.Errorf("start redis-server: it ended at once and said: %s", lastLine(output.Bytes()))
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("start redis-server: no answer on %s: %w", addr, err), stop())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// isOurs tells the server in dir from another that was faster on its port.
func isOurs(ctx context.Context, client *rediskit.Client, dir string) error {
	got, err := client.ConfigGet(ctx, "dir").Result()
	if err != nil {
		return fmt.Errorf("ask Redis for its directory: %w", err)
	}
	if filepath.Base(got["dir"]) != filepath.Base(dir) {
		return errors.New("another Redis has taken the port")
	}
	return nil
}

func freePort(ctx context.Context) (int, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	if err := ln.Close(); err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	return port, nil
}

// lastLine returns the last line of a program's output.
func lastLine(output []byte) string {
	lines := strings.Split(strings.TrimSpace(string(bytes.ToValidUTF8(output, nil))), "\n")
	return lines[len(lines)-1]
}
