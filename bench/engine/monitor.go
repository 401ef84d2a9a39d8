package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// commands is how many commands Redis has run so far, those in scripts included.
func (b *bench) commands(ctx context.Context) (int64, error) {
	text, err := b.rdb.Info(ctx, "stats").Result()
	if err != nil {
		return 0, fmt.Errorf("ask Redis for its counters: %w", err)
	}
	return infoField(text, "total_commands_processed")
}

// clientShare listens to what Redis runs and returns the share that clients sent; the rest was run by scripts. It
// slows Redis down, so nothing else is measured meanwhile.
func (b *bench) clientShare(ctx context.Context, span time.Duration) (share float64, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", b.address())
	if err != nil {
		return 0, fmt.Errorf("listen to Redis: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(span)); err != nil {
		return 0, err
	}
	if _, err := conn.Write([]byte("MONITOR\r\n")); err != nil {
		return 0, fmt.Errorf("listen to Redis: %w", err)
	}
	var all, scripts int
	for lines := bufio.NewReader(conn); ; {
		line, err := lines.ReadString('\n')
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if all == 0 {
				return 1, nil
			}
			return float64(all-scripts) / float64(all), nil
		case err != nil:
			return 0, fmt.Errorf("listen to Redis: %w", err)
		}
		if where, ok := origin(line); ok {
			all++
			if where == "lua" {
				scripts++
			}
		}
	}
}

// origin reads who sent a command from a line of MONITOR: +1339518083.107412 [0 127.0.0.1:60866] "keys" "*".
func origin(line string) (from string, ok bool) {
	_, rest, ok := strings.Cut(line, " [")
	if !ok || !strings.HasPrefix(line, "+") {
		return "", false
	}
	inside, _, ok := strings.Cut(rest, "]")
	if !ok {
		return "", false
	}
	_, from, ok = strings.Cut(inside, " ")
	return from, ok
}
