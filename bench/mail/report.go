package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"text/template"

	"github.com/medicalink/postroom/bench/internal/report"
)

// row is one system in the report.
type row struct {
	Name                      string
	Jobs, Size                int
	Rate, Worker, Redis, Sink report.Spread
}

func (b *bench) rows() []row {
	var rows []row
	for _, s := range b.systems {
		last := s.rounds[len(s.rounds)-1]
		rows = append(rows, row{
			Name: s.name, Jobs: s.jobs, Size: int(last.bytes) / last.mails,
			Rate:   report.SpreadOf(s.rounds, measurement.rate),
			Worker: report.SpreadOf(s.rounds, func(m measurement) float64 { return m.per1000(m.worker) }),
			Redis:  report.SpreadOf(s.rounds, func(m measurement) float64 { return m.per1000(m.redis) }),
			Sink:   report.SpreadOf(s.rounds, func(m measurement) float64 { return m.per1000(m.sink) }),
		})
	}
	return rows
}

var page = template.Must(template.New("mail.md").Funcs(template.FuncMap{"count": report.Count}).Parse(
	`# Mail benchmark

Emails from a full queue to the mail server, warm: median of {{.Rounds}} rounds (smallest – largest). CPU is the user
and system time of the process for 1,000 emails. Every round delivered each message exactly once; the sink checks.

| system | emails a round | bytes an email | emails/s | worker CPU s per 1,000 | Redis CPU s per 1,000 | sink CPU s per 1,000 |
|---|--:|--:|--:|--:|--:|--:|
{{range .Rows -}}
| {{.Name}} | {{count .Jobs}} | {{count .Size}} | **{{printf "%.0f" .Rate.Median}}** ({{printf "%.0f – %.0f" .Rate.Min .Rate.Max}}) | **{{printf "%.3f" .Worker.Median}}** ({{printf "%.3f – %.3f" .Worker.Min .Worker.Max}}) | {{printf "%.3f" .Redis.Median}} | {{printf "%.3f" .Sink.Median}} |
{{end}}
{{- with .Ratio}}
postroom delivers **{{printf "%.1f" .Rate}} times** as many emails a second, with **1/{{printf "%.1f" .CPU}}** of the worker's CPU time.
{{end}}
![Emails per second and CPU time](mail.svg)

- Machine: {{.Machine}}. Load average before the run: {{.Load}}.
- Versions: {{.Versions}}.
- postroom: {{.Commit}}, ` + "`worker run`" + ` with a log line for each email.
- Each system: one worker process, {{.Concurrency}} jobs at once, at most {{.Connections}} connections to the mail
  server, completed jobs kept for 24 hours. BullMQ's process runs JavaScript on one thread; postroom's uses all cores.
- Message: the ` + "`" + `{{.Template}}` + "`" + ` template with subject, HTML and text; the peer's handlebars templates are made from our
  rendered ones, so that the content is the same.
- One Redis server for both, {{.Persistence}}. Sink, Redis and workers share the machine's cores.
- Rounds alternate between the systems. The rate runs from the first to the last message that the sink accepted; the
  CPU time from opening the queue until its last job was recorded as done.
- Repeat with ` + "`go tool -modfile=tools/go.mod task bench:mail`" + `.
`))

type ratio struct{ Rate, CPU float64 }

func (b *bench) report(ctx context.Context, o options, stdout io.Writer) error {
	rows := b.rows()
	persistence := "without persistence"
	if o.aof {
		persistence = "with its append-only file, synced every second"
	}
	data := map[string]any{
		"Rounds": o.rounds, "Rows": rows, "Machine": report.Machine(), "Load": b.load, "Versions": b.versions(ctx),
		"Commit": "commit " + report.Output(ctx, "git", "describe", "--always", "--dirty", "--abbrev=10"), "Concurrency": o.concurrency,
		"Connections": o.connections, "Template": benchTemplate, "Persistence": persistence, "Ratio": (*ratio)(nil),
	}
	if len(rows) == 2 {
		data["Ratio"] = &ratio{rows[0].Rate.Median / rows[1].Rate.Median, rows[1].Worker.Median / rows[0].Worker.Median}
	}
	var text bytes.Buffer
	if err := page.Execute(&text, data); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if _, err := fmt.Fprintf(stdout, "\n%s", text.String()); err != nil {
		return err
	}
	if o.out == "" {
		return nil
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return fmt.Errorf("make results folder: %w", err)
	}
	if err := os.WriteFile(filepath.Join(o.out, "mail.md"), text.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := os.WriteFile(filepath.Join(o.out, "mail.svg"), plot(rows), 0o644); err != nil {
		return fmt.Errorf("write plot: %w", err)
	}
	return nil
}

func plot(rows []row) []byte {
	rate := report.Chart{Title: "Emails per second", Note: "more is better; the line spans the rounds", Write: report.Whole}
	cpu := report.Chart{Title: "Worker CPU seconds per 1,000 emails", Note: "less is better; the line spans the rounds", Write: report.Fixed(3)}
	for i, r := range rows {
		rate.Bars = append(rate.Bars, report.Bar{Label: r.Name, Figure: r.Rate, Ours: i == 0})
		cpu.Bars = append(cpu.Bars, report.Bar{Label: r.Name, Figure: r.Worker, Ours: i == 0})
	}
	return report.Bars("Emails per second and CPU time per 1,000 emails", rate, cpu)
}

func (b *bench) versions(ctx context.Context) string {
	list := []string{runtime.Version()}
	if fields := strings.Fields(report.Output(ctx, "redis-server", "--version")); len(fields) > 2 {
		list = append(list, "Redis "+strings.TrimPrefix(fields[2], "v="))
	}
	for _, s := range b.systems {
		if s.name != "bullmq" {
			continue
		}
		list = append(list, "Node.js "+report.Output(ctx, "node", "--version"))
		list = append(list, report.NPMVersions(filepath.Join("bench", "mail", "bullmq", "package.json"), "bullmq", "ioredis", "nodemailer", "handlebars")...)
	}
	return strings.Join(list, ", ")
}
