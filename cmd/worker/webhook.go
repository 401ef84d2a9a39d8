package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/medicalink/postroom/config"
	"github.com/medicalink/postroom/internal/cli"
	"github.com/medicalink/postroom/internal/notifier/endpoint"
	"github.com/medicalink/postroom/internal/notifier/webhook"
	"github.com/medicalink/postroom/rediskit"
)

// registryTimeout bounds a command that reads or changes the registry.
const registryTimeout = 30 * time.Second

func newWebhookCommand(p cli.Process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "webhook",
		Short: "Register where webhooks go, and send them again",
		Long: `webhook keeps the registry of endpoints. Jobs name an endpoint by its id; its URL
and its signing keys are secrets that stay in Redis. Workers see a change within
5 seconds.

Webhooks are signed as Standard Webhooks has it (standardwebhooks.com). "add" and
"rotate" show the key that a receiver verifies with, once.`,
	}
	r := registrar{p: p, noun: "webhook", kinds: []endpoint.Kind{endpoint.Standard}}
	cmd.AddCommand(newWebhookAddCommand(r), r.ls(), r.show(), newRotateCommand(r), r.disable(), r.enable(), r.rm(), newReplayCommand(r))
	return cmd
}

func newChatCommand(p cli.Process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "chat",
		Short: "Register where chat messages go",
		Long: `chat keeps the registry of chats. Jobs name a chat by its id; its URL is a secret
that stays in Redis. Workers see a change within 5 seconds.`,
	}
	r := registrar{p: p, noun: "chat", kinds: endpoint.ChatKinds()}
	cmd.AddCommand(newChatAddCommand(r), r.ls(), r.rm())
	return cmd
}

// registrar makes the commands that webhooks and chats have in common. They share a
// registry, and each sees its own kinds of endpoints.
type registrar struct {
	p     cli.Process
	noun  string
	kinds []endpoint.Kind
}

// open connects to Redis. close is to be called once all is done.
func (r registrar) open(ctx context.Context) (cfg config.Config, rdb *rediskit.Client, registry *endpoint.Registry, err error) {
	if cfg, err = config.Load(r.p.Environ, r.p.Dir); err != nil {
		return cfg, nil, nil, &cli.UsageError{Err: err}
	}
	if rdb, err = rediskit.Open(ctx, cfg.Redis); err != nil {
		return cfg, nil, nil, err
	}
	return cfg, rdb, endpoint.NewRegistry(rdb, cfg.Namespace), nil
}

// with opens the registry for f, within a time.
func (r registrar) with(ctx context.Context, f func(ctx context.Context, registry *endpoint.Registry) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, registryTimeout)
	defer cancel()
	_, rdb, registry, err := r.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rdb.Close()) }()
	return f(ctx, registry)
}

// get returns one of the endpoints that these commands are about.
func (r registrar) get(ctx context.Context, registry *endpoint.Registry, id string) (endpoint.Endpoint, error) {
	e, err := registry.Get(ctx, id)
	switch {
	case errors.Is(err, endpoint.ErrNotFound):
		return e, fmt.Errorf("no %s is called %q: see worker %s ls", r.noun, id, r.noun)
	case err != nil:
		return e, err
	case !slices.Contains(r.kinds, e.Kind):
		other := "webhook"
		if r.noun == other {
			other = "chat"
		}
		return e, fmt.Errorf("%s is a %s, not a %s", id, other, r.noun)
	}
	return e, nil
}

// place are the flags that say where an endpoint is.
type place struct {
	url         string
	allow       []string
	concurrency int
}

func (f *place) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.url, "url", "", "where messages go, https on port 443; - reads it from standard input, where nobody else sees it")
	cmd.Flags().StringArrayVar(&f.allow, "allow-private", nil, "private addresses that the URL may lead to, such as 10.1.2.0/24; there http and any port are allowed too (repeatable)")
	cmd.Flags().IntVar(&f.concurrency, "concurrency", 0, fmt.Sprintf("how many messages each worker sends it at once (default %d)", endpoint.DefaultConcurrency))
	_ = cmd.MarkFlagRequired("url") // it fails only for a flag that does not exist
}

// endpoint returns what the flags describe, not validated.
func (f *place) endpoint(stdin io.Reader, id string) (endpoint.Endpoint, error) {
	e := endpoint.Endpoint{ID: id, URL: rediskit.Secret(f.url), Concurrency: f.concurrency}
	if f.url == "-" {
		line, err := bufio.NewReader(io.LimitReader(stdin, 64<<10)).ReadString('\n')
		if err != nil && err != io.EOF {
			return e, fmt.Errorf("read the URL: %w", err)
		}
		e.URL = rediskit.Secret(strings.TrimSpace(line))
	}
	for _, text := range f.allow {
		prefix, err := netip.ParsePrefix(text)
		if addr, addrErr := netip.ParseAddr(text); addrErr == nil {
			prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil {
			return e, cli.Usagef("--allow-private %q: want an address or a prefix such as 10.1.2.0/24 or fd00:1::/64", text)
		}
		e.Allow = append(e.Allow, prefix.Masked())
	}
	return e, nil
}

// add registers e and prints what has become of it.
func (r registrar) add(ctx context.Context, e endpoint.Endpoint, output cli.Output) error {
	if err := e.Validate(); err != nil {
		return &cli.UsageError{Err: err}
	}
	return r.with(ctx, func(ctx context.Context, registry *endpoint.Registry) error {
		added, err := registry.Add(ctx, e)
		if errors.Is(err, endpoint.ErrExists) {
			return fmt.Errorf("%s exists already: choose another id, or remove that one first", e.ID)
		}
		if err != nil {
			return err
		}
		return r.report(added, output, "added", len(added.Keys) > 0)
	})
}

// report prints that something was done to e; with its newest key if it is new.
func (r registrar) report(e endpoint.Endpoint, output cli.Output, done string, fresh bool) error {
	v := viewOf(e)
	if fresh {
		v.Secret = string(e.Keys[0].Secret)
		if v.Keys[0].Public != "" {
			v.Secret = "" // nobody but the workers needs the private half
		}
	}
	if output == cli.JSON {
		return cli.WriteJSON(r.p.Stdout, v)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s %s %s (%s)\n", done, r.noun, e.ID, v.Origin)
	switch {
	case !fresh:
	case v.Secret != "":
		fmt.Fprintf(&text, "secret: %s\nThis is shown only now: hand it to the receiver.\n", v.Secret)
	default:
		fmt.Fprintf(&text, "public key: %s\nHand it to the receiver; \"worker webhook show\" shows it again.\n", v.Keys[0].Public)
	}
	if fresh {
		for _, k := range v.Keys[1:] {
			fmt.Fprintf(&text, "an older key goes on signing until %s\n", k.Retires.Format(time.RFC3339))
		}
	}
	return write(r.p.Stdout, text.String())
}

func write(w io.Writer, text string) error {
	if _, err := io.WriteString(w, text); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

func newWebhookAddCommand(r registrar) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add ID --url URL",
		Short: "Register an endpoint, and show its key",
		Example: `  worker webhook add lab --url https://lab.example.com/hooks
  worker webhook add billing --url - --ed25519 < url.txt
  worker webhook add intranet --url http://10.1.2.3:8080/hooks --allow-private 10.1.2.0/24`,
		Args: cobra.ExactArgs(1),
	}
	var at place
	at.add(cmd)
	asymmetric := cmd.Flags().Bool("ed25519", false, "sign with a key whose public half is all that the receiver has (v1a), instead of a shared secret (v1)")
	output := cli.AddOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		e, err := at.endpoint(r.p.Stdin, args[0])
		if err != nil {
			return err
		}
		secret, err := newKey(*asymmetric)
		if err != nil {
			return err
		}
		e.Kind, e.Keys = endpoint.Standard, []endpoint.Key{{Secret: secret}}
		return r.add(cmd.Context(), e, *output)
	}
	return cmd
}

func newKey(asymmetric bool) (rediskit.Secret, error) {
	if asymmetric {
		return webhook.NewPrivateKey()
	}
	return webhook.NewSecret(), nil
}

func newChatAddCommand(r registrar) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add ID --kind KIND --url URL",
		Short: "Register a chat",
		Example: `  worker chat add on-call --kind slack --url - < url.txt
  worker chat add ops --kind json --url https://chat.example.com/hooks/ops`,
		Args: cobra.ExactArgs(1),
	}
	var at place
	at.add(cmd)
	names := make([]string, len(r.kinds))
	for i, k := range r.kinds {
		names[i] = string(k)
	}
	kind := cmd.Flags().String("kind", "", "what the URL understands: "+strings.Join(names, ", "))
	_ = cmd.MarkFlagRequired("kind") // it fails only for a flag that does not exist
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
	output := cli.AddOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(names, *kind) {
			return cli.Usagef("--kind %q: want one of %s", *kind, strings.Join(names, ", "))
		}
		e, err := at.endpoint(r.p.Stdin, args[0])
		if err != nil {
			return err
		}
		e.Kind = endpoint.Kind(*kind)
		return r.add(cmd.Context(), e, *output)
	}
	return cmd
}

func newRotateCommand(r registrar) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate ID",
		Short: "Make a new key, and show it",
		Long: `rotate makes a new key of the same kind. Until the grace is over, messages carry a
signature by the old key as well, so that the receiver can change keys when it
likes. After a key was stolen, use --grace 0: the old key ends at once, and
messages are refused until the receiver has the new one.`,
		Args: cobra.ExactArgs(1),
	}
	grace := cmd.Flags().Duration("grace", 24*time.Hour, "how long older keys go on signing, at most 720h")
	output := cli.AddOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *grace < 0 || *grace > endpoint.MaxGrace {
			return cli.Usagef("--grace %s: want 0 to %s", *grace, endpoint.MaxGrace)
		}
		return r.with(cmd.Context(), func(ctx context.Context, registry *endpoint.Registry) error {
			e, err := r.get(ctx, registry, args[0])
			if err != nil {
				return err
			}
			secret, err := newKey(len(e.Keys) > 0 && webhook.PublicKey(e.Keys[0].Secret) != "")
			if err != nil {
				return err
			}
			if e, err = registry.RotateKey(ctx, e.ID, secret, *grace); err != nil {
				return err
			}
			return r.report(e, *output, "new key for", true)
		})
	}
	return cmd
}

func (r registrar) ls() *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Short: "List the " + r.noun + "s", Args: cobra.NoArgs}
	output := cli.AddOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return r.with(cmd.Context(), func(ctx context.Context, registry *endpoint.Registry) error {
			all, err := registry.List(ctx)
			if err != nil {
				return err
			}
			views := []endpointView{}
			for _, e := range all {
				if slices.Contains(r.kinds, e.Kind) {
					views = append(views, viewOf(e))
				}
			}
			if *output == cli.JSON {
				return cli.WriteJSON(r.p.Stdout, views)
			}
			return writeViews(r.p.Stdout, views)
		})
	}
	return cmd
}

func (r registrar) show() *cobra.Command {
	cmd := &cobra.Command{Use: "show ID", Short: "Show one " + r.noun + ", without its secrets", Args: cobra.ExactArgs(1)}
	output := cli.AddOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return r.with(cmd.Context(), func(ctx context.Context, registry *endpoint.Registry) error {
			e, err := r.get(ctx, registry, args[0])
			if err != nil {
				return err
			}
			if *output == cli.JSON {
				return cli.WriteJSON(r.p.Stdout, viewOf(e))
			}
			return viewOf(e).write(r.p.Stdout)
		})
	}
	return cmd
}

func (r registrar) disable() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "disable ID",
		Short: "Send it nothing until it is enabled",
		Long: `disable ends sending to an endpoint. Messages for it fail at once; they are in its
log, and "replay --failed-only" sends them when it is enabled again.`,
		Args: cobra.ExactArgs(1),
	}
	reason := cmd.Flags().String("reason", "by an operator", "why, for those who find it disabled")
	return r.change(cmd, "disabled", func(ctx context.Context, registry *endpoint.Registry, id string) error {
		return registry.Disable(ctx, id, *reason)
	})
}

func (r registrar) enable() *cobra.Command {
	cmd := &cobra.Command{Use: "enable ID", Short: "Send to it again", Args: cobra.ExactArgs(1)}
	return r.change(cmd, "enabled", func(ctx context.Context, registry *endpoint.Registry, id string) error {
		return registry.Enable(ctx, id)
	})
}

// change makes a command that changes one endpoint and says how it is then.
func (r registrar) change(cmd *cobra.Command, done string, f func(ctx context.Context, registry *endpoint.Registry, id string) error) *cobra.Command {
	output := cli.AddOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return r.with(cmd.Context(), func(ctx context.Context, registry *endpoint.Registry) error {
			e, err := r.get(ctx, registry, args[0])
			if err != nil {
				return err
			}
			if err := f(ctx, registry, e.ID); err != nil {
				return err
			}
			if e, err = registry.Get(ctx, e.ID); err != nil {
				return err
			}
			return r.report(e, *output, done, false)
		})
	}
	return cmd
}

func (r registrar) rm() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rm ID",
		Short: "Remove it from the registry, with its log",
		Long: `rm removes the ` + r.noun + ` with everything that Redis has of it. Messages that are on
their way to it fail.`,
		Args: cobra.ExactArgs(1),
	}
	output := cli.AddOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		ctx, cancel := context.WithTimeout(cmd.Context(), registryTimeout)
		defer cancel()
		cfg, rdb, registry, err := r.open(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, rdb.Close()) }()
		e, err := r.get(ctx, registry, args[0])
		if err != nil {
			return err
		}
		if err := registry.Remove(ctx, e.ID); err != nil {
			return err
		}
		if err := webhook.NewLog(rdb, cfg.Namespace).Delete(ctx, e.ID); err != nil {
			return err
		}
		return r.report(e, *output, "removed", false)
	}
	return cmd
}

// endpointView is what people and programs see of an endpoint.
type endpointView struct {
	ID           string             `json:"id"`
	Kind         endpoint.Kind      `json:"kind"`
	Origin       string             `json:"origin"` // the rest of the URL is secret
	AllowPrivate []netip.Prefix     `json:"allow_private,omitempty"`
	Concurrency  int                `json:"concurrency"`
	Created      time.Time          `json:"created"`
	Disabled     *endpoint.Disabled `json:"disabled,omitempty"`
	FailingSince time.Time          `json:"failing_since,omitzero"`
	Keys         []keyView          `json:"keys,omitempty"`
	// Secret is a key that was made by this call, which nothing shows again.
	Secret string `json:"secret,omitempty"`
}

type keyView struct {
	Scheme  string    `json:"scheme"`
	Public  string    `json:"public,omitempty"`
	Created time.Time `json:"created"`
	Retires time.Time `json:"retires,omitzero"`
}

func viewOf(e endpoint.Endpoint) endpointView {
	v := endpointView{
		ID: e.ID, Kind: e.Kind, Origin: e.Origin(), AllowPrivate: e.Allow, Concurrency: e.Concurrency,
		Created: e.Created, Disabled: e.Disabled, FailingSince: e.FailingSince,
	}
	if v.Concurrency == 0 {
		v.Concurrency = endpoint.DefaultConcurrency
	}
	for _, k := range e.Live(time.Now()) {
		key := keyView{Scheme: "v1", Public: webhook.PublicKey(k.Secret), Created: k.Created, Retires: k.Retires}
		if key.Public != "" {
			key.Scheme = "v1a"
		}
		v.Keys = append(v.Keys, key)
	}
	return v
}

// state says in a few words how the endpoint is.
func (v endpointView) state() string {
	switch {
	case v.Disabled != nil:
		return fmt.Sprintf("disabled %s: %s", v.Disabled.At.Format(time.RFC3339), v.Disabled.Reason)
	case !v.FailingSince.IsZero():
		return "failing since " + v.FailingSince.Format(time.RFC3339)
	}
	return "ok"
}

func writeViews(w io.Writer, views []endpointView) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "ID\tKIND\tORIGIN\tCREATED\tSTATE\n")
	for _, v := range views {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", v.ID, v.Kind, v.Origin, v.Created.Format(time.RFC3339), v.state())
	}
	return flush(table)
}

func (v endpointView) write(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "id\t%s\nkind\t%s\norigin\t%s\ncreated\t%s\nstate\t%s\nconcurrency\t%d\n",
		v.ID, v.Kind, v.Origin, v.Created.Format(time.RFC3339), v.state(), v.Concurrency)
	for _, p := range v.AllowPrivate {
		fmt.Fprintf(table, "allow private\t%s\n", p)
	}
	for _, k := range v.Keys {
		fmt.Fprintf(table, "key\t%s, since %s", k.Scheme, k.Created.Format(time.RFC3339))
		if !k.Retires.IsZero() {
			fmt.Fprintf(table, ", until %s", k.Retires.Format(time.RFC3339))
		}
		if k.Public != "" {
			fmt.Fprintf(table, ", %s", k.Public)
		}
		fmt.Fprintln(table)
	}
	return flush(table)
}

func flush(table *tabwriter.Writer) error {
	if err := table.Flush(); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}
