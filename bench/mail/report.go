package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/template"
	"time"
)

// spread is the median of some figures with the smallest and the largest.
type spread struct{ Median, Min, Max float64 }

func spreadOf(rounds []measurement, figure func(measurement) float64) spread {
	values := make([]float64, len(rounds))
	for i, m := range rounds {
		values[i] = figure(m)
	}
	slices.Sort(values)
	n := len(values)
	return spread{(values[(n-1)/2] + values[n/2]) / 2, values[0], values[n-1]}
}

// row is one system in the report.
type row struct {
	Name                      string
	Jobs, Size                int
	Rate, Worker, Redis, Sink spread
}

func (b *bench) rows() []row {
	var rows []row
	for _, s := range b.systems {
		last := s.rounds[len(s.rounds)-1]
		rows = append(rows, row{
			Name: s.name, Jobs: s.jobs, Size: int(last.bytes) / last.mails,
			Rate:   spreadOf(s.rounds, measurement.rate),
			Worker: spreadOf(s.rounds, func(m measurement) float64 { return m.per1000(m.worker) }),
			Redis:  spreadOf(s.rounds, func(m measurement) float64 { return m.per1000(m.redis) }),
			Sink:   spreadOf(s.rounds, func(m measurement) float64 { return m.per1000(m.sink) }),
		})
	}
	return rows
}

var page = template.Must(template.New("mail.md").Funcs(template.FuncMap{"count": count}).Parse(
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
		"Rounds": o.rounds, "Rows": rows, "Machine": machine(), "Load": b.load, "Versions": b.versions(ctx),
		"Commit": "commit " + output(ctx, "git", "describe", "--always", "--dirty", "--abbrev=10"), "Concurrency": o.concurrency,
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

// plot draws two bar charts side by side, in colours that hold on a light and on a dark page.
func plot(rows []row) []byte {
	const (
		width, chart = 720, 340 // of the picture, of one chart
		top, rowH    = 56, 44
		label, bar   = 80, 170
	)
	var svg bytes.Buffer
	height := top + rowH*len(rows) + 16
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="Emails per second and CPU time per 1,000 emails">`+"\n", width, height)
	svg.WriteString(`<style>text{fill:#222}.faint{fill:#666}.range{stroke:#222}@media(prefers-color-scheme:dark){text{fill:#eee}.faint{fill:#aaa}.range{stroke:#eee}}</style>` + "\n")
	for i, c := range []struct {
		title, note, format string
		figure              func(row) spread
	}{
		{"Emails per second", "more is better", "%.0f", func(r row) spread { return r.Rate }},
		{"Worker CPU seconds per 1,000 emails", "less is better", "%.3f", func(r row) spread { return r.Worker }},
	} {
		left := 16 + i*(chart+16)
		largest := c.figure(slices.MaxFunc(rows, func(a, b row) int { return cmp.Compare(c.figure(a).Max, c.figure(b).Max) })).Max
		fmt.Fprintf(&svg, `<text x="%d" y="22" font-weight="600">%s</text><text x="%d" y="40" class="faint">%s; the line spans the rounds</text>`+"\n", left, c.title, left, c.note)
		for j, r := range rows {
			s, y := c.figure(r), top+rowH*j
			at := func(v float64) float64 { return float64(left+label) + bar*v/largest }
			colour := "#0f766e"
			if j > 0 {
				colour = "#94a3b8"
			}
			fmt.Fprintf(&svg, `<text x="%d" y="%d">%s</text><rect x="%d" y="%d" width="%.1f" height="26" rx="3" fill="%s"/>`, left, y+18, r.Name, left+label, y, at(s.Median)-at(0), colour)
			fmt.Fprintf(&svg, `<line class="range" x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke-width="1.5"/>`, at(s.Min), at(s.Max), y+13, y+13)
			fmt.Fprintf(&svg, `<text x="%.1f" y="%d" font-weight="600">`+c.format+"</text>\n", max(at(s.Median), at(s.Max))+8, y+18, s.Median)
		}
	}
	svg.WriteString("</svg>\n")
	return svg.Bytes()
}

func machine() string {
	model := "unknown CPU"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d cores of %s, %s/%s, %s", runtime.NumCPU(), model, runtime.GOOS, runtime.GOARCH, time.Now().UTC().Format(time.DateOnly))
}

// load is the load average of the last minute: what else the machine was doing.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	average, _, _ := strings.Cut(string(text), " ")
	return average
}

func (b *bench) versions(ctx context.Context) string {
	list := []string{runtime.Version()}
	if fields := strings.Fields(output(ctx, "redis-server", "--version")); len(fields) > 2 {
		list = append(list, "Redis "+strings.TrimPrefix(fields[2], "v="))
	}
	for _, s := range b.systems {
		if s.name != "bullmq" {
			continue
		}
		list = append(list, "Node.js "+output(ctx, "node", "--version"))
		text, err := os.ReadFile(filepath.Join("bench", "mail", "bullmq", "package.json"))
		var manifest struct{ Dependencies map[string]string }
		if err == nil && json.Unmarshal(text, &manifest) == nil {
			for _, name := range []string{"bullmq", "ioredis", "nodemailer", "handlebars"} {
				list = append(list, name+" "+manifest.Dependencies[name])
			}
		}
	}
	return strings.Join(list, ", ")
}

func output(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// count writes 20000 as 20,000.
func count(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
