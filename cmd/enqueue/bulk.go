package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/medicalink/postroom/internal/cli"
	"github.com/medicalink/postroom/tasks"
)

const (
	formatCSV   = "csv"
	formatJSONL = "jsonl"
)

const bulkLong = `Enqueue one email, or with --notification one notification, for every line of FILE, or of
standard input if FILE is -.

CSV (RFC 4180) begins with a line that names the columns. The columns to, locale and
list_unsubscribe are about the email; all others are the template's data, as strings.
JSON lines hold an object a line: to, locale and list_unsubscribe are about the email;
the data is the member data, or all other members if there is none. The format follows
from the file's name (.csv, .jsonl, .ndjson) or else from its first character. A file of
any size is read as it is sent.

Of notifications, the columns or members user, locale, email, phone and action are about
the message. email and phone are used if a channel needs them, and left out otherwise.
The flags say what all have in common, as those of "enqueue notification" do.

A line that cannot be sent is reported on standard error with its number in the file, the
field and what is wrong with it. It is copied as it is to FILE.rejected (stdin.rejected
for standard input), with the header of a CSV file in front; correct that file and send it
in turn. It is replaced by each run and absent when nothing was refused. The good lines
are sent in any case. --dry-run checks all lines, sends nothing and writes no file.

Nothing is sent twice:
  --idempotency-key-column to   one message per value of that column (user, for
                                notifications): running the same file again sends
                                only what is new. The template, the kind of a
                                notification, and --idempotency-key if given, are
                                part of the key, so another mailing to the same
                                people is not held back.
  --idempotency-key K           one message per line number: running the same file again
                                with the same K sends only what was not sent.
Without either, a key is made for this run. Keys are kept for at least 24 hours after a
message was due. Emails and notifications do not share keys.

When a run stops early (Ctrl-C, or a Redis that stays away for 30s) it finishes what it
has begun and says how to go on: with --resume-from LINE, and --idempotency-key with the
key of the run. --resume-from adds to FILE.rejected instead of replacing it.

Messages go to the queue of priority bulk unless --priority or --queue says otherwise;
their class stays transactional unless --class says otherwise.

On a terminal a bar shows progress, rate and time left. At the end a line counts what was
sent, what was a duplicate and what was refused. With --output json it is one object, and
each refused line is an object on standard error. Exit code 0: every line was sent or a
duplicate; 1: some were refused, or the run stopped early; 2: wrong usage.`

const bulkExample = `  enqueue bulk recipients.csv --template appointment-reminder
  enqueue bulk recipients.csv --template appointment-reminder --idempotency-key-column to --rate 100/s
  enqueue bulk recipients.csv --template appointment-reminder --dry-run
  enqueue bulk recipients.csv --template appointment-reminder --resume-from 5001 --idempotency-key 0192a1c4-…
  export-patients | enqueue bulk - --format jsonl --template welcome --output json
  enqueue bulk patients.csv --notification --template appointment-reminder --kind appointment.reminder \
      --step in_app --step push --step 'email after 2h if unread' --idempotency-key-column user`

type bulkFlags struct {
	*messageFlags
	*mailFlags
	*noteFlags
	*jobFlags
	notification bool
	format       *choice
	rate         cli.Rate
	keyColumn    string
	first        int
	dryRun       bool
	output       *cli.Output
}

func newBulkCommand(p cli.Process) *cobra.Command {
	cmd := &cobra.Command{
		Use: "bulk FILE", Short: "Enqueue one email or notification for every line of a file",
		Long: bulkLong, Example: bulkExample,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("bulk takes one file, or - for standard input; got %d", len(args))
			}
			return nil
		},
	}
	var f bulkFlags
	f.messageFlags = addMessageFlags(cmd, p, f.medium)
	f.mailFlags = addMailFlags(cmd)
	f.noteFlags = addNoteFlags(cmd)
	f.jobFlags = addJobFlags(cmd, "bulk", "enqueue once: one message per line number with the same `key`")
	f.output = cli.AddOutput(cmd)
	f.format = addChoice(cmd, "format", "format of the input (default: by name, else by content)", "", formatCSV, formatJSONL)
	flags := cmd.Flags()
	flags.BoolVar(&f.notification, "notification", false, "enqueue notifications, not emails")
	flags.Var(&f.rate, "rate", "enqueue at most this many, such as 100/s or 30/m")
	flags.StringVar(&f.keyColumn, "idempotency-key-column", "", "enqueue once: one message per value of this `column`")
	flags.IntVar(&f.first, "resume-from", 0, "begin at this `line` of the file")
	flags.BoolVar(&f.dryRun, "dry-run", false, "check every line and send nothing")
	_ = cmd.MarkFlagRequired("template") // see addChoice

	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := errors.Join(f.jobFlags.check(cmd), f.noteFlags.check(cmd)); err != nil {
			return err
		}
		if err := f.checkMedium(cmd); err != nil {
			return err
		}
		if cmd.Flags().Changed("resume-from") && f.first < 1 {
			return cli.Usagef("--resume-from must be at least 1")
		}
		return f.run(cmd.Context(), p, args[0])
	}
	return cmd
}

// medium is what the flags ask for.
func (f *bulkFlags) medium() medium {
	if f.notification {
		return notificationMedium
	}
	return emailMedium
}

// checkMedium refuses flags about the other medium.
func (f *bulkFlags) checkMedium(cmd *cobra.Command) error {
	for _, name := range mailFlagNames {
		if f.notification && cmd.Flags().Changed(name) {
			return cli.Usagef("--%s is about emails: it cannot be combined with --notification", name)
		}
	}
	for _, name := range noteFlagNames {
		if !f.notification && cmd.Flags().Changed(name) {
			return cli.Usagef("--%s is about notifications: add --notification", name)
		}
	}
	return nil
}

func (f *bulkFlags) run(ctx context.Context, p cli.Process, file string) (err error) {
	item, layout, err := f.message()
	if err != nil {
		return err
	}
	cfg, err := loadConfig(p)
	if err != nil {
		return err
	}
	set, err := loadTemplates(cfg.TemplatesDir, f.template, f.medium())
	if err != nil {
		return err
	}
	in, err := openInput(file, p.Stdin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.close()) }()
	src, openErr := f.source(in, layout)
	if openErr != nil {
		return fmt.Errorf("read %s: %w", in.name, openErr)
	}

	m := mailing{
		src: src, item: item, from: f.first,
		check:    func(data map[string]any) error { return f.medium().check(set, f.template, data) },
		options:  f.options,
		enqueue:  dryRun,
		retryFor: retryFor,
		progress: newProgress(p, in.size),
		rejects:  &rejects{path: in.rejected, header: src.header(), continued: f.first > 0, dry: f.dryRun},
	}
	if f.keyColumn != layout.recipient() {
		m.keyColumn = f.keyColumn
	}
	if f.priority.value == "" && f.queue == "" {
		f.priority.value = string(tasks.Bulk)
	}
	if f.rate.Limit > 0 && !f.dryRun {
		m.limiter = f.rate.Limiter(backlogRecords)
	}
	runKey := cmp.Or(f.key, uuid.NewString())
	m.key = func(r record) string {
		switch f.keyColumn {
		case "":
			return foldKey("bulk line", f.template, runKey, strconv.Itoa(r.line))
		case columnTo:
			r.key = recipientKey(r.key)
		}
		if f.notification {
			return foldKey("bulk column", f.template, f.kind, f.key, r.key)
		}
		return foldKey("bulk column", f.template, f.key, r.key)
	}
	m.notify = func(text string) {
		m.progress.clear()
		fmt.Fprintf(p.Stderr, "enqueue: %s\n", text)
	}
	m.reject = func(line int, what problem) {
		m.progress.clear()
		f.report(p.Stderr, in.name, line, what)
	}
	if !f.dryRun {
		producer, client, openErr := openProducer(ctx, cfg)
		if openErr != nil {
			return openErr
		}
		defer func() { err = errors.Join(err, client.Close()) }()
		m.enqueue = func(ctx context.Context, items iter.Seq[tasks.Item]) iter.Seq2[int, tasks.Result] {
			return producer.EnqueueMany(ctx, items)
		}
	}

	if err := m.rejects.begin(); err != nil {
		return err
	}
	stopped := errors.Join(m.run(ctx), m.rejects.close())
	m.progress.finish(p.Stderr)
	if _, ok := errors.AsType[*cli.UsageError](stopped); ok {
		return stopped
	}
	sum := f.summary(&m, in, runKey, stopped != nil)
	if err := sum.print(p.Stdout, *f.output); err != nil {
		return err
	}
	switch {
	case stopped != nil:
		return fmt.Errorf("%w: stopped before line %d of %s; to go on: %s", stopped, m.resume, in.name, sum.howToGoOn())
	case m.counts.rejected > 0 && f.dryRun:
		return fmt.Errorf("%d of %d lines of %s cannot be sent", m.counts.rejected, m.counts.total(), in.name)
	case m.counts.rejected > 0:
		return fmt.Errorf("%d of %d lines of %s were refused: correct them in %s and send that file",
			m.counts.rejected, m.counts.total(), in.name, in.rejected)
	}
	return nil
}

// message returns what makes the message of a record, and how the records are laid out. What all
// messages have in common is checked as far as it can be without a recipient.
func (f *bulkFlags) message() (item func(record) tasks.Item, l layout, err error) {
	if f.notification {
		n := f.note(f.messageFlags)
		if err := probeOf(n).Validate(); err != nil {
			return nil, l, &cli.UsageError{Err: err}
		}
		return notificationItem(n), notificationLayout, nil
	}
	e, err := f.email(f.messageFlags)
	if err != nil {
		return nil, l, err
	}
	probe := e
	probe.To = "recipient@example.com"
	if probe.Class.Policy().Unsubscribe == tasks.UnsubscribeRequired && probe.ListUnsubscribe == "" {
		probe.ListUnsubscribe = "https://example.com/" // may come with each line
	}
	if err := probe.Validate(); err != nil {
		return nil, l, &cli.UsageError{Err: err}
	}
	return emailItem(e), emailLayout, nil
}

// emailItem returns what makes the email of a record: what all share, and its own.
func emailItem(shared tasks.Email) func(record) tasks.Item {
	return func(r record) tasks.Item {
		e := shared
		e.To, e.Data = r.to, r.data
		if r.locale != "" {
			e.Locale = r.locale
		}
		if r.unsubscribe != "" {
			e.ListUnsubscribe = r.unsubscribe
		}
		return tasks.Item{Email: e}
	}
}

// notificationItem is emailItem for notifications.
func notificationItem(shared tasks.Notification) func(record) tasks.Item {
	byEmail, bySMS := uses(shared, tasks.ChannelEmail), uses(shared, tasks.ChannelSMS)
	return func(r record) tasks.Item {
		n := shared
		n.User, n.Data = r.user, r.data
		if r.locale != "" {
			n.Locale = r.locale
		}
		if r.action != "" {
			n.Action = r.action
		}
		if byEmail {
			n.Email = r.to
		}
		if bySMS {
			n.Phone = r.phone
		}
		return tasks.Item{Notification: &n}
	}
}

// probeOf returns n with what each line adds.
func probeOf(n tasks.Notification) tasks.Notification {
	n.User = "user"
	if uses(n, tasks.ChannelEmail) {
		n.Email = "user@example.com"
	}
	if uses(n, tasks.ChannelSMS) {
		n.Phone = "+4930123456"
	}
	return n
}

// uses reports whether n goes out over c.
func uses(n tasks.Notification, c tasks.Channel) bool {
	return slices.ContainsFunc(n.Steps(), func(s tasks.Step) bool { return s.Channel == c })
}

func (f *bulkFlags) source(in *input, l layout) (source, error) {
	s := newScanner(in.r)
	format := cmp.Or(f.format.value, formatByName(in.name))
	if format == "" {
		format = s.sniff()
	}
	if format == formatJSONL {
		return newJSONLSource(s, l, f.keyColumn)
	}
	return newCSVSource(s, l, f.keyColumn)
}

// report tells about a refused line. The field's name comes from the file, so it is quoted if it could
// upset a terminal.
func (f *bulkFlags) report(w io.Writer, file string, line int, p problem) {
	if *f.output == cli.JSON {
		// Standard error is what errors are reported on; there is no other place.
		_ = cli.WriteJSON(w, rejectedLine{Line: line, problem: p})
		return
	}
	field := ""
	if p.Field != "" {
		field = p.Field + ": "
		if strings.ContainsFunc(p.Field, func(r rune) bool { return !strconv.IsPrint(r) }) {
			field = strconv.Quote(p.Field) + ": "
		}
	}
	fmt.Fprintf(w, "%s:%d: %s%s\n", file, line, field, p.Problem)
}

type rejectedLine struct {
	Line int `json:"line"`
	problem
}

// summary is what a run prints at its end.
type summary struct {
	Total          int     `json:"total"` // lines settled: the three below together
	Enqueued       int     `json:"enqueued"`
	Duplicates     int     `json:"duplicates"`
	Rejected       int     `json:"rejected"`
	RejectedFile   string  `json:"rejected_file,omitempty"`
	ResumeFrom     int     `json:"resume_from,omitempty"`     // only when the run stopped early
	IdempotencyKey string  `json:"idempotency_key,omitempty"` // to give when going on, unless a column is the key
	DryRun         bool    `json:"dry_run,omitempty"`
	Seconds        float64 `json:"duration_seconds"`

	keyColumn string
}

func (f *bulkFlags) summary(m *mailing, in *input, runKey string, stopped bool) summary {
	sum := summary{
		Total: m.counts.total(), Enqueued: m.counts.enqueued, Duplicates: m.counts.duplicates, Rejected: m.counts.rejected,
		DryRun: f.dryRun, Seconds: math.Round(time.Since(m.started).Seconds()*1000) / 1000, keyColumn: f.keyColumn,
	}
	if m.rejects.written() {
		sum.RejectedFile = in.rejected
	}
	if stopped {
		sum.ResumeFrom = m.resume
	}
	switch {
	case f.dryRun:
	case f.keyColumn == "":
		sum.IdempotencyKey = runKey
	default:
		sum.IdempotencyKey = f.key
	}
	return sum
}

// howToGoOn returns the flags that continue an interrupted run.
func (s summary) howToGoOn() string {
	flags := fmt.Sprintf("--resume-from %d", s.ResumeFrom)
	if s.IdempotencyKey != "" {
		flags += " --idempotency-key " + s.IdempotencyKey
	}
	return "run the same command with " + flags
}

func (s summary) print(w io.Writer, output cli.Output) error {
	if output == cli.JSON {
		return cli.WriteJSON(w, s)
	}
	text := fmt.Sprintf("enqueued %d, duplicates %d, rejected %d", s.Enqueued, s.Duplicates, s.Rejected)
	if s.DryRun {
		text = fmt.Sprintf("nothing sent (dry run): good %d, rejected %d", s.Enqueued, s.Rejected)
	}
	if s.RejectedFile != "" {
		text += fmt.Sprintf(" (%s)", s.RejectedFile)
	}
	if _, err := fmt.Fprintln(w, text); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

// dryRun stands in for the producer: it checks as the producer would and accepts without sending.
func dryRun(_ context.Context, items iter.Seq[tasks.Item]) iter.Seq2[int, tasks.Result] {
	return func(yield func(int, tasks.Result) bool) {
		i := 0
		for item := range items {
			var err error
			if item.Notification != nil {
				err = item.Notification.Validate()
			} else {
				err = item.Email.Validate()
			}
			if !yield(i, tasks.Result{Err: err}) {
				return
			}
			i++
		}
	}
}

// input is the file, or standard input, that a run reads.
type input struct {
	name     string // as the user gave it
	rejected string // path of the file for refused lines
	r        io.Reader
	size     int64 // in bytes, -1 if unknown
	close    func() error
}

func openInput(name string, stdin io.Reader) (*input, error) {
	if name == "-" {
		// Standard input may be a redirected file, whose length is known.
		in := &input{name: "stdin", rejected: "stdin.rejected", r: stdin, size: -1, close: func() error { return nil }}
		if file, ok := stdin.(*os.File); ok {
			in.size = fileSize(file)
		}
		return in, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open input: %w", err)
	}
	if info, err := file.Stat(); err == nil && info.IsDir() {
		return nil, errors.Join(fmt.Errorf("open input: %s is a directory", name), file.Close())
	}
	in := &input{name: name, rejected: name + ".rejected", r: file, size: fileSize(file), close: file.Close}
	if strings.HasPrefix(name, "/dev/") { // such as the shell's <(command): nothing can be written beside it
		in.rejected = "stdin.rejected"
	}
	return in, nil
}

func fileSize(file *os.File) int64 {
	if info, err := file.Stat(); err == nil && info.Mode().IsRegular() && info.Size() > 0 {
		return info.Size()
	}
	return -1
}

// formatByName returns the format a file's name tells, looking behind the ending that this program adds
// to names itself.
func formatByName(name string) string {
	for strings.HasSuffix(name, ".rejected") {
		name = strings.TrimSuffix(name, ".rejected")
	}
	switch strings.ToLower(filepath.Ext(name)) {
	case ".csv":
		return formatCSV
	case ".jsonl", ".ndjson":
		return formatJSONL
	}
	return ""
}
