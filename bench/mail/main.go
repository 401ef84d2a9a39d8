// Command mail measures how fast queued emails reach a mail server, and what that costs: postroom's own worker
// beside BullMQ with nodemailer and handlebars, in the same run, against the same Redis server and the same sink
// (bench/sink), with the same template text.
//
// Each system runs as the process that would be deployed, warmed up and then kept alive. A round pauses its queue,
// fills it, and measures from the first message that the sink accepts to the last one; CPU time is that of the
// processes, from the resumption of the queue until nothing is left running in it. The rounds of the two
// alternate. A round counts only if every message arrived exactly once.
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
	"time"
)

type options struct {
	rounds      int
	ours, peers int // jobs a round
	concurrency int
	connections int
	only        string
	aof         bool
	out         string
	timeout     time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench/mail:", err)
		}
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var o options
	flags := flag.NewFlagSet("mail", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.rounds, "rounds", 5, "measured rounds of each system, after one for warming up")
	flags.IntVar(&o.ours, "jobs", 20_000, "postroom's jobs in a round")
	flags.IntVar(&o.peers, "peer-jobs", 5_000, "BullMQ's jobs in a round")
	flags.IntVar(&o.concurrency, "concurrency", 50, "jobs in progress at once, in each system")
	flags.IntVar(&o.connections, "connections", 10, "connections to the mail server, in each system")
	flags.StringVar(&o.only, "only", "", "measure one system only: postroom or bullmq")
	flags.BoolVar(&o.aof, "aof", false, "let Redis write its append-only file (fsync every second)")
	flags.StringVar(&o.out, "out", filepath.Join("bench", "results"), "folder for mail.md and mail.svg; empty to write nothing")
	flags.DurationVar(&o.timeout, "timeout", 15*time.Minute, "end everything after this time")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if o.rounds < 1 || o.ours < 1 || o.peers < 1 || o.concurrency < 1 || o.connections < 1 {
		return errors.New("rounds, jobs, peer-jobs, concurrency and connections start at 1")
	}
	if _, err := os.Stat("go.mod"); err != nil {
		return errors.New("run it from the root of the repository")
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
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
	defer func() { err = errors.Join(err, b.stop()) }()

	for round := range o.rounds + 1 {
		for _, s := range b.systems {
			m, err := b.round(ctx, s, round, s.jobs)
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", s.name, round, err)
			}
			label := fmt.Sprintf("round %d", round)
			if round == 0 {
				label = "warm-up"
			} else {
				s.rounds = append(s.rounds, m)
			}
			fmt.Fprintf(stdout, "%-9s %-8s %6d mails  %8.0f mails/s  CPU s per 1,000: worker %.3f  redis %.3f  sink %.3f\n",
				s.name, label, m.mails, m.rate(), m.per1000(m.worker), m.per1000(m.redis), m.per1000(m.sink))
		}
	}
	return b.report(ctx, o, stdout)
}
