package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/medicalink/postroom/bench/internal/report"
	"github.com/medicalink/postroom/realtime"
	"github.com/medicalink/postroom/tasks"
)

// How figures are written.
var (
	count    = report.Whole
	decimals = report.Fixed(2)
	thousand = report.Fixed(3)
)

// names are what the ways are called in the report and in its picture, which has room for 12 characters.
var names = map[string]struct{ long, short string }{
	howBatches:  {fmt.Sprintf("bare XADD and PUBLISH, pipelines of %d notifications", driveBatch), "bare, ×100"},
	howPipeline: {"bare XADD and PUBLISH, a pipeline for each notification", "bare, ×1"},
	howCalls:    {"bare XADD, then PUBLISH, a call each", "bare calls"},
	howShared:   {"the inbox's script, callers share round trips", "script, ×n"},
	howScript:   {"the inbox's script (`inbox.Store.Deliver`), a call each", "script"},
	whole:       {"**whole path: queue → worker → inbox**", "whole path"},
	toBrowser:   {"whole path with connected browsers: queue → worker → inbox → browser", "to browsers"},
}

func latencyRow(browsers int) string {
	if browsers == 1 {
		return "1 browser"
	}
	return report.Count(browsers) + " browsers"
}

// rushRow is the latency after a round of rates.
func rushRow(browsers int) string { return latencyRow(browsers) + ", seconds after a full queue" }

// cell writes the median with its spread, of which a single round has none.
func cell(s report.Spread, write func(float64) string) string {
	text := "**" + write(s.Median) + "**"
	if s.Min != s.Max {
		text += " (" + write(s.Min) + " – " + write(s.Max) + ")"
	}
	return text
}

type table struct {
	Title, Text string
	Header      []string
	Rows        [][]string
}

// ratio is the spread of the rounds' ratios of one way to another.
func (b *bench) ratio(dividend, divisor string) report.Spread {
	ratios := make([]float64, b.rounds)
	for i := range ratios {
		ratios[i] = b.rates[dividend][i].rate() / b.rates[divisor][i].rate()
	}
	return report.SpreadOf(ratios, func(v float64) float64 { return v })
}

func (b *bench) rateTable() table {
	t := table{
		Title: "Notifications per second",
		Text: fmt.Sprintf(`%s notifications a round, %d for each of %s users, from the first arrival to the last: in the inbox by Redis' clock, in
the browser by that of its process. The whole path takes them from a queue that was filled before; the others are %d
loops without jobs. CPU is the user and system time of the processes for 1,000 notifications, without that of the
browsers. The ratio to the whole path is the median of the rounds' ratios.`,
			report.Count(b.notifications()), b.each, report.Count(b.users), concurrency),
		Header: []string{"", "notifications/s", "CPU s per 1,000: loops or worker", "Redis", "service", "× the whole path", "counted", "lost", "doubled"},
	}
	for _, way := range ways() {
		rounds := b.rates[way]
		service := "–"
		if way == toBrowser {
			service = thousand(report.SpreadOf(rounds, func(r rateRound) float64 { return r.per1000(r.serv) }).Median)
		}
		t.Rows = append(t.Rows, []string{
			names[way].long,
			cell(report.SpreadOf(rounds, rateRound.rate), count),
			thousand(report.SpreadOf(rounds, func(r rateRound) float64 { return r.per1000(r.program) }).Median),
			thousand(report.SpreadOf(rounds, func(r rateRound) float64 { return r.per1000(r.redis) }).Median),
			service,
			decimals(b.ratio(way, whole).Median),
			report.Count(len(rounds) * rounds[0].n), "0", "0", // or exactlyOnce would have failed
		})
	}
	return t
}

func itself(v float64) float64 { return v }

func (b *bench) latencyTable() table {
	t := table{
		Title: "Latency, ms",
		Text: fmt.Sprintf(`%d notifications a second at random moments to random connected users, %s a round, with the worker otherwise idle. From
before the call of `+"`Producer.SendNotification`"+` until the browser's process has read the event; and from the call's return;
and the call itself. The quantiles are over all rounds; in parentheses those of the single rounds.`,
			b.rate, report.Count(b.samples())),
		Header: []string{"", "call → browser p50", "p99", "longest", "return → browser p50", "p99", "the call p50", "p99"},
	}
	for _, row := range slices.Compact([]string{latencyRow(1), latencyRow(b.clients), rushRow(min(rushBrowsers, b.clients))}) {
		rounds := b.latencies[row]
		figure := func(values func(latencyRound) []float64, q float64) string {
			return cell(pooled(rounds, values, q), decimals)
		}
		all := func(r latencyRound) []float64 { return r.whole }
		returned := func(r latencyRound) []float64 { return r.returned }
		call := func(r latencyRound) []float64 { return r.call }
		t.Rows = append(t.Rows, []string{
			row, figure(all, 0.5), figure(all, 0.99), figure(all, 1), figure(returned, 0.5), figure(returned, 0.99), figure(call, 0.5), figure(call, 0.99),
		})
	}
	return t
}

// pooled is a quantile over all rounds, with the smallest and the largest of theirs.
func pooled(rounds []latencyRound, values func(latencyRound) []float64, q float64) report.Spread {
	s := report.SpreadOf(rounds, func(r latencyRound) float64 { return report.Quantile(values(r), q) })
	var all []float64
	for _, r := range rounds {
		all = append(all, values(r)...)
	}
	s.Median = report.Quantile(all, q)
	return s
}

func (b *bench) memoryTable() table {
	t := table{
		Title: "Memory of a connected browser, bytes",
		Text: fmt.Sprintf(`What the service's process holds with %s browsers, idle for %s, less what it holds with none, divided by their
number. Heartbeats (every %s) go on. The kernel's memory for the connections is not in it.`,
			report.Count(b.clients), idleFor, realtime.DefaultHeartbeat),
		Header: []string{"", "bytes for each browser", "MB with none", "MB with all"},
	}
	if b.quick {
		t.Text = strings.Replace(t.Text, idleFor.String(), quickIdle.String(), 1)
	}
	for _, row := range []struct {
		name string
		of   func(memory) int
	}{
		{"resident (RSS), as it is", func(m memory) int { return m.asIs }},
		{"resident after a garbage collection", func(m memory) int { return m.collected }},
		{"Go heap and stacks in use after it", func(m memory) int { return m.inUse }},
	} {
		megabytes := func(pick func(memoryRound) memory) string {
			return report.Fixed(1)(report.SpreadOf(b.memories, func(m memoryRound) float64 { return float64(row.of(pick(m))) / 1e6 }).Median)
		}
		t.Rows = append(t.Rows, []string{
			row.name,
			cell(report.SpreadOf(b.memories, func(m memoryRound) float64 { return float64(row.of(m.all)-row.of(m.none)) / float64(b.clients) }), count),
			megabytes(func(m memoryRound) memory { return m.none }),
			megabytes(func(m memoryRound) memory { return m.all }),
		})
	}
	return t
}

func (b *bench) webhookTable() table {
	return table{
		Title: "Webhooks per second",
		Text: fmt.Sprintf(`%s notifications a round with the channel webhook from a queue that was filled before, to one endpoint over HTTP on
loopback, %d requests at once, each signed (HMAC-SHA256) and its signature checked by the receiver. A webhook takes two
jobs: the notification, and the delivery that has its own retries. From the first to the last one that the receiver got.`,
			report.Count(b.webhooks), concurrency),
		Header: []string{"", "webhooks/s", "CPU s per 1,000: worker", "Redis", "counted", "lost", "doubled"},
		Rows: [][]string{{
			"queue → worker → receiver",
			cell(report.SpreadOf(b.hooks, rateRound.rate), count),
			thousand(report.SpreadOf(b.hooks, func(r rateRound) float64 { return r.per1000(r.program) }).Median),
			thousand(report.SpreadOf(b.hooks, func(r rateRound) float64 { return r.per1000(r.redis) }).Median),
			report.Count(len(b.hooks) * b.hooks[0].n), "0", "0", // or webhookRound would have failed
		}},
	}
}

var page = template.Must(template.New("notify.md").Funcs(template.FuncMap{"join": func(cells []string) string { return strings.Join(cells, " | ") }}).Parse(
	`# Notification benchmark
{{if .Quick}}
**A quick look: one small round. Not for publishing.**
{{end}}
In-app notifications from ` + "`tasks.Producer`" + ` through ` + "`worker run`" + ` to the user's inbox and browser. Figures are medians of
{{.Rounds}} rounds (smallest – largest){{.WarmUp}}. {{.Checked}} notifications were counted in all, by id and user: each arrived
exactly once in its user's stream, where rates were measured; in its user's browser, wherever browsers were connected;
and at the receiver of webhooks, with a good signature. None was lost, none doubled, none came to anybody else. A round
in which one did would have ended the run.

![Notifications per second and latency](notify.svg)
{{range .Tables}}
## {{.Title}}

{{.Text}}

| {{join .Header}} |
|---|{{range slice .Header 1}}--:|{{end}}
{{range .Rows -}}
| {{join .}} |
{{end}}{{end}}
## Method

- Machine: {{.Machine}}. Load average before the run: {{.Load}}, after it: {{.After}}, the run's own
  processes included. It took {{.Took}}.
- Versions: {{.Versions}}.
- postroom: commit {{.Commit}}.
- One Redis server without persistence; one worker process (` + "`worker run`" + `), {{.Concurrency}} jobs at once, otherwise with its defaults,
  a log line for each job, completed jobs kept for 24 hours; a service of ` + "`package realtime`" + ` with its defaults, over HTTP/1.1
  without TLS; the browsers, one goroutine and one connection each, in a process of their own. All share this machine's
  cores.
- Payload: {{.Payload}} bytes of JSON in the queue, with kind, user, title, body and action. In bulk (` + "`Producer.EnqueueMany`" + `),
  {{.Enqueued}} notifications a second were enqueued, before the queue was opened.
- The bare commands store and publish as many bytes as the script does, but keep no count of what is unread, no record of
  what was delivered, and no bound.
- Rounds alternate between the rows, whose order is that of the table. In each round the users are others.
- With connected browsers, the service read {{.Replayed}} notifications a round from the streams again, because it had missed
  their events.
- Latency and memory are of a service that was started for the round: first one browser, then none, then all.
- Repeat with ` + "`go tool -modfile=tools/go.mod task bench:notify`" + `.
`))

func (b *bench) report(ctx context.Context, stdout io.Writer) error {
	payload, err := payloadBytes()
	if err != nil {
		return err
	}
	warmUp := ""
	if b.rounds > 1 {
		warmUp = ", the rates after one more for warming up"
	}
	replayed := report.SpreadOf(b.rates[toBrowser], func(r rateRound) float64 { return float64(r.replayed) })
	data := map[string]any{
		"Quick": b.quick, "Rounds": b.rounds, "WarmUp": warmUp, "Checked": report.Count(b.checked),
		"Tables":  []table{b.latencyTable(), b.memoryTable(), b.rateTable(), b.webhookTable()},
		"Machine": report.Machine(), "Load": b.load, "After": report.Load(), "Took": time.Since(b.begun).Round(time.Second),
		"Versions": versions(ctx), "Commit": report.Output(ctx, "git", "describe", "--always", "--dirty", "--abbrev=10"),
		"Concurrency": concurrency, "Payload": payload,
		"Enqueued": cell(report.SpreadOf(b.enqueued, itself), count), "Replayed": cell(replayed, count),
	}
	var text bytes.Buffer
	if err := page.Execute(&text, data); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if _, err := fmt.Fprintf(stdout, "\n%s", text.String()); err != nil {
		return err
	}
	if b.out == "" {
		return nil
	}
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return fmt.Errorf("make results folder: %w", err)
	}
	for name, content := range map[string][]byte{"notify.md": text.Bytes(), "notify.svg": b.plot()} {
		if err := os.WriteFile(filepath.Join(b.out, name), content, 0o644); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
	}
	return nil
}

// payloadBytes is the size of a job.
func payloadBytes() (int, error) {
	n := notification(userID("r1-"+whole, 5000))
	n.V = tasks.Version // which the producer sets
	payload, err := json.Marshal(n)
	if err != nil {
		return 0, fmt.Errorf("encode notification: %w", err)
	}
	return len(payload), nil
}

func (b *bench) plot() []byte {
	rates := report.Chart{Title: "Notifications per second", Note: "more is better; the line spans the rounds", Write: count}
	for _, way := range ways() {
		rates.Bars = append(rates.Bars, report.Bar{
			Label: names[way].short, Figure: report.SpreadOf(b.rates[way], rateRound.rate), Ours: way == whole || way == toBrowser,
		})
	}
	latency := report.Chart{Title: "Call to browser, ms", Note: fmt.Sprintf("at %d/s, by connected browsers; less is better", b.rate), Write: decimals}
	for _, browsers := range slices.Compact([]int{1, b.clients}) {
		for _, q := range []struct {
			name string
			q    float64
		}{{"p50", 0.5}, {"p99", 0.99}} {
			latency.Bars = append(latency.Bars, report.Bar{
				Label: report.Count(browsers) + " " + q.name, Ours: true,
				Figure: pooled(b.latencies[latencyRow(browsers)], func(r latencyRound) []float64 { return r.whole }, q.q),
			})
		}
	}
	return report.Bars("Notifications per second, and latency from the call to the browser", rates, latency)
}

func versions(ctx context.Context) string {
	list := []string{runtime.Version()}
	if fields := strings.Fields(report.Output(ctx, "redis-server", "--version")); len(fields) > 2 {
		list = append(list, "Redis "+strings.TrimPrefix(fields[2], "v="))
	}
	for _, module := range []struct{ name, path string }{{"asynq", "github.com/hibiken/asynq"}, {"go-redis", "github.com/redis/go-redis/v9"}} {
		list = append(list, module.name+" "+report.Output(ctx, "go", "list", "-m", "-f", "{{.Version}}", module.path))
	}
	return strings.Join(list, ", ")
}
