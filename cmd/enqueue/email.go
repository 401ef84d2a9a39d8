package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/mail"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/medicalink/postroom/internal/cli"
	"github.com/medicalink/postroom/tasks"
)

const emailLong = `Enqueue one email, or the same email to several recipients.

Every --to becomes a job of its own: no recipient sees another, and one bad address
does not hold up the rest. All of them are checked before the first is enqueued.

The text comes from --template with --data, or from --subject with --body, --html or
both. --data, --body and --html take the value itself, @FILE, or - for standard input.

With --idempotency-key a message is enqueued once: the same key for the same recipient
gives the first job back, marked as a duplicate. The recipient's address is made part
of the key, so one key serves for several recipients.

Prints one line a job (id, queue, state), in the order of --to and numbered if there are
several; with --output json, one object a line. Addresses and data are not printed.`

const emailExample = `  enqueue email --to ada@example.com --template welcome --data '{"name":"Ada"}'
  enqueue email --to 'Ada Lovelace <ada@example.com>' --template welcome --data @ada.json --locale de
  enqueue email --to ada@example.com --to grace@example.com --subject Closed --body 'We are closed on Friday.'
  enqueue email --to ada@example.com --template one-time-code --data '{"code":"123456","expires_in":"5 minutes"}' \
      --class otp --deadline 5m --idempotency-key login-8271
  enqueue email --to ada@example.com --subject 'Your report' --body @report.txt --attach report.pdf --at 2027-01-31T09:00:00+01:00`

type emailFlags struct {
	*messageFlags
	*mailFlags
	*jobFlags
	to, attach                []string
	subject, data, body, html string
}

func newEmailCommand(p cli.Process) *cobra.Command {
	cmd := &cobra.Command{
		Use: "email", Short: "Enqueue one email, to one recipient or several",
		Long: emailLong, Example: emailExample, Args: cobra.NoArgs,
	}
	f := emailFlags{
		messageFlags: addMessageFlags(cmd, p, func() medium { return emailMedium }),
		mailFlags:    addMailFlags(cmd),
		jobFlags:     addJobFlags(cmd, "the class's", "enqueue once: with the same `key` the recipient gets no second message"),
	}
	output := cli.AddOutput(cmd)
	flags := cmd.Flags()
	flags.StringArrayVar(&f.to, "to", nil, "recipient `address`, such as 'Ada <ada@example.com>'; repeatable")
	flags.StringVar(&f.data, "data", "", "template data: `JSON` object, @FILE or -")
	flags.StringVarP(&f.subject, "subject", "s", "", "subject; required without a template, replaces the template's with one")
	flags.StringVar(&f.body, "body", "", "plain `text`, @FILE or -")
	flags.StringVar(&f.html, "html", "", "`HTML`, @FILE or -")
	flags.StringArrayVar(&f.attach, "attach", nil, "`file` to attach; repeatable")
	_ = cmd.MarkFlagRequired("to") // see addChoice

	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := f.check(cmd); err != nil {
			return err
		}
		emails, err := f.emails(p.Stdin)
		if err != nil {
			return err
		}
		cfg, err := loadConfig(p)
		if err != nil {
			return err
		}
		if f.template != "" {
			set, err := loadTemplates(cfg.TemplatesDir, f.template, emailMedium)
			if err != nil {
				return err
			}
			if err := set.Check(f.template, emails[0].Data); err != nil {
				return &cli.UsageError{Err: fmt.Errorf("--data: %w", err)}
			}
		}
		producer, client, err := openProducer(cmd.Context(), cfg)
		if err != nil {
			return err
		}
		return errors.Join(f.send(cmd.Context(), producer, emails, p.Stdout, *output), client.Close())
	}
	return cmd
}

// emails returns one valid message for each recipient.
func (f *emailFlags) emails(stdin io.Reader) ([]tasks.Email, error) {
	e, err := f.email(f.messageFlags)
	if err != nil {
		return nil, err
	}
	e.Subject = f.subject
	in := textInput{stdin: stdin}
	if e.Body, err = in.read("--body", f.body); err != nil {
		return nil, err
	}
	if e.HTML, err = in.read("--html", f.html); err != nil {
		return nil, err
	}
	if e.Data, err = in.readData(f.data); err != nil {
		return nil, err
	}
	if e.Attachments, err = readAttachments(f.attach); err != nil {
		return nil, err
	}
	emails := make([]tasks.Email, len(f.to))
	for i, to := range f.to {
		emails[i] = e
		emails[i].To = to
		if err := emails[i].Validate(); err != nil {
			return nil, &cli.UsageError{Err: f.numbered(i, err)}
		}
	}
	return emails, nil
}

// numbered says which recipient an error is about, without the address.
func (f *emailFlags) numbered(i int, err error) error {
	if len(f.to) == 1 {
		return err
	}
	return fmt.Errorf("recipient %d: %w", i+1, err)
}

// emailResult is what --output json prints for a job.
type emailResult struct {
	Recipient int `json:"recipient"` // position of --to, from 1
	tasks.Receipt
}

func (f *emailFlags) send(ctx context.Context, producer *tasks.Producer, emails []tasks.Email, stdout io.Writer, output cli.Output) error {
	now := time.Now()
	items := func(yield func(tasks.Item) bool) {
		for _, e := range emails {
			item := tasks.Item{Email: e}
			if f.key != "" {
				item.Options = []tasks.Option{tasks.IdempotencyKey(foldKey("email", f.key, recipientKey(e.To)))}
			}
			if !yield(item) {
				return
			}
		}
	}
	var errs []error
	for i, result := range producer.EnqueueMany(ctx, items, f.options(now)...) {
		if found, ok := problemsOf(result.Err); ok {
			if err := optionError(found); err != nil {
				return err // the same for all of them: none was enqueued
			}
		}
		if result.Err != nil {
			errs = append(errs, f.numbered(i, result.Err))
			continue
		}
		if err := f.print(stdout, output, i, result.Receipt); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

func (f *emailFlags) print(stdout io.Writer, output cli.Output, i int, r tasks.Receipt) error {
	if output == cli.JSON {
		return cli.WriteJSON(stdout, emailResult{Recipient: i + 1, Receipt: r})
	}
	number := ""
	if len(f.to) > 1 {
		number = fmt.Sprintf("%d  ", i+1)
	}
	return printReceipt(stdout, number, r)
}

// printReceipt tells people what became of a job, on one line that begins with number.
func printReceipt(stdout io.Writer, number string, r tasks.Receipt) error {
	what := r.State
	switch {
	case r.Duplicate:
		what = fmt.Sprintf("duplicate of the job enqueued at %s (%s)", r.EnqueuedAt.Format(time.RFC3339), r.State)
	case r.ProcessAt.After(time.Now()):
		what = fmt.Sprintf("%s for %s", r.State, r.ProcessAt.Format(time.RFC3339))
	}
	if _, err := fmt.Fprintf(stdout, "%s%s  %s  %s\n", number, r.ID, r.Queue, what); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

// recipientKey is the part of an idempotency key that stands for a recipient: the address without the
// name, so that spelling the name differently does not send twice.
func recipientKey(to string) string {
	if a, err := mail.ParseAddress(to); err == nil {
		to = a.Address
	}
	return strings.ToLower(strings.TrimSpace(to))
}

// textInput reads flag values that may name a file or standard input.
type textInput struct {
	stdin io.Reader
	used  string // the flag that has standard input
}

func (in *textInput) read(flag, value string) (string, error) {
	if value == "-" {
		if in.used != "" {
			return "", cli.Usagef("%s and %s cannot both read standard input", in.used, flag)
		}
		in.used = flag
		return readText(flag, in.stdin)
	}
	name, ok := strings.CutPrefix(value, "@")
	if !ok {
		return value, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", flag, err)
	}
	text, err := readText(flag, file)
	return text, errors.Join(err, file.Close())
}

// readData reads the template data of the flag --data.
func (in *textInput) readData(value string) (map[string]any, error) {
	text, err := in.read("--data", value)
	if err != nil || text == "" {
		return nil, err
	}
	data, err := decodeObject([]byte(text))
	if err != nil {
		return nil, cli.Usagef("--data %w", err)
	}
	return data, nil
}

// readText refuses more than a job can hold before all of it is in memory.
func readText(flag string, r io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, tasks.MaxPayloadBytes+1))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", flag, err)
	}
	if len(b) > tasks.MaxPayloadBytes {
		return "", cli.Usagef("%s has more than %d bytes", flag, tasks.MaxPayloadBytes)
	}
	return strings.TrimPrefix(string(b), "\ufeff"), nil
}

func readAttachments(names []string) ([]tasks.Attachment, error) {
	var attachments []tasks.Attachment
	room := int64(tasks.MaxAttachmentBytes)
	for _, name := range names {
		file, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("read --attach: %w", err)
		}
		content, err := io.ReadAll(io.LimitReader(file, room+1))
		if err := errors.Join(err, file.Close()); err != nil {
			return nil, fmt.Errorf("read --attach: %w", err)
		}
		room -= int64(len(content))
		if room < 0 {
			return nil, cli.Usagef("the attachments have more than %d bytes together", tasks.MaxAttachmentBytes)
		}
		kind := mime.TypeByExtension(filepath.Ext(name))
		if kind == "" {
			kind = http.DetectContentType(content)
		}
		attachments = append(attachments, tasks.Attachment{
			Name: filepath.Base(name), ContentType: kind, Content: slices.Clip(content),
		})
	}
	return attachments, nil
}
