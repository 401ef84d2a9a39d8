package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/medicalink/postroom/bench/internal/report"
)

// section is one table of the report.
type section struct {
	Title, Text string
	Header      []string
	Rows        [][]string
}

// column is a figure of a system, with how to write it.
type column struct {
	name   string
	write  func(float64) string
	better better
}

// better says which of two figures is the better one.
type better int

const (
	neither better = iota
	more
	less
)

// How figures are written.
var (
	whole    = report.Whole
	tenths   = report.Fixed(1)
	decimals = report.Fixed(2)
)

// quantiles are figures that are better taken over the samples of all rounds than as the median of the rounds.
var quantiles = map[string]float64{median: 0.5, p99: 0.99, longest: 1}

// figure is the median of the rounds, or the quantile of all their samples, with the smallest and the largest of the
// rounds.
func (b *bench) figure(measure, row, system, name string) (report.Spread, bool) {
	s, ok := b.results.spread(measure, row, system, name)
	if q, pooled := quantiles[name]; ok && pooled {
		s.Median = report.Quantile(b.results[figure{measure, row, system, samples}], q)
	}
	return s, ok
}

// factor is how many times better ours is than a peer: the median of the rounds' ratios, or the ratio of the quantiles.
func (b *bench) factor(measure, row, system string, c column) (float64, bool) {
	better, worse := ours, system
	switch c.better {
	case neither:
		return 0, false
	case less:
		better, worse = system, ours
	case more:
	}
	if _, pooled := quantiles[c.name]; pooled {
		dividend, ok1 := b.figure(measure, row, better, c.name)
		divisor, ok2 := b.figure(measure, row, worse, c.name)
		return dividend.Median / divisor.Median, ok1 && ok2 && dividend.Median > 0 && divisor.Median > 0
	}
	r, ok := b.results.ratio(measure, row, c.name, better, worse)
	return r.Median, ok
}

// cell writes a figure with its spread and, for a peer, how many times better ours is.
func (b *bench) cell(measure, row, system string, c column) string {
	s, ok := b.figure(measure, row, system, c.name)
	if !ok {
		return "–"
	}
	text := c.write(s.Median)
	if system == ours {
		text = "**" + text + "**"
	}
	if s.Min != s.Max {
		text += " (" + c.write(s.Min) + " – " + c.write(s.Max) + ")"
	}
	if factor, ok := b.factor(measure, row, system, c); ok && system != ours {
		text += " · **" + tenths(factor) + " ×**"
	}
	return text
}

// table has a line for each case and figure, and a column for each system; without rows it is left out.
func (b *bench) table(title, text, measure string, rows []string, columns ...column) section {
	s := section{Title: title, Text: text, Header: []string{""}}
	for _, system := range b.contenders {
		s.Header = append(s.Header, system.name)
	}
	for _, row := range rows {
		for _, c := range columns {
			label := row
			if len(columns) > 1 {
				label = strings.TrimPrefix(row+", ", ", ") + c.name
			}
			cells, measured := []string{label}, false
			for _, system := range b.contenders {
				text := b.cell(measure, row, system.name, c)
				measured = measured || text != "–"
				cells = append(cells, text)
			}
			if measured {
				s.Rows = append(s.Rows, cells)
			}
		}
	}
	return s
}

func (b *bench) sections() []section {
	var processingRows, idleRows, scalingRows []string
	for _, sp := range b.processingCases() {
		processingRows = append(processingRows, processingRow(sp.queues, sp.concurrency)+kept(sp.keep))
	}
	for _, n := range b.idleReplicas() {
		idleRows = append(idleRows, idleRow(n))
	}
	for _, n := range []int{1, 2, 4, 8} {
		scalingRows = append(scalingRows, scalingRow(n))
	}
	reference := processingRow(1, 100)
	all := []section{
		b.table("Processed, jobs/s", "One worker process, the queues filled beforehand, from the start of the first job until nothing is left in the store.",
			processing, processingRows, column{rate, whole, more}),
		b.bareSection(reference),
		b.table("CPU, seconds per million jobs", "In the rounds above with "+reference+"; the store is Redis or Postgres.",
			processing, []string{reference}, column{workerCPU, tenths, less}, column{storeCPU, tenths, less}, column{totalCPU, tenths, less}),
		b.table("Enqueued, jobs/s", "One producer process, no worker. In bulk: `Producer.EnqueueMany`, `addBulk` of 1,000, `InsertManyFast` of 10,000; asynq has nothing for many jobs, so 64 callers.",
			enqueueing, []string{enqueueRows[0].row, enqueueRows[1].row, enqueueRows[2].row}, column{rate, whole, more}),
		b.table("Enqueued and processed at the same time, jobs/s", "One producer process with 64 callers, one worker process with 100 at once, from the first call until nothing is left.",
			both, []string{bothRow}, column{rate, whole, more}),
		b.table("Idle pick-up, ms", fmt.Sprintf("From before the call that enqueues to the start of the handler, %d jobs a round, 20–80 ms after each other. The quantiles are over all rounds; in parentheses, those of the single rounds.", pickupSamples),
			pickup, []string{""}, column{median, decimals, less}, column{p99, decimals, less}, column{longest, decimals, less}),
		b.table("Lateness of delayed jobs, ms", fmt.Sprintf("%d jobs a round with delays of 0.3–3 s, not of whole seconds; quantiles as above. Early is the number of jobs of a round that began more than %s before their time.", delaySamples, tolerance),
			delayed, []string{""}, column{median, decimals, less}, column{p99, decimals, less}, column{longest, decimals, less}, column{early, whole, neither}),
		b.table("Idle, per replica", fmt.Sprintf("Workers without work, %d queues each: commands that clients send to Redis and that scripts run there, and milliseconds of CPU per second (10 ms/s is 1 %% of a core). All replicas in one process, each with connections of its own.", manyQueues),
			idle, idleRows, column{calls, decimals, less}, column{inner, decimals, less}, column{workerLoad, decimals, less}, column{storeLoad, decimals, less}),
		b.table("Memory, bytes", fmt.Sprintf("In the store for each of %s waiting jobs; in the worker, for each of %s handlers that run and wait.", report.Count(waitingJobs), report.Count(runningJobs)),
			memory, []string{""}, column{waiting, whole, less}, column{running, whole, less}),
		b.table("Several worker processes, jobs/s", "100 at once in each; one queue. All share this machine's cores with the store.",
			scaling, scalingRows, column{rate, whole, more}),
		b.table("A long queue, jobs/s", fmt.Sprintf("The first %s jobs, from the start of the first to the end of the last, 100 at once.", report.Count(shortQueue)),
			backlog, []string{backlogRow(shortQueue), backlogRow(b.backlog)}, column{rate, whole, more}),
	}
	return slices.DeleteFunc(all, func(s section) bool { return len(s.Rows) == 0 })
}

// bareSection compares ours with what Redis can do.
func (b *bench) bareSection(row string) section {
	s := section{
		Title: "What this Redis can do, jobs/s",
		Text: fmt.Sprintf("The engine's own scripts, with %s, driven by %d loops that take and finish %d jobs at a time and do nothing else: no asynq, no slots, no waiting.",
			row, bareLoops, bareBatch),
		Header: []string{"", ours, "bare loops", "postroom reaches"},
	}
	if share, ok := b.results.ratio(processing, row, rate, ours, bare); ok {
		c := column{rate, whole, neither}
		s.Rows = append(s.Rows, []string{row, b.cell(processing, row, ours, c), b.cell(processing, row, bare, c), percent(share.Median) + " (" + percent(share.Min) + " – " + percent(share.Max) + ")"})
	}
	return s
}

func percent(v float64) string { return report.Whole(100*v) + " %" }

// goal is something that the engine should reach.
type goal struct {
	Name, Wanted, Reached string
	Met                   string // yes, no, or empty if it was not measured
}

func verdict(measured, met bool) string {
	switch {
	case !measured:
		return ""
	case met:
		return "yes"
	}
	return "no"
}

// times is a goal to be so many times better than a peer.
func (b *bench) times(name, measure, row, peer string, c column, wanted float64) goal {
	g := goal{Name: name, Wanted: "≥ " + strconv.FormatFloat(wanted, 'g', -1, 64) + " × " + peer, Reached: "not measured"}
	if c.better == less {
		g.Wanted = "≤ 1/" + strconv.FormatFloat(wanted, 'g', -1, 64) + " of " + peer
	}
	factor, ok := b.factor(measure, row, peer, c)
	if ok {
		g.Reached = tenths(factor) + " ×"
		if c.better == less {
			g.Reached = "1/" + tenths(factor)
		}
	}
	g.Met = verdict(ok, factor >= wanted)
	return g
}

// most is a goal not to exceed a figure.
func (b *bench) most(name, measure, row, figure, unit string, wanted float64) goal {
	s, ok := b.figure(measure, row, ours, figure)
	g := goal{Name: name, Wanted: "≤ " + strconv.FormatFloat(wanted, 'g', -1, 64) + unit, Reached: "not measured", Met: verdict(ok, s.Median <= wanted)}
	if ok {
		g.Reached = decimals(s.Median) + unit
	}
	return g
}

func (b *bench) goals() []goal {
	reference := processingRow(1, 100)
	perSecond := column{rate, whole, more}
	processed := "processed/s, 100 at once, one process"
	goals := []goal{
		b.times(processed, processing, reference, bullmq, perSecond, 6),
		b.times(processed, processing, reference, river, perSecond, 3.5),
		b.times(processed, processing, reference, stock, perSecond, 8),
		b.times("CPU per million jobs, worker and Redis", processing, reference, bullmq, column{totalCPU, tenths, less}, 5),
		b.times("bulk enqueue", enqueueing, enqueueRows[2].row, bullmq, perSecond, 7),
		b.times("bulk enqueue", enqueueing, enqueueRows[2].row, river, perSecond, 2.5),
		b.times("enqueue one by one, 64 callers", enqueueing, enqueueRows[1].row, bullmq, perSecond, 4),
		b.most("idle pick-up, p50", pickup, "", median, " ms", 1),
		b.most("idle pick-up, p99", pickup, "", p99, " ms", 5),
		b.most("lateness of a delayed job, p99", delayed, "", p99, " ms", 20),
		b.most("delayed jobs of a round that start early", delayed, "", early, "", 0),
	}
	share, ok := b.results.ratio(processing, reference, rate, ours, bare)
	reached := "not measured"
	if ok {
		reached = percent(share.Median)
	}
	goals = slices.Insert(goals, 3, goal{processed, "≥ 90 % of the same scripts in a bare loop", reached, verdict(ok, share.Median >= 0.9)})
	exact := goal{"no job lost or doubled", "none", "none of " + report.Count(b.checked), verdict(b.checked > 0, len(b.problems) == 0)}
	if len(b.problems) > 0 {
		exact.Reached = fmt.Sprintf("see the %d rounds that failed", len(b.problems))
	}
	goals = append(goals, exact)
	goals = append(goals, b.longQueue())
	for _, n := range b.idleReplicas() {
		goals = append(goals, b.most("Redis commands at idle, "+idleRow(n)+", 6 queues", idle, idleRow(n), calls, " a second and replica", 2))
	}
	return goals
}

// longQueue is the goal that a backlog slows nothing down; the rounds scatter by a tenth.
func (b *bench) longQueue() goal {
	long, ok1 := b.figure(backlog, backlogRow(b.backlog), ours, rate)
	short, ok2 := b.figure(backlog, backlogRow(shortQueue), ours, rate)
	g := goal{Name: report.Count(b.backlog) + " waiting jobs", Wanted: "≥ 90 % of the speed with " + report.Count(shortQueue), Reached: "not measured"}
	if ok1 && ok2 {
		g.Reached = report.Whole(100*long.Median/short.Median) + " %"
	}
	g.Met = verdict(ok1 && ok2, long.Median >= 0.9*short.Median)
	return g
}

var page = template.Must(template.New("engine.md").Funcs(template.FuncMap{"join": func(cells []string) string { return strings.Join(cells, " | ") }, "count": report.Count}).Parse(
	`# Engine benchmark
{{if .Quick}}
**A quick look: short rounds, few cases. Not for publishing.**
{{end}}
How fast jobs go through postroom's engine and what they cost, beside stock asynq, BullMQ and River, with a handler that
does nothing. Figures are medians of {{.Rounds}} rounds (smallest – largest) after one for warming up; **n ×** is how many
times better postroom is: the median of the rounds' ratios. {{count .Checked}} jobs were counted: each ran exactly once,
none was lost, none doubled, in every round that has a figure here.
{{with .Problems}}
**Some rounds failed, and their systems are left out of the rest of these cases:**
{{range .}}
    {{.}}
{{end}}{{end -}}
{{with .Pictures}}
{{range .}}![{{.Label}}]({{.File}})
{{end}}{{end}}
## Goals

| | goal | reached | |
|---|--:|--:|---|
{{range .Goals -}}
| {{.Name}} | {{.Wanted}} | {{.Reached}} | {{.Met}} |
{{end -}}
{{range .Sections}}
## {{.Title}}

{{.Text}}

| {{join .Header}} |
|---|{{range slice .Header 1}}--:|{{end}}
{{range .Rows -}}
| {{join .}} |
{{end -}}
{{end}}
## Method

- Machine: {{.Machine}}. Load average before the run: {{.Load}}, after it: {{.LoadAfter}}. The run took {{.Took}}.
- Versions: {{.Versions}}.
- postroom: {{.Commit}}.
- Payload: an email of {{.Bytes}} bytes of JSON, the same for all. Completed jobs are removed at
  once, unless the row says that they are kept; River keeps them in any case.
- Each system has a producer and workers as processes of their own. The handler counts the job, by the number in its
  payload; at the end of a round the counts must add up and the store must hold nothing unfinished.
- The Redis systems share one Redis server without persistence, each with a database of its own. River's Postgres has
  {{.Postgres}}; its defaults otherwise, and a Unix socket; River's processes have
  {{.Connections}} connections each.
- postroom: ` + "`internal/engine`" + ` and ` + "`tasks.Producer`" + ` as the worker and the services use them. asynq: its server and client. BullMQ
  and River give each queue workers of its own: with six queues, each gets its share of the jobs at once, rounded up.
  River fetches as often as it allows ({{.Cooldown}}; its default of 100 ms would bound it to ten fetches a second).
  BullMQ's process runs JavaScript on one thread; the others use all cores.
- All processes share this machine's cores. Rounds alternate between the systems, each about as long as the others:
  the number of jobs follows from the speed of the round before.
- Repeat with ` + "`go tool -modfile=tools/go.mod task bench:engine`" + `.
`))

type picture struct{ File, Label string }

func (b *bench) report(ctx context.Context, stdout io.Writer) error {
	pictures := b.pictures()
	var problems []string
	for _, err := range b.problems {
		problems = append(problems, strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "\n    "))
	}
	data := map[string]any{
		"Quick": b.quick, "Rounds": b.rounds, "Checked": b.checked, "Goals": b.goals(), "Sections": b.sections(),
		"Machine": report.Machine(), "Load": b.load, "LoadAfter": report.Load(), "Took": time.Since(b.begun).Round(time.Second).String(),
		"Versions": b.versions(ctx), "Commit": "commit " + report.Output(ctx, "git", "describe", "--always", "--dirty", "--abbrev=10"),
		"Bytes": payloadBytes, "Connections": riverConnections, "Problems": problems, "Postgres": strings.Join(postgresSettings[1:], ", "), "Cooldown": "1 ms",
	}
	var links []picture
	for name, label := range pictureLabels {
		if _, ok := pictures[name]; ok {
			links = append(links, picture{name, label})
		}
	}
	slices.SortFunc(links, func(x, y picture) int { return strings.Compare(y.File, x.File) })
	data["Pictures"] = links
	var text bytes.Buffer
	if err := page.Execute(&text, data); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if _, err := io.Copy(stdout, bytes.NewReader(text.Bytes())); err != nil {
		return err
	}
	if b.out == "" {
		return nil
	}
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return fmt.Errorf("make results folder: %w", err)
	}
	if err := os.WriteFile(filepath.Join(b.out, "engine.md"), text.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	for name, svg := range pictures {
		if err := os.WriteFile(filepath.Join(b.out, name), svg, 0o644); err != nil {
			return fmt.Errorf("write picture: %w", err)
		}
	}
	return nil
}

var pictureLabels = map[string]string{
	"engine-throughput.svg": "Jobs per second",
	"engine-latency.svg":    "Latencies, idle cost and memory",
	"engine-scaling.svg":    "Jobs per second by worker processes",
}

// pictures draws what was measured.
func (b *bench) pictures() map[string][]byte {
	reference := processingRow(1, 100)
	charts := map[string][]report.Chart{
		"engine-throughput.svg": {
			b.chart("Processed per second", reference, whole, processing, reference, rate),
			b.chart("Processed per second", processingRow(manyQueues, 100), whole, processing, processingRow(manyQueues, 100), rate),
			b.chart("Processed per second", processingRow(1, 10), whole, processing, processingRow(1, 10), rate),
			b.chart("Processed per second", processingRow(1, 1000), whole, processing, processingRow(1, 1000), rate),
			b.chart("Enqueued per second", "in bulk", whole, enqueueing, enqueueRows[2].row, rate),
			b.chart("Enqueued per second", enqueueRows[1].row, whole, enqueueing, enqueueRows[1].row, rate),
			b.chart("Enqueued per second", enqueueRows[0].row, whole, enqueueing, enqueueRows[0].row, rate),
			b.chart("Enqueued and processed per second", bothRow, whole, both, bothRow, rate),
		},
		"engine-latency.svg": {
			b.chart("Idle pick-up, p50 in ms", "less is better", decimals, pickup, "", median),
			b.chart("Idle pick-up, p99 in ms", "less is better", decimals, pickup, "", p99),
			b.chart("Lateness of delayed jobs, p50 in ms", "less is better", tenths, delayed, "", median),
			b.chart("Lateness of delayed jobs, p99 in ms", "less is better", tenths, delayed, "", p99),
			b.chart("CPU seconds per million jobs", "worker and store; less is better", tenths, processing, reference, totalCPU),
			b.chart("Redis commands per second at idle", "per replica, of ten; less is better", tenths, idle, idleRow(10), calls),
			b.chart("Bytes per waiting job", "in the store; less is better", whole, memory, "", waiting),
			b.chart("Bytes per running job", "in the worker; less is better", whole, memory, "", running),
		},
	}
	fastest := 0.0
	for f, values := range b.results {
		if f.measure == scaling && f.name == rate {
			fastest = max(fastest, slices.Max(values))
		}
	}
	for _, s := range b.contenders {
		c := report.Chart{Title: s.name, Note: "jobs processed per second", Write: whole, Most: fastest}
		for _, n := range []int{1, 2, 4, 8} {
			if figure, ok := b.figure(scaling, scalingRow(n), s.name, rate); ok {
				c.Bars = append(c.Bars, report.Bar{Label: scalingRow(n), Figure: figure, Ours: s.name == ours})
			}
		}
		charts["engine-scaling.svg"] = append(charts["engine-scaling.svg"], c)
	}
	pictures := map[string][]byte{}
	for name, list := range charts {
		list = slices.DeleteFunc(list, func(c report.Chart) bool { return len(c.Bars) == 0 })
		if len(list) > 0 {
			pictures[name] = report.Bars(pictureLabels[name], list...)
		}
	}
	return pictures
}

// chart compares the systems.
func (b *bench) chart(title, note string, write func(float64) string, measure, row, name string) report.Chart {
	c := report.Chart{Title: title, Note: note, Write: write}
	for _, s := range b.contenders {
		if figure, ok := b.figure(measure, row, s.name, name); ok {
			c.Bars = append(c.Bars, report.Bar{Label: s.name, Figure: figure, Ours: s.name == ours})
		}
	}
	return c
}

func (b *bench) versions(ctx context.Context) string {
	list := []string{runtime.Version()}
	if fields := strings.Fields(report.Output(ctx, "redis-server", "--version")); len(fields) > 2 {
		list = append(list, "Redis "+strings.TrimPrefix(fields[2], "v="))
	}
	list = append(list,
		"asynq "+report.Output(ctx, "go", "list", "-m", "-f", "{{.Version}}", "github.com/hibiken/asynq"),
		"go-redis "+report.Output(ctx, "go", "list", "-m", "-f", "{{.Version}}", "github.com/redis/go-redis/v9"))
	if slices.Contains(b.systems, bullmq) {
		list = append(list, "Node.js "+report.Output(ctx, "node", "--version"))
		list = append(list, report.NPMVersions(filepath.Join(bullmqFolder, "package.json"), "bullmq", "ioredis")...)
	}
	if slices.Contains(b.systems, river) {
		if programs, err := postgresPrograms(); err == nil {
			list = append(list, strings.TrimPrefix(report.Output(ctx, filepath.Join(programs, "postgres"), "--version"), "postgres (PostgreSQL) "))
			list[len(list)-1] = "PostgreSQL " + list[len(list)-1]
		}
		list = append(list, moduleVersions(filepath.Join(riverFolder, "go.mod"), "github.com/riverqueue/river", "github.com/jackc/pgx/v5")...)
	}
	return strings.Join(list, ", ")
}

// moduleVersions reads what a module file requires.
func moduleVersions(file string, modules ...string) (list []string) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) >= 2 && slices.Contains(modules, fields[0]) {
			list = append(list, fields[0]+" "+fields[1])
		}
	}
	return list
}
