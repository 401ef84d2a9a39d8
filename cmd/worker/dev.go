package main

import (
	"cmp"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/medicalink/postroom/config"
	"github.com/medicalink/postroom/internal/cli"
	"github.com/medicalink/postroom/internal/devbox"
	"github.com/medicalink/postroom/internal/worker"
	"github.com/medicalink/postroom/monitor"
)

// devShutdownTimeout is how long Ctrl-C waits for running jobs at most. Their
// relay is this process, so they need no provider's minutes.
const devShutdownTimeout = 5 * time.Second

func newDevCommand(p cli.Process) *cobra.Command {
	var once bool
	var addr string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run everything in one process, with a mail catcher, for development",
		Long: `dev needs nothing installed and nothing configured. It runs a Redis of its own
(redis-server if that is on PATH, else one inside this process), a worker, an
SMTP server that keeps what it gets, and pages to look at it all: an inbox, two
browsers that receive the notifications of the user demo, a preview of the
templates that follows your editor, the dashboard. It sends a first email and a
first notification, and prints every address to open.

Nothing leaves this machine: settings of Redis, SMTP, SMS and Web Push are not used
here. Webhooks, chats and SMS go to receivers of its own, the endpoint dev and the
chat dev-chat, whose page shows them with their signatures verified; there is no
push. TEMPLATES_DIR, MONITOR_ADDR, MAIL_FROM, QUEUES, QUEUE_NAMESPACE,
APP_URL and ACTION_HOSTS are used. Run at the top of the repository, it shows the
templates in templates/builtin live.

With --once it sends that email through the whole path, prints its subject and
recipient, and ends.`,
		Example: "  worker dev\n  worker dev --once",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(p.Environ, p.Dir)
			if err != nil {
				return &cli.UsageError{Err: err}
			}
			box := devbox.Config{
				Addr:         cmp.Or(addr, cfg.MonitorAddr),
				TemplatesDir: cfg.TemplatesDir,
				Dir:          p.Dir,
				Namespace:    cfg.Namespace,
				Worker: worker.Config{
					Queues:          cfg.Queues,
					StrictPriority:  cfg.StrictPriority,
					Concurrency:     cfg.Concurrency,
					ShutdownTimeout: devShutdownTimeout,
					From:            cfg.MailFrom,
					AppURL:          cfg.AppURL,
					ActionHosts:     cfg.ActionHosts,
				},
				Out: p.Stdout,
			}
			if once {
				box.Log = devLogger(cfg, p.Stderr, zerolog.WarnLevel)
				return devbox.Once(cmd.Context(), box)
			}
			if err := monitor.CheckAddr(box.Addr); err != nil {
				return &cli.UsageError{Err: err}
			}
			box.Log = devLogger(cfg, p.Stderr, cfg.LogLevel)
			if unused := unusedSettings(cfg); unused != "" {
				box.Log.Warn().Msg(unused + " not used: worker dev has a Redis and receivers of its own")
			}
			return devbox.Run(cmd.Context(), box)
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "send one email through the whole path, print it and exit")
	cmd.Flags().StringVar(&addr, "addr", "", "address of the pages, on loopback (default MONITOR_ADDR; the next free port if it is taken)")
	return cmd
}

// devLogger writes for people, and no less than level unless LOG_LEVEL is set.
func devLogger(cfg config.Config, stderr io.Writer, level zerolog.Level) zerolog.Logger {
	if isSet(cfg, "LOG_LEVEL") {
		level = cfg.LogLevel
	}
	if !isSet(cfg, "LOG_FORMAT") {
		file, ok := stderr.(*os.File)
		terminal := ok && term.IsTerminal(int(file.Fd()))
		stderr = zerolog.ConsoleWriter{Out: stderr, TimeFormat: time.TimeOnly, NoColor: !terminal}
	}
	return zerolog.New(stderr).Level(level).With().Timestamp().Logger()
}

func isSet(cfg config.Config, name string) bool {
	return slices.ContainsFunc(cfg.Settings(), func(s config.Setting) bool {
		return s.Name == name && s.Source != config.SourceDefault
	})
}

// unusedSettings names what is set and has no effect here, as the beginning of a
// sentence, or is empty.
func unusedSettings(cfg config.Config) string {
	var names []string
	for _, s := range cfg.Settings() {
		if s.Source == config.SourceDefault {
			continue
		}
		for _, prefix := range []string{"REDIS_", "CACHE_REDIS_", "SMTP_", "DKIM_", "SMS_", "VAPID_"} {
			if strings.HasPrefix(s.Name, prefix) {
				names = append(names, s.Name)
			}
		}
	}
	switch len(names) {
	case 0:
		return ""
	case 1:
		return names[0] + " is"
	default:
		return strings.Join(names, ", ") + " are"
	}
}
