package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/medicalink/postroom/bench/internal/child"
	"github.com/medicalink/postroom/rediskit"
)

// The roles of this program besides that of the benchmark itself.
const (
	roleServe   = "serve"   // a service with package realtime; its argument is Redis' URL
	roleListen  = "listen"  // the browsers; the service's address
	roleDrive   = "drive"   // loops on bare Redis; Redis' URL
	roleReceive = "receive" // a receiver of webhooks; its key
)

// What a role can be asked to do.
const (
	doMemory  = "memory"  // serve: collect garbage and tell what is in use
	doConnect = "connect" // listen: connect the users 0 to N-1
	doWait    = "wait"    // listen: until N notifications have arrived
	doTake    = "take"    // listen: tell what has arrived, and forget it
	doClose   = "close"   // listen: end the connections
	doDeliver = "deliver" // drive: N notifications for each user, the way that How says
	doReset   = "reset"   // receive: forget what has arrived
	doCount   = "count"   // serve, receive
)

// request is one line to a role.
type request struct {
	Do     string `json:"do"`
	N      int    `json:"n,omitempty"`
	How    string `json:"how,omitempty"`
	Users  int    `json:"users,omitempty"`
	Prefix string `json:"prefix,omitempty"` // of the users' ids
}

// answer is one line from a role.
type answer struct {
	Error string `json:"error,omitempty"`

	Address string `json:"address,omitempty"` // the first line of who listens
	Heap    int    `json:"heap,omitempty"`    // bytes in use
	Stack   int    `json:"stack,omitempty"`

	Arrivals []arrival `json:"arrivals,omitempty"`
	Resets   int       `json:"resets,omitempty"` // times that a browser was told to load the inbox again

	Clients  int    `json:"clients,omitempty"` // of realtime.Stats
	Cut      uint64 `json:"cut,omitempty"`
	Replayed uint64 `json:"replayed,omitempty"`
	Gaps     uint64 `json:"gaps,omitempty"`

	Count    int   `json:"count,omitempty"` // of webhooks
	Distinct int   `json:"distinct,omitempty"`
	Forged   int   `json:"forged,omitempty"`
	First    int64 `json:"first,omitempty"` // Unix microseconds
	Last     int64 `json:"last,omitempty"`
}

// arrival is a notification where it belongs.
type arrival struct {
	User int    `json:"u"`
	ID   string `json:"n"`
	At   int64  `json:"t"` // Unix microseconds
}

// userID names a user of a round, or of the benchmark.
func userID(prefix string, n int) string { return fmt.Sprintf("%s-%d", prefix, n) }

func play(ctx context.Context, role, argument string, in io.Reader, out io.Writer) error {
	switch role {
	case roleServe:
		return serve(ctx, argument, in, out)
	case roleListen:
		return listen(ctx, argument, in, out)
	case roleDrive:
		return drive(ctx, argument, in, out)
	case roleReceive:
		return receive(ctx, argument, in, out)
	}
	return fmt.Errorf("there is no role %q", role)
}

// obey says hello and answers requests until the input ends.
func obey(in io.Reader, out io.Writer, hello answer, do func(request) (answer, error)) error {
	encoder := json.NewEncoder(out)
	if err := encoder.Encode(hello); err != nil {
		return fmt.Errorf("say hello: %w", err)
	}
	decoder := json.NewDecoder(bufio.NewReader(in))
	for {
		var r request
		if err := decoder.Decode(&r); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read request: %w", err)
		}
		a, err := do(r)
		if err != nil {
			a.Error = err.Error()
		}
		if err := encoder.Encode(a); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}

func unknown(r request) error { return fmt.Errorf("it does not know how to %s", r.Do) }

// ask sends one request to a role.
func ask(ctx context.Context, p *child.Process, r request) (a answer, err error) {
	line, err := json.Marshal(r)
	if err != nil {
		return a, err
	}
	if err := p.Tell(ctx, string(line), &a); err != nil {
		return a, fmt.Errorf("%s: %w", r.Do, err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("%s: %s", r.Do, a.Error)
	}
	return a, nil
}

// open connects to Redis with so many connections; 0 is the default number.
func open(ctx context.Context, url string, connections int) (*rediskit.Client, error) {
	cfg, err := rediskit.ParseURL(url)
	if err != nil {
		return nil, err
	}
	cfg.ClientName, cfg.Service, cfg.PoolSize = "bench", "bench", connections
	return rediskit.Open(ctx, cfg)
}
