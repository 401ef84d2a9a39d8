package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Exit codes of every postroom binary.
const (
	ExitDone   = 0
	ExitFailed = 1
	ExitUsage  = 2
)

// Process is what the operating system hands to a program. Commands read these fields instead of the
// os package, so that a test can hand them others.
type Process struct {
	Args    []string // without the program's name
	Environ []string // "NAME=value", as os.Environ
	Dir     string   // working directory, where a .env file is looked for
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
}

// UsageError is a command line that cannot be carried out as written. It ends the program with
// [ExitUsage]; nothing has been attempted when it is returned. A setting that cannot be used counts too.
type UsageError struct {
	Err error
}

func (e *UsageError) Error() string { return e.Err.Error() }

// Unwrap returns the problem itself.
func (e *UsageError) Unwrap() error { return e.Err }

// Usagef returns a [UsageError] with a formatted message; %w works as in fmt.Errorf.
func Usagef(format string, args ...any) error {
	return &UsageError{Err: fmt.Errorf(format, args...)}
}

// Main runs a binary's commands with the real process and returns its exit code. build gets the
// process and returns the root command, whose name prefixes the error line.
func Main(build func(Process) *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, func() {
		stop() // until then a further signal would be swallowed
		if term.IsTerminal(int(os.Stderr.Fd())) {
			fmt.Fprintf(os.Stderr, "\n%v: finishing what has begun; once more quits at once\n", context.Cause(ctx))
		}
	})()

	// A working directory that is gone only means that there is no .env in it.
	dir, err := os.Getwd()
	if err != nil {
		dir = "."
	}
	p := Process{
		Args: os.Args[1:], Environ: os.Environ(), Dir: dir,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	}
	return Run(ctx, p, build(p))
}

// Run executes root with p's arguments and streams. It prints the error, if any, once on p.Stderr and
// returns the exit code.
func Run(ctx context.Context, p Process, root *cobra.Command) int {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetArgs(p.Args)
	root.SetIn(p.Stdin)
	root.SetOut(p.Stdout)
	root.SetErr(p.Stderr)

	// Whatever cobra reports before a command has begun is about the command line: unknown commands
	// and flags, wrong numbers of arguments, required and exclusive flags.
	begun := false
	walk(root, func(c *cobra.Command) {
		if run := c.RunE; run != nil {
			c.RunE = func(cmd *cobra.Command, args []string) error {
				begun = true
				return run(cmd, args)
			}
		}
	})

	// cobra prints help and reports success when a command is missing; a service unit that lost its
	// arguments should not look like one that did its work.
	var incomplete bool
	help := root.HelpFunc()
	root.SetHelpFunc(func(c *cobra.Command, args []string) {
		if incomplete = !helpWanted(root, c); !incomplete {
			help(c, args)
		}
	})

	cmd, err := root.ExecuteContextC(ctx)
	if incomplete && err == nil {
		err = incompleteError(cmd)
	}
	if err == nil {
		return ExitDone
	}
	report(ctx, p.Stderr, root, err)
	if !begun {
		fmt.Fprintf(p.Stderr, "Run '%s --help' for usage.\n", cmd.CommandPath())
		return ExitUsage
	}
	if _, ok := errors.AsType[*UsageError](err); ok {
		return ExitUsage
	}
	return ExitFailed
}

func walk(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, sub := range c.Commands() {
		walk(sub, visit)
	}
}

func helpWanted(root, c *cobra.Command) bool {
	if f := c.Flags().Lookup("help"); f != nil && f.Changed {
		return true
	}
	for _, sub := range root.Commands() {
		if sub.Name() == "help" && sub.CalledAs() != "" {
			return true
		}
	}
	return false
}

// incompleteError describes a call of a command that only groups others.
func incompleteError(c *cobra.Command) error {
	if args := c.Flags().Args(); len(args) > 0 {
		msg := fmt.Sprintf("unknown command %q for %q", args[0], c.CommandPath())
		c.SuggestionsMinimumDistance = 2 // cobra's own default, set only where it suggests by itself
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			msg += fmt.Sprintf(" (did you mean %s?)", strings.Join(near, " or "))
		}
		return errors.New(msg)
	}
	var names []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" && sub.Name() != "completion" {
			names = append(names, sub.Name())
		}
	}
	return fmt.Errorf("%s needs a command: %s", c.CommandPath(), strings.Join(names, ", "))
}

func report(ctx context.Context, stderr io.Writer, root *cobra.Command, err error) {
	text := strings.TrimRight(err.Error(), "\n")
	// "context canceled" says nothing to the person who pressed Ctrl-C.
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
		text = strings.ReplaceAll(text, context.Canceled.Error(), cause.Error())
	}
	fmt.Fprintf(stderr, "%s: %s\n", root.Name(), text)
}
