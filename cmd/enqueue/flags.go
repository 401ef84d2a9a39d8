package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/medicalink/postroom/internal/cli"
	"github.com/medicalink/postroom/tasks"
	"github.com/medicalink/postroom/templates"
)

// choice is a flag whose value is one of a few words.
type choice struct {
	value   string
	allowed []string
}

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return strings.Join(c.allowed, "|") }

func (c *choice) Set(s string) error {
	if !slices.Contains(c.allowed, s) {
		return fmt.Errorf("must be one of %s", strings.Join(c.allowed, ", "))
	}
	c.value = s
	return nil
}

// addChoice adds a flag of that kind, with completion.
func addChoice(cmd *cobra.Command, name, usage, value string, allowed ...string) *choice {
	c := &choice{value: value, allowed: allowed}
	cmd.Flags().Var(c, name, usage)
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(allowed, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// moment is a flag whose value is a point in time.
type moment struct{ time.Time }

func (m *moment) Type() string { return "time" }

func (m *moment) String() string {
	if m.IsZero() {
		return ""
	}
	return m.Format(time.RFC3339)
}

func (m *moment) Set(s string) error {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return errors.New("must look like 2027-01-31T09:00:00+01:00 or 2027-01-31T08:00:00Z")
	}
	m.Time = t
	return nil
}

// messageFlags are the flags about what is sent that all commands share.
type messageFlags struct {
	template, locale string
	tags             []string
	class            *choice
}

// addMessageFlags adds them; as tells, when the shell asks for templates, which ones fit.
func addMessageFlags(cmd *cobra.Command, p cli.Process, as func() medium) *messageFlags {
	var m messageFlags
	f := cmd.Flags()
	f.StringVarP(&m.template, "template", "t", "", "template `name`")
	f.StringVar(&m.locale, "locale", "", "language of the message, such as pt-BR (default: the "+as().localeDefault+")")
	f.StringArrayVar(&m.tags, "tag", nil, "`word` to group messages by; repeatable")
	m.class = addChoice(cmd, "class", "how the message is treated", string(tasks.ClassTransactional),
		string(tasks.ClassOTP), string(tasks.ClassClinical), string(tasks.ClassTransactional), string(tasks.ClassBulk))
	_ = cmd.RegisterFlagCompletionFunc("template", completeTemplates(p, as)) // see addChoice
	return &m
}

// mailFlags are the flags about emails that their commands share.
type mailFlags struct {
	from, replyTo, unsubscribe string
	headers                    []string
}

var mailFlagNames = []string{"from", "reply-to", "header", "list-unsubscribe"}

func addMailFlags(cmd *cobra.Command) *mailFlags {
	var m mailFlags
	f := cmd.Flags()
	f.StringVar(&m.from, "from", "", "sender `address` (default: the workers' MAIL_FROM)")
	f.StringVar(&m.replyTo, "reply-to", "", "`address` that replies go to")
	f.StringArrayVar(&m.headers, "header", nil, "further header `field`, such as 'X-Campaign: spring'; repeatable")
	f.StringVar(&m.unsubscribe, "list-unsubscribe", "", "`URL` of the List-Unsubscribe header; emails of class bulk require one")
	return &m
}

// email returns the message as far as the flags describe it.
func (m *mailFlags) email(shared *messageFlags) (tasks.Email, error) {
	e := tasks.Email{
		Template: shared.template, From: m.from, ReplyTo: m.replyTo, Locale: shared.locale,
		ListUnsubscribe: m.unsubscribe, Tags: shared.tags, Class: tasks.Class(shared.class.value),
	}
	for _, h := range m.headers {
		name, value, ok := strings.Cut(h, ":")
		name = strings.TrimSpace(name)
		if !ok || name == "" {
			return e, cli.Usagef("--header must look like 'Name: value'")
		}
		if e.Headers == nil {
			e.Headers = make(map[string]string)
		}
		if _, twice := e.Headers[name]; twice {
			return e, cli.Usagef("--header %s is given twice", name)
		}
		e.Headers[name] = strings.TrimSpace(value)
	}
	return e, nil
}

// jobFlags are the flags about when and how a job runs; all commands share them.
type jobFlags struct {
	delay, timeout, retention, deadline time.Duration
	at                                  moment
	priority                            *choice
	queue, key                          string
	maxRetry                            int
}

func addJobFlags(cmd *cobra.Command, priority, keyUsage string) *jobFlags {
	var j jobFlags
	f := cmd.Flags()
	f.DurationVar(&j.delay, "delay", 0, "send after this time, such as 5s or 2h")
	f.Var(&j.at, "at", "send at this `time` (RFC 3339), such as 2027-01-31T09:00:00+01:00")
	j.priority = addChoice(cmd, "priority", "queue by urgency (default: "+priority+")", "",
		string(tasks.Critical), string(tasks.Default), string(tasks.Bulk))
	f.StringVar(&j.queue, "queue", "", "queue by `name`, for workers that have queues of their own")
	f.IntVar(&j.maxRetry, "max-retry", 0, "retries after the first attempt, at least 1 (default: the class's)")
	f.DurationVar(&j.timeout, "timeout", 0, "longest time for one attempt (default 2m)")
	f.DurationVar(&j.retention, "retention", 0, "how long a completed job can be looked at (default 24h)")
	f.DurationVar(&j.deadline, "deadline", 0, "drop the message when it could not be sent within this time of being due, such as 5m")
	f.StringVar(&j.key, "idempotency-key", "", keyUsage)
	cmd.MarkFlagsMutuallyExclusive("delay", "at")
	cmd.MarkFlagsMutuallyExclusive("priority", "queue")
	return &j
}

// check refuses values that cobra takes but no job can have.
func (j *jobFlags) check(cmd *cobra.Command) error {
	for name, d := range map[string]time.Duration{
		"delay": j.delay, "timeout": j.timeout, "retention": j.retention, "deadline": j.deadline,
	} {
		if cmd.Flags().Changed(name) && d <= 0 {
			return cli.Usagef("--%s must be more than 0", name)
		}
	}
	if cmd.Flags().Changed("max-retry") && j.maxRetry < 1 {
		return cli.Usagef("--max-retry must be at least 1")
	}
	return nil
}

// options returns what the flags ask for a job that is enqueued now. The idempotency key is missing:
// it differs from job to job.
func (j *jobFlags) options(now time.Time) []tasks.Option {
	var opts []tasks.Option
	due := now
	switch {
	case j.delay > 0:
		opts = append(opts, tasks.Delay(j.delay))
		due = now.Add(j.delay)
	case !j.at.IsZero():
		opts = append(opts, tasks.At(j.at.Time))
		if j.at.After(now) {
			due = j.at.Time
		}
	}
	if j.priority.value != "" {
		opts = append(opts, tasks.Priority(tasks.PriorityLevel(j.priority.value)))
	}
	if j.queue != "" {
		opts = append(opts, tasks.Queue(j.queue))
	}
	if j.maxRetry > 0 {
		opts = append(opts, tasks.MaxRetry(j.maxRetry))
	}
	if j.timeout > 0 {
		opts = append(opts, tasks.Timeout(j.timeout))
	}
	if j.retention > 0 {
		opts = append(opts, tasks.Retention(j.retention))
	}
	if j.deadline > 0 {
		opts = append(opts, tasks.Deadline(due.Add(j.deadline)))
	}
	return opts
}

// problemsOf takes the single problems out of what Validate and Check return. ok is false when there is
// something else in err.
func problemsOf(err error) (found []problem, ok bool) {
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		joined, many := inner.(interface{ Unwrap() []error })
		if !many {
			continue
		}
		for _, e := range joined.Unwrap() {
			some, ok := problemsOf(e)
			if !ok {
				return nil, false
			}
			found = append(found, some...)
		}
		return found, len(found) > 0
	}
	if e, ok := errors.AsType[*tasks.ValidationError](err); ok {
		return []problem{{Field: e.Field, Problem: e.Problem}}, true
	}
	if e, ok := errors.AsType[*templates.DataError](err); ok {
		return []problem{{Field: e.Field, Problem: e.Problem}}, true
	}
	return nil, false
}

// optionError returns a usage error if one of the problems is about an option of the producer: those
// come from a flag and are the same for every message.
func optionError(found []problem) error {
	for _, p := range found {
		switch p.Field {
		case "delay", "at", "priority", "queue", "max_retry", "timeout", "retention", "deadline", "idempotency_key":
			return cli.Usagef("--%s %s", strings.ReplaceAll(p.Field, "_", "-"), p.Problem)
		}
	}
	return nil
}

// foldKey makes one idempotency key of several parts. It is a hash because the producer limits a key's
// length and the parts may be long; each part's length goes in, so that no two lists of parts are alike.
func foldKey(parts ...string) string {
	h := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))
}
