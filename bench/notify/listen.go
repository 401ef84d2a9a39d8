package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// dials is how many browsers connect at a time.
const dials = 64

// browsers are connected clients of /events, a goroutine each.
type browsers struct {
	address string
	wg      sync.WaitGroup

	mu       sync.Mutex // guards what follows
	conns    []net.Conn
	closing  bool
	arrivals []arrival
	resets   int
	failed   error
	target   int // notifications that somebody waits for
	reached  chan struct{}
}

func listen(ctx context.Context, address string, in io.Reader, out io.Writer) error {
	b := &browsers{address: address}
	defer b.close()
	return obey(in, out, answer{}, func(r request) (answer, error) {
		switch r.Do {
		case doConnect:
			return answer{}, b.connect(ctx, r.Prefix, r.N)
		case doWait:
			return answer{}, b.wait(ctx, r.N)
		case doTake:
			return b.take()
		case doClose:
			b.close()
			return answer{}, nil
		}
		return answer{}, unknown(r)
	})
}

// connect returns when each of the users has been told the number of unread entries: from then on what happens is sent
// at once.
func (b *browsers) connect(ctx context.Context, prefix string, n int) error {
	b.mu.Lock()
	b.closing, b.failed = false, nil
	b.mu.Unlock()
	places := make(chan struct{}, dials)
	ready := make(chan struct{}, n)
	for i := range n {
		places <- struct{}{}
		b.wg.Go(func() {
			told := sync.OnceFunc(func() { ready <- struct{}{}; <-places })
			err := b.browse(ctx, userID(prefix, i), i, told)
			b.mu.Lock()
			if !b.closing && b.failed == nil {
				b.failed = fmt.Errorf("browser %d: %w", i, err)
				b.look()
			}
			b.mu.Unlock()
			told()
		})
	}
	for range n {
		<-ready
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed
}

// browse follows the events of a user until the connection ends.
func (b *browsers) browse(ctx context.Context, user string, number int, ready func()) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", b.address)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.conns = append(b.conns, conn)
	b.mu.Unlock()
	if _, err := fmt.Fprintf(conn, "GET /realtime/events?user=%s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n\r\n", user, b.address); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the answer has the status %d", resp.StatusCode)
	}
	return read(resp.Body, func(name string, data []byte) error {
		at := time.Now().UnixMicro()
		switch name {
		case "unread":
			ready()
		case "reset":
			b.mu.Lock()
			b.resets++
			b.mu.Unlock()
		case "notification":
			var n struct {
				ID string `json:"notification_id"`
			}
			if err := json.Unmarshal(data, &n); err != nil {
				return err
			}
			b.arrived(arrival{User: number, ID: n.ID, At: at})
		}
		return nil
	})
}

// read calls event for each event of a stream, with data that is good until it returns, as far as the service uses the
// format: one line of data for an event.
func read(stream io.Reader, event func(name string, data []byte) error) error {
	lines := bufio.NewReader(stream)
	var name string
	var data []byte
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = bytes.TrimSuffix(line, []byte("\n"))
		field, value, _ := bytes.Cut(line, []byte(": "))
		switch {
		case len(line) == 0:
			if name != "" {
				if err := event(name, data); err != nil {
					return err
				}
			}
			name, data = "", data[:0]
		case string(field) == "event":
			name = string(value)
		case string(field) == "data":
			data = append(data, value...)
		}
	}
}

func (b *browsers) arrived(a arrival) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.arrivals = append(b.arrivals, a)
	b.look()
}

// look wakes who waits, if there is nothing to wait for any more. The caller holds mu.
func (b *browsers) look() {
	if b.reached != nil && (b.failed != nil || len(b.arrivals) >= b.target) {
		close(b.reached)
		b.reached = nil
	}
}

func (b *browsers) wait(ctx context.Context, n int) error {
	reached := make(chan struct{})
	b.mu.Lock()
	b.target, b.reached = n, reached
	b.look()
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, waitLimit)
	defer cancel()
	select {
	case <-reached:
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.arrivals) >= n {
		return b.failed
	}
	return fmt.Errorf("%d of %d notifications have arrived: %w", len(b.arrivals), n, errors.Join(b.failed, ctx.Err()))
}

func (b *browsers) take() (answer, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := answer{Arrivals: b.arrivals, Resets: b.resets}
	b.arrivals, b.resets = nil, 0
	return a, b.failed
}

func (b *browsers) close() {
	b.mu.Lock()
	b.closing = true
	for _, conn := range b.conns {
		_ = conn.Close() // nobody is left who could mind
	}
	b.conns = nil
	b.mu.Unlock()
	b.wg.Wait()
}
