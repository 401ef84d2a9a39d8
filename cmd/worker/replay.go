package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/medicalink/postroom/internal/cli"
	"github.com/medicalink/postroom/internal/notifier/webhook"
	"github.com/medicalink/postroom/tasks"
)

// moment is the value of --from and --to: a time, or how long ago.
type moment struct {
	text string
	at   time.Time
}

func (m *moment) String() string { return m.text }

// Type names the value in help texts.
func (m *moment) Type() string { return "time" }

// Set reads RFC 3339 or a duration before now.
func (m *moment) Set(s string) error {
	at, err := time.Parse(time.RFC3339, s)
	if ago, durationErr := time.ParseDuration(s); durationErr == nil && ago >= 0 {
		at, err = time.Now().Add(-ago), nil
	}
	if err != nil {
		return errors.New("must be a time such as 2026-03-01T12:00:00Z, or how long ago, such as 24h")
	}
	m.text, m.at = s, at
	return nil
}

// replayResult is what replay prints.
type replayResult struct {
	Endpoint string    `json:"endpoint"`
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	// Selected is how many messages there are to send again.
	Selected   int  `json:"selected"`
	Enqueued   int  `json:"enqueued"`
	Duplicates int  `json:"duplicates"` // of this run
	Damaged    int  `json:"damaged"`    // records that hold no job
	DryRun     bool `json:"dry_run,omitempty"`
}

type replay struct {
	registrar

	id         string
	from, to   moment
	failedOnly bool
	dryRun     bool
	rate       cli.Rate
}

func newReplayCommand(r registrar) *cobra.Command {
	f := replay{registrar: r, rate: cli.Rate{Limit: 50}}
	cmd := &cobra.Command{
		Use:   "replay ID --from TIME",
		Short: "Send messages to an endpoint again",
		Long: `replay enqueues again what was sent, or should have been sent, to an endpoint in a
range of time: what ended, one way or the other, between --from and --to. The log
goes back 30 days, and about 10,000 messages.

A message goes out once, however often it is in the log, with the bytes and the
webhook-id that it had: a receiver that has it already knows it by that. With
--failed-only it goes out only if it was not delivered, then or since. Messages
wait in the bulk queue, so that new ones go first.`,
		Example: `  worker webhook replay lab --from 6h --failed-only
  worker webhook replay lab --from 2026-03-01T12:00:00Z --to 2026-03-01T15:00:00Z --dry-run`,
		Args: cobra.ExactArgs(1),
	}
	flags := cmd.Flags()
	flags.Var(&f.from, "from", "when the range begins: a time, or how long ago, such as 24h")
	flags.Var(&f.to, "to", "when it ends, in the same form (default now)")
	flags.BoolVar(&f.failedOnly, "failed-only", false, "leave out what was delivered")
	flags.BoolVar(&f.dryRun, "dry-run", false, "only count")
	flags.Var(&f.rate, "rate", "enqueue at most this many, such as 100/s or 30/m")
	_ = cmd.MarkFlagRequired("from") // it fails only for a flag that does not exist
	output := cli.AddOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f.id = args[0]
		if f.to.at.IsZero() {
			f.to.at = time.Now()
		}
		if !f.from.at.Before(f.to.at) {
			return cli.Usagef("--from must be before --to")
		}
		result, err := f.run(cmd.Context())
		if result == nil {
			return err
		}
		return errors.Join(f.print(*result, *output), err)
	}
	return cmd
}

// run returns what was done, nil if nothing was tried, and why it did not get to the end.
func (f *replay) run(ctx context.Context) (result *replayResult, err error) {
	cfg, rdb, registry, err := f.open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rdb.Close()) }()
	e, err := f.get(ctx, registry, f.id)
	if err != nil {
		return nil, err
	}
	if e.Disabled != nil && !f.dryRun {
		return nil, fmt.Errorf("%s is disabled: messages would fail; first: worker webhook enable %s", f.id, f.id)
	}
	producer, err := tasks.NewProducer(rdb, tasks.FromService(cfg.Service), tasks.Namespace(cfg.Namespace))
	if err != nil {
		return nil, err
	}
	log := webhook.NewLog(rdb, cfg.Namespace)
	wanted, err := f.choose(ctx, log)
	if err != nil {
		return nil, err
	}
	result = &replayResult{Endpoint: f.id, From: f.from.at.UTC(), To: f.to.at.UTC(), Selected: len(wanted), DryRun: f.dryRun}
	if f.dryRun || len(wanted) == 0 {
		return result, nil
	}
	return result, f.send(ctx, log, producer, wanted, result)
}

// choose returns the ids of the notifications to send again. Whether one was
// delivered is told by the end of the log, which may lie behind the range.
func (f *replay) choose(ctx context.Context, log *webhook.Log) (map[string]bool, error) {
	wanted, delivered := map[string]bool{}, map[string]bool{}
	for r, err := range log.Range(ctx, f.id, f.from.at, time.Time{}) {
		if err != nil {
			return nil, err
		}
		if r.Outcome == webhook.OutcomeDelivered {
			delivered[r.Notification] = true
		}
		if !r.Time.After(f.to.at) {
			wanted[r.Notification] = true
		}
	}
	if f.failedOnly {
		for id := range delivered {
			delete(wanted, id)
		}
	}
	return wanted, nil
}

// send enqueues the wanted notifications, each once, and counts in result.
func (f *replay) send(ctx context.Context, log *webhook.Log, producer *tasks.Producer, wanted map[string]bool, result *replayResult) error {
	run := uuid.NewString()
	limiter := f.rate.Limiter(math.MaxInt32)
	bar := newReplayBar(f.p, len(wanted))
	defer bar.finish()
	for r, err := range log.Range(ctx, f.id, f.from.at, f.to.at) {
		if err != nil {
			return f.stopped(err, r.Time)
		}
		if !wanted[r.Notification] {
			continue
		}
		delete(wanted, r.Notification)
		d, err := tasks.DecodeDelivery(r.Job)
		if err != nil || d.Channel != tasks.ChannelWebhook || d.Target != f.id {
			result.Damaged++
			continue
		}
		d.Replay = run
		d.OnlyIf = tasks.Always // the operator has decided
		if err := limiter.Wait(ctx); err != nil {
			return f.stopped(err, r.Time)
		}
		receipt, err := producer.SendDelivery(ctx, d, tasks.Priority(tasks.Bulk), tasks.MaxRetry(len(webhook.Schedule())))
		switch {
		case err != nil:
			return f.stopped(err, r.Time)
		case receipt.Duplicate:
			result.Duplicates++
		default:
			result.Enqueued++
		}
		bar.add()
	}
	if result.Damaged > 0 {
		return fmt.Errorf("%d of %d records hold no job that can be sent", result.Damaged, result.Selected)
	}
	return nil
}

// stopped says how to go on.
func (f *replay) stopped(err error, at time.Time) error {
	if at.IsZero() {
		return err
	}
	return fmt.Errorf("%w: to go on: --from %s --to %s", err, at.Format(time.RFC3339Nano), f.to.at.UTC().Format(time.RFC3339Nano))
}

func (f *replay) print(result replayResult, output cli.Output) error {
	if output == cli.JSON {
		return cli.WriteJSON(f.p.Stdout, result)
	}
	if result.DryRun {
		return write(f.p.Stdout, fmt.Sprintf("nothing sent (dry run): selected %d\n", result.Selected))
	}
	return write(f.p.Stdout, fmt.Sprintf("selected %d, enqueued %d, duplicates %d, damaged %d\n",
		result.Selected, result.Enqueued, result.Duplicates, result.Damaged))
}

// replayBar shows on a terminal how far a replay is. Nil shows nothing.
type replayBar struct {
	bar *progressbar.ProgressBar
	out *os.File
}

func newReplayBar(p cli.Process, total int) *replayBar {
	file, ok := p.Stderr.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) || slices.Contains(p.Environ, "TERM=dumb") {
		return nil
	}
	return &replayBar{out: file, bar: progressbar.NewOptions(total,
		progressbar.OptionSetWriter(file), progressbar.OptionSetWidth(40), progressbar.OptionShowCount(),
		progressbar.OptionSetPredictTime(true), progressbar.OptionUseANSICodes(true),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionSetSpinnerChangeInterval(0))}
}

func (b *replayBar) add() {
	if b != nil {
		_ = b.bar.Add(1) // it can only fail to be drawn
	}
}

func (b *replayBar) finish() {
	if b != nil {
		fmt.Fprintln(b.out)
	}
}
