//go:build unix

package testenv

import (
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
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/rediskit"
)

// readyTimeout is generous: it is only ever waited for on a machine that is
// overloaded or when the server does not start at all.
const readyTimeout = 20 * time.Second

// RedisOption changes the server that [Redis] starts.
type RedisOption func(*RedisServer)

// AOF makes every acknowledged write survive Kill: append-only file, fsync
// before each answer.
func AOF() RedisOption {
	return RedisSetting("appendonly yes\nappendfsync always")
}

// RedisSetting adds lines of redis.conf, such as "maxmemory-policy allkeys-lru".
func RedisSetting(lines string) RedisOption {
	return func(s *RedisServer) { s.settings = append(s.settings, lines) }
}

// ACL disables the default user and adds one with the given ACL rules, such as
// "~* &* +@all". The server's Config uses the user added last.
func ACL(user, password, rules string) RedisOption {
	return func(s *RedisServer) {
		s.settings = append(s.settings, "user default off", fmt.Sprintf("user %s on >%s %s", user, password, rules))
		s.username, s.password = user, password
	}
}

// TLS makes the server speak TLS only and demand a client certificate. The
// certificates are made for this test and are found in the server's Config.
func TLS() RedisOption { return func(s *RedisServer) { s.tls = true } }

// RedisServer is a redis-server of its own for one test.
type RedisServer struct {
	tb       testing.TB // nil for a shared server, which no test may kill
	binary   string
	dir      string
	port     int
	busPort  int // of a node of a cluster; 0 is no cluster
	sentinel bool
	settings []string
	tls      bool
	username string
	password string

	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has been waited for
}

// Redis starts a redis-server on a free loopback port with a directory of its
// own and without persistence (see [AOF]), and waits until it answers. The
// server is stopped at the end of the test; if the test failed, its log is
// shown. A missing redis-server fails the test: skipping would hide that most
// promises were not tested.
func Redis(tb testing.TB, opts ...RedisOption) *RedisServer {
	tb.Helper()
	s, err := launch(opts...)
	if err != nil {
		tb.Fatal(err)
	}
	s.lendTo(tb)
	return s
}

// lendTo ties the server to a test.
func (s *RedisServer) lendTo(tb testing.TB) {
	s.tb = tb
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("log of redis-server on %s:\n%s", s.Addr(), s.log())
		}
		s.discard()
	})
}

// launch starts a server that belongs to nobody yet.
func launch(opts ...RedisOption) (*RedisServer, error) {
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, errors.New("redis-server is not on PATH: these tests run against a real one; `task setup` installs it")
	}
	// Not tb.TempDir: its path can exceed the 107 bytes of a Unix socket's name.
	dir, err := os.MkdirTemp("", "postroom-redis-")
	if err != nil {
		return nil, fmt.Errorf("make directory for redis: %w", err)
	}
	s := &RedisServer{binary: binary, dir: dir}
	for _, opt := range opts {
		opt(s)
	}
	if s.tls {
		err = s.writeCertificates()
	}
	// A port found free can be taken before the server has it: try again.
	for attempt := 0; err == nil && attempt < 5; attempt++ {
		if err = s.pickPorts(); err != nil {
			break
		}
		if err = s.start(); err == nil {
			return s, nil
		}
		if strings.Contains(s.log(), "Address already in use") {
			s.stop()
			err = nil
			_ = os.Remove(s.file("redis.log"))
		}
	}
	if err == nil {
		err = errors.New("no free port in five attempts")
	}
	err = fmt.Errorf("start redis-server: %w\n%s", err, s.log())
	s.discard()
	return nil, err
}

func (s *RedisServer) discard() {
	s.stop()
	_ = os.RemoveAll(s.dir)
}

// Addr returns the server's host:port.
func (s *RedisServer) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Socket returns the path of the server's Unix socket.
func (s *RedisServer) Socket() string { return filepath.Join(s.dir, "redis.sock") }

// Dir returns the server's directory: redis.conf, redis.log, persistence files
// and, with TLS, ca.crt, client.crt and client.key.
func (s *RedisServer) Dir() string { return s.dir }

// URL returns the server's URL, with user and password if it has an ACL user.
func (s *RedisServer) URL() string {
	scheme, login := "redis", ""
	if s.tls {
		scheme = "rediss"
	}
	if s.username != "" {
		login = s.username + ":" + s.password + "@"
	}
	return scheme + "://" + login + s.Addr() + "/0"
}

// Config returns the settings of a client for this server.
func (s *RedisServer) Config() rediskit.Config {
	cfg := rediskit.Config{Addrs: []string{s.Addr()}, Username: s.username, Password: rediskit.Secret(s.password)}
	if s.tls {
		cfg.TLS = true
		cfg.CAFile, cfg.CertFile, cfg.KeyFile = s.file("ca.crt"), s.file("client.crt"), s.file("client.key")
	}
	return cfg
}

// Open returns a client that is closed at the end of the test, or earlier by
// the caller.
func (s *RedisServer) Open(tb testing.TB) *rediskit.Client {
	tb.Helper()
	return open(tb, s.Config())
}

func open(tb testing.TB, cfg rediskit.Config) *rediskit.Client {
	tb.Helper()
	client, err := rediskit.Open(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := client.Close(); err != nil {
			tb.Errorf("close redis client: %v", err)
		}
	})
	return client
}

// Kill ends the server with SIGKILL, as a crash would, and waits until it is
// gone. Killing a server that is not running does nothing.
func (s *RedisServer) Kill() { s.stop() }

// Restart starts the server again on the same port and in the same directory,
// killing it first if it runs, and waits until it answers.
func (s *RedisServer) Restart() {
	s.tb.Helper()
	s.stop()
	if err := s.start(); err != nil {
		s.tb.Fatalf("restart redis-server: %v", err)
	}
}

// Pause stops the server with SIGSTOP: connections stay open and nothing
// answers, like a frozen virtual machine.
func (s *RedisServer) Pause() { s.signal(syscall.SIGSTOP) }

// Resume continues a paused server.
func (s *RedisServer) Resume() { s.signal(syscall.SIGCONT) }

func (s *RedisServer) signal(sig os.Signal) {
	s.tb.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.tb.Fatalf("signal redis-server: %v", err)
	}
}

func (s *RedisServer) file(name string) string { return filepath.Join(s.dir, name) }

func (s *RedisServer) conf() string {
	lines := []string{"bind 127.0.0.1", "dir " + s.dir, "daemonize no"}
	if !s.sentinel {
		// A replica that connects must not wait 5 s for others to come along.
		lines = append(lines, "unixsocket "+s.Socket(), `save ""`, "repl-diskless-sync-delay 0")
	}
	if s.busPort != 0 {
		lines = append(lines, "cluster-enabled yes", "cluster-config-file nodes.conf",
			"cluster-port "+strconv.Itoa(s.busPort), "cluster-node-timeout "+failureTimeout)
	}
	if s.tls {
		lines = append(
			lines, "port 0", "tls-port "+strconv.Itoa(s.port), "tls-auth-clients yes",
			"tls-ca-cert-file "+s.file("ca.crt"), "tls-cert-file "+s.file("server.crt"), "tls-key-file "+s.file("server.key"),
		)
	} else {
		lines = append(lines, "port "+strconv.Itoa(s.port))
	}
	return strings.Join(append(lines, s.settings...), "\n") + "\n"
}

func (s *RedisServer) start() error {
	if err := os.WriteFile(s.file("redis.conf"), []byte(s.conf()), 0o600); err != nil {
		return fmt.Errorf("write redis.conf: %w", err)
	}
	logFile, err := os.OpenFile(s.file("redis.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open redis.log: %w", err)
	}
	args := []string{s.file("redis.conf")}
	if s.sentinel {
		args = append(args, "--sentinel")
	}
	cmd := exec.Command(s.binary, args...) //nolint:noctx // it outlives the test's context: Cleanup stops it
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = dieWithParent()
	started, exited := make(chan error, 1), make(chan struct{})
	go func() {
		// The death signal is bound to the thread that forks, so that thread must
		// live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(exited)
		err := cmd.Start()
		_ = logFile.Close() // the child has its own
		started <- err
		if err == nil {
			_ = cmd.Wait() // killed on purpose: the status tells nothing
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("run redis-server: %w", err)
	}
	s.cmd, s.exited = cmd, exited
	return s.ready()
}

// ready polls until the server answers a PING, has exited or time is up. A
// server that loads its append-only file answers LOADING meanwhile.
func (s *RedisServer) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	cfg := s.Config()
	cfg.MaxRetries = -1
	for {
		err := s.ours()
		if err == nil {
			var client *rediskit.Client
			if client, err = rediskit.Open(ctx, cfg); err == nil {
				return client.Close()
			}
		}
		if reply, ok := errors.AsType[redis.Error](err); ok && !strings.HasPrefix(reply.Error(), "LOADING") {
			return nil // it answers; the test's own user may be refused on purpose
		}
		select {
		case <-s.exited:
			return errors.New("it exited: see its log")
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// ours fails until the server answers in its own directory: on the port that it was
// to have, the server of another test binary may have come first.
func (s *RedisServer) ours() error {
	if s.sentinel {
		return nil // has no socket
	}
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(context.Background(), "unix", s.Socket())
	if err != nil {
		return fmt.Errorf("reach the server's socket: %w", err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return fmt.Errorf("ask the server: %w", err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("ask the server: %w", err)
	}
	return nil
}

func (s *RedisServer) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // fails only if it is gone already; works on a paused one too
	<-s.exited
	s.cmd = nil
}

// log returns the end of the server's log.
func (s *RedisServer) log() string {
	text, _ := os.ReadFile(s.file("redis.log"))
	if tail := 32 << 10; len(text) > tail {
		return "…" + string(text[len(text)-tail:])
	}
	return string(text)
}

func (s *RedisServer) pickPorts() (err error) {
	if s.port, err = freePort(); err == nil && s.busPort != 0 {
		s.busPort, err = freePort()
	}
	return err
}

func freePort() (int, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}
