// Command engine measures how fast jobs go through postroom's engine and what they cost, beside stock asynq, BullMQ and
// River: in one run, on one machine, with the same payload and a handler that does nothing.
//
// Each system has a producer and its workers as processes of their own (see bench/internal/peer), so that their CPU
// time can be told apart. The Redis systems share one Redis server, each with a database of its own. In every measure
// the systems take turns, round by round, and the first round is for warming up. A round counts only if every job of
// it ran exactly once and nothing is left.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/medicalink/postroom/bench/internal/peer"
)

type options struct {
	rounds   int
	span     time.Duration // of a round
	quick    bool
	measures []string
	systems  []string
	backlog  int
	out      string
	timeout  time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench/engine:", err)
		}
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer, stderr *os.File) error {
	if len(args) > 0 && args[0] == "peer" {
		return runPeer(ctx, args[1:], stdin, stdout)
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
	progress := io.Discard
	if term.IsTerminal(int(stderr.Fd())) {
		progress = stderr
	}
	b, err := start(ctx, o, progress, stderr)
	if err != nil {
		return err
	}
	err = b.measure(ctx)
	if err := errors.Join(err, b.stop()); err != nil {
		return err
	}
	return errors.Join(b.report(ctx, stdout), errors.Join(b.problems...))
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	var measures, only, without string
	names := systemNames()
	flags := flag.NewFlagSet("engine", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.rounds, "rounds", 5, "measured rounds of each system, after one for warming up")
	flags.DurationVar(&o.span, "span", time.Second, "how long a round should take; the number of jobs follows from the round before")
	flags.BoolVar(&o.quick, "quick", false, "a look of a few minutes: one short round, fewer cases; not for publishing")
	flags.StringVar(&measures, "measure", "", "measure only these, separated by commas: "+strings.Join(measureNames(), " "))
	flags.StringVar(&only, "only", "", "measure only these systems, separated by commas: "+strings.Join(names, " "))
	flags.StringVar(&without, "without", "", "leave these systems out, separated by commas")
	flags.IntVar(&o.backlog, "backlog", 1_000_000, "jobs in the long queue")
	flags.StringVar(&o.out, "out", filepath.Join("bench", "results"), "folder for engine.md and its pictures; empty to write nothing")
	flags.DurationVar(&o.timeout, "timeout", time.Hour, "end everything after this time")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if o.quick {
		o.rounds, o.span, o.backlog = 1, 300*time.Millisecond, min(o.backlog, 50_000)
	}
	if o.rounds < 1 || o.span < 10*time.Millisecond || o.backlog < 10_000 {
		return o, errors.New("rounds starts at 1, span at 10ms and backlog at 10000")
	}
	if o.measures, err = choose("measure", measures, measureNames()); err != nil {
		return o, err
	}
	if o.systems, err = choose("only", only, names); err != nil {
		return o, err
	}
	if without != "" {
		leave, err := choose("without", without, names)
		if err != nil {
			return o, err
		}
		o.systems = slices.DeleteFunc(o.systems, func(name string) bool { return slices.Contains(leave, name) })
	}
	if len(o.systems) == 0 {
		return o, errors.New("no system is left to measure")
	}
	return o, nil
}

// choose reads a list of some of all; empty means all.
func choose(flag, list string, all []string) ([]string, error) {
	if list == "" {
		return slices.Clone(all), nil
	}
	chosen := strings.Split(list, ",")
	for _, name := range chosen {
		if !slices.Contains(all, name) {
			return nil, fmt.Errorf("-%s: there is no %q; choose from %s", flag, name, strings.Join(all, ", "))
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(name string) bool { return !slices.Contains(chosen, name) }), nil
}

// runPeer is the producer or a worker of one of the systems that are part of this program.
func runPeer(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	var c peer.Config
	if len(args) != 3 {
		return errors.New("peer takes a role, a system and a configuration")
	}
	if err := json.Unmarshal([]byte(args[2]), &c); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	work, produce := startPostroom, newPostroomProducer
	switch args[1] {
	case stock:
		work, produce = startStock, newStockProducer
	case bare:
		work = startBare
	}
	if args[0] == "work" {
		// As cmd/worker does, to let the collector rest; untouched, so never resident.
		ballast := make([]byte, 64<<20)
		defer runtime.KeepAlive(ballast)
		return peer.Work(ctx, c, in, out, work)
	}
	p, err := produce(ctx, c)
	if err != nil {
		return err
	}
	return peer.Produce(ctx, p, in, out)
}
