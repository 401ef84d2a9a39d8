package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/medicalink/postroom/bench/internal/child"
	"github.com/medicalink/postroom/templates"
)

// bullmq drives the peer's producer, a process of its own, line by line.
type bullmq struct{ control *child.Process }

func (b *bench) startBullMQ(ctx context.Context, o options, work, dir string, stderr io.Writer) error {
	if err := child.NPM(ctx, dir, "-only postroom", stderr); err != nil {
		return err
	}
	template, err := peerTemplate(work)
	if err != nil {
		return err
	}
	peer := child.Options{Dir: work, Talk: true, Env: []string{
		"NODE_ENV=production",
		"REDIS_PORT=" + strconv.Itoa(b.redisPort),
		"SMTP_PORT=" + strconv.Itoa(b.smtpPort),
		"CONCURRENCY=" + strconv.Itoa(o.concurrency),
		"CONNECTIONS=" + strconv.Itoa(o.connections),
		"TEMPLATE=" + template,
	}}
	script := filepath.Join(dir, "peer.mjs")
	worker, err := child.Spawn(peer, "bullmq-worker", "node", script, "work")
	if err != nil {
		return err
	}
	b.add(worker)
	control, err := child.Spawn(peer, "bullmq-control", "node", script, "control")
	if err != nil {
		return err
	}
	b.add(control)
	limit, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if _, err := worker.Line(limit); err != nil {
		return err
	}
	b.systems = append(b.systems, &system{name: "bullmq", jobs: o.peers, worker: worker, queue: bullmq{control}})
	return nil
}

// peerTemplate writes our own template, rendered around a mark, as a handlebars template: the peer then sends the
// same text.
func peerTemplate(work string) (path string, err error) {
	const mark = "PostroomBenchName"
	set, err := templates.Load("")
	if err != nil {
		return "", fmt.Errorf("load templates: %w", err)
	}
	message, err := set.Render(benchTemplate, "en", map[string]any{"name": mark})
	if err != nil {
		return "", fmt.Errorf("render template: %w", err)
	}
	parts := map[string]string{"subject": message.Subject, "html": message.HTML, "text": message.Text}
	if !strings.Contains(parts["html"], mark) || !strings.Contains(parts["text"], mark) {
		return "", fmt.Errorf("the %s template does not show the name in both parts", benchTemplate)
	}
	for name, text := range parts {
		if strings.Contains(text, "{{") {
			return "", fmt.Errorf("the %s template's %s holds handlebars of its own", benchTemplate, name)
		}
		parts[name] = strings.ReplaceAll(text, mark, "{{name}}")
	}
	text, err := json.Marshal(parts)
	if err != nil {
		return "", err
	}
	path = filepath.Join(work, "template.json")
	return path, os.WriteFile(path, text, 0o600)
}

func (q bullmq) tell(ctx context.Context, answer any, words ...string) error {
	return q.control.Tell(ctx, strings.Join(words, " "), answer)
}

func (q bullmq) pause(ctx context.Context) error  { return q.tell(ctx, nil, "pause") }
func (q bullmq) resume(ctx context.Context) error { return q.tell(ctx, nil, "resume") }

func (q bullmq) load(ctx context.Context, prefix string, n int) error {
	return q.tell(ctx, nil, "load", prefix, strconv.Itoa(n))
}

func (q bullmq) left(ctx context.Context) (int, error) {
	var counts struct{ Waiting, Paused, Active, Delayed, Failed int }
	if err := q.tell(ctx, &counts, "counts"); err != nil {
		return 0, err
	}
	if counts.Failed+counts.Delayed > 0 {
		return 0, fmt.Errorf("%d jobs failed and %d wait for a retry", counts.Failed, counts.Delayed)
	}
	return counts.Waiting + counts.Paused + counts.Active, nil
}
