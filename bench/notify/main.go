// Command notify measures notifications from tasks.Producer to the user's browser: how long one takes, what a connected
// browser costs in memory, and how many a second a worker delivers, beside the bare Redis commands and the script that
// such a delivery comes down to.
//
// Redis, `worker run`, a service with package realtime, the browsers, the loops on bare Redis and the receiver of
// webhooks are processes of their own, the last four of this program in other roles. A round counts only if every
// notification arrived exactly once where it belongs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

type options struct {
	rounds   int
	users    int
	each     int // notifications for each user
	clients  int
	rate     int // paced notifications a second
	span     time.Duration
	webhooks int
	quick    bool
	out      string
	timeout  time.Duration
}

// notifications is the number of them in a round of a rate.
func (o options) notifications() int { return o.users * o.each }

// samples is the number of paced notifications in a round.
func (o options) samples() int { return int(o.span.Seconds() * float64(o.rate)) }

// concurrency is the number of jobs that the worker runs at once, and of loops on bare Redis.
const concurrency = 100

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench/notify:", err)
		}
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (err error) {
	if len(args) == 3 && args[0] == "role" {
		return play(ctx, args[1], args[2], stdin, stdout)
	}
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if _, err := os.Stat("go.mod"); err != nil {
		return errors.New("run it from the root of the repository")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("the benchmark did not end within %s; -timeout gives it more", o.timeout))
	defer cancel()
	work, err := os.MkdirTemp("", "postroom-bench-")
	if err != nil {
		return fmt.Errorf("make work folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()

	b, err := start(ctx, o, work, stderr)
	if err != nil {
		return err
	}
	err = b.measure(ctx)
	if err := errors.Join(err, b.stop()); err != nil {
		return err
	}
	return b.report(ctx, stdout)
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	flags := flag.NewFlagSet("notify", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.rounds, "rounds", 3, "measured rounds of everything; rates have one more before, for warming up")
	flags.IntVar(&o.users, "users", 10_000, "users who get notifications")
	flags.IntVar(&o.each, "each", 10, "notifications for each user in a round of a rate")
	flags.IntVar(&o.clients, "clients", 10_000, "connected browsers, each of another user")
	flags.IntVar(&o.rate, "rate", 200, "notifications a second when it is latency that is measured")
	flags.DurationVar(&o.span, "span", 10*time.Second, "how long a round of latencies lasts")
	flags.IntVar(&o.webhooks, "webhooks", 20_000, "webhooks in a round")
	flags.BoolVar(&o.quick, "quick", false, "a look of half a minute: one small round; not for publishing")
	flags.StringVar(&o.out, "out", filepath.Join("bench", "results"), "folder for notify.md and notify.svg; empty to write nothing")
	flags.DurationVar(&o.timeout, "timeout", 30*time.Minute, "end everything after this time")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if o.quick {
		o.rounds, o.users, o.clients, o.webhooks, o.span = 1, min(o.users, 1000), min(o.clients, 1000), min(o.webhooks, 2000), min(o.span, 2*time.Second)
	}
	if o.rounds < 1 || o.users < 1 || o.each < 1 || o.clients < 1 || o.rate < 1 || o.webhooks < 1 || o.samples() < 1 {
		return o, errors.New("rounds, users, each, clients, rate, webhooks and the notifications in a span start at 1")
	}
	if o.each > mostEach {
		return o, fmt.Errorf("each is %d: an inbox keeps %d entries", o.each, mostEach)
	}
	// The browsers are users of the round of rates too, which has entries for all of them.
	if o.clients > o.users {
		return o, errors.New("clients cannot be more than users")
	}
	return o, nil
}
