package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/medicalink/postroom/config"
	"github.com/medicalink/postroom/internal/cli"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
	"github.com/medicalink/postroom/templates"
)

// loadConfig reads the settings; a wrong one counts as wrong usage.
func loadConfig(p cli.Process) (config.Config, error) {
	cfg, err := config.Load(p.Environ, p.Dir)
	if err != nil {
		return config.Config{}, &cli.UsageError{Err: err}
	}
	// Jobs sent by hand say so, unless the settings name a service.
	for _, s := range cfg.Settings() {
		if s.Name == "SERVICE_NAME" && s.Source == config.SourceDefault {
			cfg.Service, cfg.Redis.ClientName = "enqueue", "enqueue"
		}
	}
	return cfg, nil
}

// A medium is what a template can be for.
type medium struct {
	name          string
	localeDefault string
	has           func(templates.Info) bool
	check         func(set *templates.Set, name string, data map[string]any) error
}

// The media.
var (
	emailMedium = medium{
		"email", "template's own",
		func(i templates.Info) bool { return i.Email }, (*templates.Set).Check,
	}
	notificationMedium = medium{
		"notification", "user's own",
		func(i templates.Info) bool { return i.Notification }, (*templates.Set).CheckNotification,
	}
)

// loadTemplates reads the templates and makes sure that one for m is called name.
func loadTemplates(dir, name string, m medium) (*templates.Set, error) {
	set, err := templates.Load(dir)
	if err != nil {
		return nil, &cli.UsageError{Err: fmt.Errorf("load templates: %w", err)}
	}
	var known []string
	for _, info := range set.List() {
		if !m.has(info) {
			continue
		}
		if info.Name == name {
			return set, nil
		}
		known = append(known, info.Name)
	}
	return nil, cli.Usagef("no %s template is called %q: there are %s (TEMPLATES_DIR adds others)", m.name, name, strings.Join(known, ", "))
}

// openProducer connects to Redis. The caller closes the client.
func openProducer(ctx context.Context, cfg config.Config) (*tasks.Producer, *rediskit.Client, error) {
	client, err := rediskit.Open(ctx, cfg.Redis)
	if err != nil {
		return nil, nil, err
	}
	producer, err := tasks.NewProducer(client,
		tasks.FromService(cfg.Service), tasks.Namespace(cfg.Namespace))
	if err != nil {
		return nil, nil, errors.Join(err, client.Close())
	}
	return producer, client, nil
}

// completeTemplates offers the names of the templates to the shell.
func completeTemplates(p cli.Process, as func() medium) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		cfg, err := config.Load(p.Environ, p.Dir)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		set, err := templates.Load(cfg.TemplatesDir)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []string
		for _, info := range set.List() {
			if as().has(info) {
				names = append(names, info.Name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
