package child

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"time"
)

// Redis starts a Redis server on a free loopback port and waits until it listens. It saves no snapshots; aof makes
// it write its append-only file, synced every second.
func Redis(ctx context.Context, dir string, aof bool) (p *Process, port int, err error) {
	if port, err = FreePort(); err != nil {
		return nil, 0, err
	}
	appendOnly := "no"
	if aof {
		appendOnly = "yes"
	}
	p, err = Spawn(Options{Dir: dir}, "redis", "redis-server", "--port", strconv.Itoa(port),
		"--bind", "127.0.0.1", "--save", "", "--appendonly", appendOnly, "--dir", dir)
	if err != nil {
		return nil, 0, err
	}
	limit, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = Poll(limit, 20*time.Millisecond, func() (bool, error) {
		conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			return false, p.Alive()
		}
		return true, conn.Close()
	})
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("wait for Redis: %w", err), p.Stop())
	}
	return p, port, nil
}

// NPM installs the packages of the lock in dir. without names the flag that does without them.
//
// Not `npm ci`: one of the lock's optional packages exists for some platforms only, which ci takes for a lock that is
// out of date. The versions are those of the lock all the same.
func NPM(ctx context.Context, dir, without string, stderr io.Writer) error {
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("find %s for the peer: %w; install Node.js 20 or later (Debian: apt-get install nodejs npm), or measure without it: %s", program, err, without)
		}
	}
	install := exec.CommandContext(ctx, "npm", "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
	install.Dir, install.Stderr = dir, stderr
	if err := install.Run(); err != nil {
		return fmt.Errorf("install the peer: %w", err)
	}
	return nil
}
