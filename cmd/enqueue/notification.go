package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/medicalink/postroom/internal/cli"
	"github.com/medicalink/postroom/tasks"
)

// defaultKind is the kind of a notification whose sender names none.
const defaultKind = "manual.message"

const notificationLong = `Enqueue one notification to one user.

The text comes from --template with --data, or from --title with --body. --data and --body
take the value itself, @FILE, or - for standard input.

It goes out over every --channel at once, or by the steps of a plan. A --step is a channel,
and may say when and on which condition, in this order:

  --step CHANNEL [after DURATION] [if unread|unsent|always]

  in_app                     at once
  push after 1m              a minute later
  email after 10m if unread  ten minutes later, if it was not read in the app by then
  sms after 1h if unsent     an hour later, if no earlier step has reached the user

Durations count from when the notification is due; the steps are in their order. Without a
condition the workers leave out what was read in the meantime, for channels that reach the
user. Without --channel and --step the notification is in the app only. The channels email,
sms, webhook and chat need --email, --phone, --webhook and --chat.

With --idempotency-key a notification is enqueued once: the same key for the same user gives
the first job back, marked as a duplicate.

Prints one line (id, queue, state), or with --output json one object. The user, addresses
and data are not printed.`

const notificationExample = `  enqueue notification --user u-17 --title 'We are closed on Friday'
  enqueue notification --user u-17 --kind lab.result.ready --title 'Your results are ready' --action /results/17 \
      --step in_app --step push --step 'email after 10m if unread' --email ada@example.com
  enqueue notification --user u-17 --template appointment-reminder --data @appointment.json --channel push --at 2027-01-31T09:00:00+01:00
  enqueue notification --user ehr --kind lab.result.ready --title 'Result 17' --channel webhook --webhook ehr --idempotency-key result-17`

// stepForm is what an error about a step says.
const stepForm = "must look like 'push' or 'email after 10m if unread': a channel (%s), then after and a duration, then if and unread, unsent or always"

func channelNames() []string {
	return []string{
		string(tasks.ChannelInApp), string(tasks.ChannelPush), string(tasks.ChannelEmail),
		string(tasks.ChannelSMS), string(tasks.ChannelChat), string(tasks.ChannelWebhook),
	}
}

// channels is a flag that names a channel each time.
type channels []tasks.Channel

func (c *channels) Type() string { return "channel" }

func (c *channels) String() string {
	names := make([]string, len(*c))
	for i, channel := range *c {
		names[i] = string(channel)
	}
	return strings.Join(names, ",")
}

func (c *channels) Set(s string) error {
	if !slices.Contains(channelNames(), s) {
		return fmt.Errorf("must be one of %s", strings.Join(channelNames(), ", "))
	}
	*c = append(*c, tasks.Channel(s))
	return nil
}

// plan is a flag that adds a step each time.
type plan []tasks.Step

func (p *plan) Type() string { return "step" }

func (p *plan) String() string {
	steps := make([]string, len(*p))
	for i, s := range *p {
		steps[i] = string(s.Channel)
		if s.After != 0 {
			steps[i] += " after " + s.After.String()
		}
		if s.OnlyIf != "" {
			steps[i] += " if " + string(s.OnlyIf)
		}
	}
	return strings.Join(steps, ", ")
}

func (p *plan) Set(s string) error {
	bad := fmt.Errorf(stepForm, strings.Join(channelNames(), ", "))
	words := strings.Fields(s)
	if len(words) == 0 || !slices.Contains(channelNames(), words[0]) {
		return bad
	}
	step := tasks.Step{Channel: tasks.Channel(words[0])}
	words = words[1:]
	if len(words) >= 2 && words[0] == "after" {
		if err := step.After.UnmarshalText([]byte(words[1])); err != nil {
			return bad
		}
		words = words[2:]
	}
	if len(words) >= 2 && words[0] == "if" {
		step.OnlyIf = tasks.Condition(words[1])
		switch step.OnlyIf {
		case tasks.OnlyIfUnread, tasks.OnlyIfUnsent, tasks.Always:
		default:
			return bad
		}
		words = words[2:]
	}
	if len(words) > 0 {
		return bad
	}
	*p = append(*p, step)
	return nil
}

// noteFlags are the flags about notifications that their commands share.
type noteFlags struct {
	kind, action, category, critical string
	webhook, chat                    string
	channels                         channels
	plan                             plan
	quiet, sensitivity               *choice
	digestKey, collapse, dedupe      string
	digestWindow, dedupeFor          time.Duration
	digestMax                        int
}

var noteFlagNames = []string{
	"kind", "channel", "step", "webhook", "chat", "action", "category", "critical", "quiet",
	"digest-key", "digest-window", "digest-max", "collapse", "dedupe", "dedupe-for", "sensitivity",
}

func addNoteFlags(cmd *cobra.Command) *noteFlags {
	var n noteFlags
	f := cmd.Flags()
	f.StringVar(&n.kind, "kind", defaultKind, "what happened, in `words` with dots, such as lab.result.ready")
	f.Var(&n.channels, "channel", "`channel` to use at once: "+strings.Join(channelNames(), ", ")+"; repeatable (default in_app)")
	_ = cmd.RegisterFlagCompletionFunc("channel", cobra.FixedCompletions(channelNames(), cobra.ShellCompDirectiveNoFileComp)) // see addChoice
	f.Var(&n.plan, "step", "`step` of a plan, such as 'email after 10m if unread'; repeatable, in their order")
	f.StringVar(&n.webhook, "webhook", "", "`id` of the endpoint, for the channel webhook")
	f.StringVar(&n.chat, "chat", "", "`id` of the chat, for the channel chat")
	f.StringVar(&n.action, "action", "", "`path` of the app, or https URL, that a click leads to")
	f.StringVar(&n.category, "category", "", "`word` that users choose what they want to be told by (default: the first word of the kind)")
	f.StringVar(&n.critical, "critical", "", "`reason` to override preferences and quiet hours; it is recorded")
	n.quiet = addChoice(cmd, "quiet", "what becomes of it in quiet hours", string(tasks.QuietDefer),
		string(tasks.QuietDefer), string(tasks.QuietDrop), string(tasks.QuietIgnore))
	f.StringVar(&n.digestKey, "digest-key", "", "gather it with others of this `key`, and deliver them as one")
	f.DurationVar(&n.digestWindow, "digest-window", 0, "how long is gathered, such as 1h")
	f.IntVar(&n.digestMax, "digest-max", 0, "end the window early at this many (default 200)")
	f.StringVar(&n.collapse, "collapse", "", "replace what was not yet read of older ones with this `key`")
	f.StringVar(&n.dedupe, "dedupe", "", "drop it if one with this `key` was delivered before")
	f.DurationVar(&n.dedupeFor, "dedupe-for", 0, "how long before (default 24h)")
	n.sensitivity = addChoice(cmd, "sensitivity", "what may be seen outside the app: health shows that there is something to read, and no more",
		string(tasks.SensitivityHealth), string(tasks.SensitivityHealth), string(tasks.SensitivityPersonal), string(tasks.SensitivityNone))
	cmd.MarkFlagsMutuallyExclusive("channel", "step")
	cmd.MarkFlagsRequiredTogether("digest-key", "digest-window")
	return &n
}

// check refuses values that cobra takes but no notification can have.
func (n *noteFlags) check(cmd *cobra.Command) error {
	switch changed := cmd.Flags().Changed; {
	case changed("dedupe-for") && n.dedupeFor <= 0:
		return cli.Usagef("--dedupe-for must be more than 0")
	case changed("digest-max") && n.digestMax < 1:
		return cli.Usagef("--digest-max must be at least 1")
	case changed("digest-max") && !changed("digest-key"):
		return cli.Usagef("--digest-max needs --digest-key and --digest-window")
	}
	return nil
}

// note returns the notification as far as the flags describe it.
func (n *noteFlags) note(shared *messageFlags) tasks.Notification {
	note := tasks.Notification{
		Kind: n.kind, Template: shared.template, Locale: shared.locale, Action: n.action, Channels: n.channels, Plan: n.plan,
		Webhook: n.webhook, Chat: n.chat, Category: n.category, Critical: n.critical, Quiet: tasks.QuietRule(n.quiet.value),
		Collapse: n.collapse, Dedupe: n.dedupe, DedupeFor: tasks.Duration(n.dedupeFor),
		Sensitivity: tasks.Sensitivity(n.sensitivity.value), Tags: shared.tags, Class: tasks.Class(shared.class.value),
	}
	if n.digestKey != "" || n.digestWindow != 0 {
		note.Digest = &tasks.Digest{Key: n.digestKey, Window: tasks.Duration(n.digestWindow), Max: n.digestMax}
	}
	return note
}

type notificationFlags struct {
	*messageFlags
	*noteFlags
	*jobFlags
	user, title, body, data, email, phone string
}

func newNotificationCommand(p cli.Process) *cobra.Command {
	cmd := &cobra.Command{
		Use: "notification", Short: "Enqueue one notification to one user",
		Long: notificationLong, Example: notificationExample, Args: cobra.NoArgs,
	}
	f := notificationFlags{
		messageFlags: addMessageFlags(cmd, p, func() medium { return notificationMedium }),
		noteFlags:    addNoteFlags(cmd),
		jobFlags:     addJobFlags(cmd, "the class's", "enqueue once: with the same `key` the user gets no second notification"),
	}
	output := cli.AddOutput(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.user, "user", "", "`id` of the user; no address")
	flags.StringVar(&f.title, "title", "", "title, one `line`; required without a template")
	flags.StringVar(&f.body, "body", "", "plain `text`, @FILE or -")
	flags.StringVar(&f.data, "data", "", "template data: `JSON` object, @FILE or -")
	flags.StringVar(&f.email, "email", "", "`address` of the user, for the channel email")
	flags.StringVar(&f.phone, "phone", "", "`number` of the user such as +4930123456, for the channel sms")
	_ = cmd.MarkFlagRequired("user") // see addChoice

	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := errors.Join(f.jobFlags.check(cmd), f.noteFlags.check(cmd)); err != nil {
			return err
		}
		n, err := f.notification(p.Stdin)
		if err != nil {
			return err
		}
		cfg, err := loadConfig(p)
		if err != nil {
			return err
		}
		if f.template != "" {
			set, err := loadTemplates(cfg.TemplatesDir, f.template, notificationMedium)
			if err != nil {
				return err
			}
			if err := set.CheckNotification(f.template, n.Data); err != nil {
				return &cli.UsageError{Err: fmt.Errorf("--data: %w", err)}
			}
		}
		producer, client, err := openProducer(cmd.Context(), cfg)
		if err != nil {
			return err
		}
		return errors.Join(f.send(cmd.Context(), producer, n, p.Stdout, *output), client.Close())
	}
	return cmd
}

// notification returns a valid one.
func (f *notificationFlags) notification(stdin io.Reader) (tasks.Notification, error) {
	n := f.note(f.messageFlags)
	n.User, n.Title, n.Email, n.Phone = f.user, f.title, f.email, f.phone
	in := textInput{stdin: stdin}
	var err error
	if n.Body, err = in.read("--body", f.body); err != nil {
		return n, err
	}
	if n.Data, err = in.readData(f.data); err != nil {
		return n, err
	}
	if err := n.Validate(); err != nil {
		return n, &cli.UsageError{Err: err}
	}
	return n, nil
}

func (f *notificationFlags) send(ctx context.Context, producer *tasks.Producer, n tasks.Notification, stdout io.Writer, output cli.Output) error {
	opts := f.options(time.Now())
	if f.key != "" {
		opts = append(opts, tasks.IdempotencyKey(foldKey("notification", f.key, n.User)))
	}
	r, err := producer.SendNotification(ctx, n, opts...)
	if found, ok := problemsOf(err); ok {
		// A bad option, or a plan that goes on after the deadline: nothing was enqueued.
		if err := optionError(found); err != nil {
			return err
		}
		return &cli.UsageError{Err: err}
	}
	if err != nil {
		return err
	}
	if output == cli.JSON {
		return cli.WriteJSON(stdout, r)
	}
	return printReceipt(stdout, "", r)
}
