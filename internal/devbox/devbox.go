package devbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/inbox"
	"github.com/medicalink/postroom/internal/lifecycle"
	"github.com/medicalink/postroom/internal/mailer"
	"github.com/medicalink/postroom/internal/notifier/endpoint"
	"github.com/medicalink/postroom/internal/worker"
	"github.com/medicalink/postroom/monitor"
	"github.com/medicalink/postroom/realtime"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
	"github.com/medicalink/postroom/templates"
)

// Config says what differs from the defaults. Neither a Redis nor an SMTP server
// can be given: see the package's description.
type Config struct {
	// Addr is where the pages are served, on loopback. If its port is taken, one
	// of the next is used. Default 127.0.0.1:8080.
	Addr string
	// TemplatesDir is laid over the built-in templates and watched. Default: the
	// templates of the repository if Dir is its top, else none.
	TemplatesDir string
	// Dir is the working directory. Default ".".
	Dir string
	// Namespace is in front of every queue's name. Worker.Queues have it already.
	Namespace string
	// Worker configures the worker. Queues is required; From has a default here, and
	// Namespace is that above.
	Worker worker.Config
	// OnceTimeout bounds Once. Default 1 min: an in-process Redis on a machine
	// that is compiling needs a few seconds.
	OnceTimeout time.Duration
	// Out gets what people read: addresses and deliveries. Required.
	Out io.Writer
	// Log gets everything else.
	Log zerolog.Logger
}

const (
	defaultAddr        = "127.0.0.1:8080"
	defaultFrom        = "MedicaLink <no-reply@medicalink.example>"
	defaultOnceTimeout = time.Minute

	// stopMargin is what stopping may take beyond the worker's own timeout.
	stopMargin = 10 * time.Second
)

// builtinTemplates is where the repository keeps its templates.
var builtinTemplates = filepath.Join("templates", "builtin")

func (c Config) withDefaults() Config {
	c.Addr = cmp.Or(c.Addr, defaultAddr)
	c.Dir = cmp.Or(c.Dir, ".")
	c.Worker.From = cmp.Or(c.Worker.From, defaultFrom)
	c.Worker.Namespace = c.Namespace
	c.OnceTimeout = cmp.Or(c.OnceTimeout, defaultOnceTimeout)
	if c.TemplatesDir == "" {
		if info, err := os.Stat(filepath.Join(c.Dir, builtinTemplates)); err == nil && info.IsDir() {
			c.TemplatesDir = filepath.Join(c.Dir, builtinTemplates)
		}
	}
	return c
}

// firstEmail is what Run and Once send.
func firstEmail() tasks.Email {
	return tasks.Email{To: "Ada Lovelace <ada@example.com>", Template: "welcome", Data: map[string]any{"name": "Ada"}}
}

// Run starts everything, sends a first email and a first notification, prints the
// addresses to open and serves until ctx ends, which is no error. Everything that it started has ended
// when it returns.
func Run(ctx context.Context, cfg Config) (err error) {
	cfg = cfg.withDefaults()
	if err := monitor.CheckAddr(cfg.Addr); err != nil {
		return err
	}
	b := &box{cfg: cfg}
	defer func() { err = errors.Join(err, b.stop(ctx)) }()
	if err := b.start(ctx); err != nil {
		return unlessEnded(ctx, err)
	}
	site, err := b.serve(ctx)
	if err != nil {
		return unlessEnded(ctx, err)
	}
	if _, err := b.producer.SendEmail(ctx, firstEmail()); err != nil {
		return unlessEnded(ctx, fmt.Errorf("send the first email: %w", err))
	}
	if _, err := b.producer.SendNotification(ctx, firstNotification()); err != nil {
		return unlessEnded(ctx, fmt.Errorf("send the first notification: %w", err))
	}
	if _, err := io.WriteString(cfg.Out, b.greeting(site)); err != nil {
		return fmt.Errorf("print the addresses: %w", err)
	}
	first := b.firstDelivery(ctx)
	for {
		select {
		case m, ok := <-first:
			if ok {
				fmt.Fprintf(cfg.Out, "  %s\n", m)
			}
			first = nil
		case <-ctx.Done():
			fmt.Fprintln(cfg.Out, "\nStopping.")
			return nil
		case <-b.redis.died:
			return errors.New("redis-server ended while it was in use: was it killed?")
		case err := <-b.failed:
			return err
		case err := <-site.served:
			site.served <- err // stop reads it too
			return fmt.Errorf("serve the pages: %w", err)
		}
	}
}

// Once sends one email through the whole path, without the pages, and prints
// what arrived.
func Once(ctx context.Context, cfg Config) (err error) {
	cfg = cfg.withDefaults()
	b := &box{cfg: cfg}
	defer func() { err = errors.Join(err, b.stop(ctx)) }()
	ctx, cancel := context.WithTimeout(ctx, cfg.OnceTimeout)
	defer cancel()
	if err := b.start(ctx); err != nil {
		return err
	}
	receipt, err := b.producer.SendEmail(ctx, firstEmail())
	if err != nil {
		return fmt.Errorf("send the first email: %w", err)
	}
	select {
	case m, ok := <-b.firstDelivery(ctx):
		if !ok {
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("no email arrived within %v, though job %s is in queue %s: LOG_LEVEL=debug shows what the worker did",
					cfg.OnceTimeout, receipt.ID, receipt.Queue)
			}
			return ctx.Err()
		}
		fmt.Fprintln(cfg.Out, m)
		return nil
	case <-b.redis.died:
		return errors.New("redis-server ended while it was in use: was it killed?")
	}
}

// unlessEnded hides what fails because the user pressed Ctrl-C during the start.
func unlessEnded(ctx context.Context, err error) error {
	select {
	case <-ctx.Done():
		return nil
	default:
		return err
	}
}

// box is everything but the pages.
type box struct {
	cfg     Config
	cleanup lifecycle.Stack

	redis     *embeddedRedis
	changes   *changes
	store     *store
	catcher   *catcher
	receiver  *receiver
	templates *liveTemplates
	rdb       *rediskit.Client // of the producer and the pages
	runner    *runner
	producer  *tasks.Producer
	failed    chan error // what a worker could not be replaced for
}

func (b *box) start(ctx context.Context) error {
	log := b.cfg.Log
	var err error
	if b.redis, err = startRedis(ctx, log); err != nil {
		return err
	}
	b.cleanup.Add("Redis", func(context.Context) error { return b.redis.stop() })

	b.changes = newChanges()
	b.store = &store{changed: func() { b.changes.note(func(v *versions) { v.Inbox++ }) }}
	if b.catcher, err = startCatcher(ctx, b.store, log); err != nil {
		return err
	}
	b.cleanup.Add("mail catcher", b.catcher.stop)

	b.receiver, err = startReceiver(ctx, func() { b.changes.note(func(v *versions) { v.Arrivals++ }) }, log)
	if err != nil {
		return err
	}
	b.cleanup.Add("receiver of webhooks", b.receiver.stop)

	b.templates, err = loadTemplates(b.cfg.TemplatesDir, func() { b.changes.note(func(v *versions) { v.Templates++ }) }, log)
	if err != nil {
		return err
	}

	providers, err := mailer.ParseProviders(b.catcher.url())
	if err != nil {
		return err
	}
	mail, err := mailer.New(mailer.Config{Providers: providers})
	if err != nil {
		return fmt.Errorf("set up the mailer: %w", err)
	}
	b.cleanup.Add("mailer", mail.Close)

	connect := rediskit.Config{Addrs: []string{b.redis.addr}, ClientName: "postroom-dev"}
	b.runner = &runner{cfg: b.cfg.Worker, redis: connect, mail: mail, channels: b.receiver.channels, log: log}
	set, _ := b.templates.current()
	if err := b.runner.start(ctx, set); err != nil {
		return err
	}
	b.cleanup.Add("worker", b.runner.stop)

	if b.rdb, err = rediskit.Open(ctx, connect); err != nil {
		return err
	}
	b.cleanup.Add("Redis connection", func(context.Context) error { return b.rdb.Close() })
	if err := b.receiver.register(ctx, endpoint.NewRegistry(b.rdb, b.cfg.Namespace)); err != nil {
		return err
	}
	b.producer, err = tasks.NewProducer(b.rdb, tasks.FromService("worker-dev"), tasks.Namespace(b.cfg.Namespace))
	return err
}

// serve adds the pages, and the templates' following of the editor.
func (b *box) serve(ctx context.Context) (*webServer, error) {
	mon, err := monitor.New(b.rdb, monitor.Config{Checks: []monitor.Check{{Name: "worker", Run: b.runner.ready}}})
	if err != nil {
		return nil, err
	}
	b.cleanup.Add("dashboard", func(context.Context) error { return mon.Close() })

	live, err := realtime.New(b.rdb, realtime.Config{Namespace: b.cfg.Namespace, Authenticate: asDemoUser})
	if err != nil {
		return nil, err
	}
	// It is closed after the pages, whose end ends its connections at once.
	b.cleanup.Add("notifications", live.Close)
	if err := live.Start(ctx); err != nil {
		return nil, err
	}

	site, err := newWeb(&mails{b.store}, &preview{templates: b.templates, send: b.producer.SendEmail},
		&notifications{templates: b.templates, receiver: b.receiver, send: b.producer.SendNotification, realtime: live}, b.changes, b.links(), mon)
	if err != nil {
		return nil, err
	}
	handler, err := site.handler()
	if err != nil {
		return nil, err
	}
	ln, err := listenWeb(ctx, b.cfg.Addr)
	if err != nil {
		return nil, err
	}
	server := serveWeb(ln, handler, b.cfg.Log)
	b.cleanup.Add("pages", server.stop)

	b.failed = make(chan error, 1)
	if b.templates.dir != "" {
		unwatch, err := b.templates.watch(func(set *templates.Set) {
			if err := b.runner.start(ctx, set); err != nil && ctx.Err() == nil {
				select {
				case b.failed <- fmt.Errorf("restart the worker with the new templates: %w", err):
				default: // one is reason enough to end
				}
			}
		})
		if err != nil {
			return nil, err
		}
		b.cleanup.Add("watching the templates", unwatch)
	}
	return server, nil
}

func (b *box) stop(ctx context.Context) error {
	timeout := cmp.Or(b.cfg.Worker.ShutdownTimeout, 30*time.Second) + stopMargin
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	return b.cleanup.Stop(ctx)
}

// firstDelivery sends one line about the first message that arrives, or is
// closed when ctx ends before.
func (b *box) firstDelivery(ctx context.Context) <-chan string {
	out := make(chan string, 1)
	go func() {
		defer close(out)
		for {
			_, next := b.changes.state()
			if m, ok := b.store.latest(); ok {
				out <- fmt.Sprintf("delivered: %q to %s", m.Subject, strings.Join(m.envelope.To, ", "))
				return
			}
			select {
			case <-next:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func (b *box) links() links {
	env := "REDIS_URL=" + b.redis.url()
	if b.cfg.Namespace != "" {
		env += " QUEUE_NAMESPACE=" + b.cfg.Namespace
	}
	kind := "a redis-server of its own"
	if b.redis.died == nil {
		kind = "in-process: no redis-server on PATH"
	}
	note := command{
		"One notification, to both browsers of the notification page",
		env + ` go run ./cmd/enqueue notification --user ` + demoUser + ` --title "Your results are ready" --body "They are in your record."`,
	}
	_, served := b.cfg.Worker.Queues[tasks.NotificationQueue(b.cfg.Namespace, tasks.Default)]
	return links{
		Redis: b.redis.url(), RedisKind: kind, SMTP: b.catcher.url(),
		Notification: note, NotServed: !served, Kept: inbox.DefaultMaxEntries,
		Commands: []command{
			{"One email", env + ` go run ./cmd/enqueue email --to "Ada Lovelace <ada@example.com>" --template welcome --data '{"name":"Ada"}'`},
			{"One of your own words, in five seconds", env + ` go run ./cmd/enqueue email --to grace@example.com --subject "Hello" --body "Hello Grace" --delay 5s`},
			{"One for each line of a file", env + ` go run ./cmd/enqueue bulk testdata/recipients.csv --template appointment-reminder`},
			note,
		},
	}
}

func (b *box) greeting(site *webServer) string {
	base := "http://" + site.addr
	l := b.links()
	var s strings.Builder
	line := func(name, address, note string) {
		if note != "" {
			address = fmt.Sprintf("%-40s %s", address, note)
		}
		fmt.Fprintf(&s, "  %-13s  %s\n", name, address)
	}
	s.WriteString("\npostroom is running. No mail leaves this machine.\n\n")
	_, want, _ := net.SplitHostPort(b.cfg.Addr)
	if _, got, _ := net.SplitHostPort(site.addr); got != want && want != "0" {
		fmt.Fprintf(&s, "  %s is taken, so the pages are on %s.\n\n", b.cfg.Addr, site.addr)
	}
	watched := ""
	if b.templates.dir != "" {
		watched = "live from " + b.templates.dir
	}
	line("Start", base+"/", "")
	line("Inbox", base+"/inbox/", "")
	line("Notifications", base+"/notifications/", "two browsers of the user "+demoUser)
	line("Templates", base+"/templates/", watched)
	line("Dashboard", base+"/monitor/", "")
	line("Health", base+"/health/redis", "")
	line("Redis", l.Redis, l.RedisKind)
	line("SMTP", l.SMTP, "everything sent here lands in the inbox")
	s.WriteString("\nFrom a second terminal:\n\n")
	for _, c := range l.Commands {
		s.WriteString("  " + c.Line + "\n")
	}
	s.WriteString("\nCtrl-C ends everything.\n\n")
	return s.String()
}
