package rediskit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"
)

// sample is what one round says of a pair: medians in µs, or calls a second.
type sample struct{ bare, ours, bareP99, oursP99 float64 }

func (s sample) ratio() float64 { return s.ours / s.bare }

// stampedeSample is what one round says of the stampede.
type stampedeSample struct {
	bareLoads, oursLoads int64
	bareTime, oursTime   time.Duration
}

// quantile returns µs.
func quantile(times []time.Duration, q float64) float64 {
	sorted := slices.Sorted(slices.Values(times))
	return float64(sorted[min(int(q*float64(len(sorted))), len(sorted)-1)].Nanoseconds()) / 1000
}

type key struct{ name, beside string }

type report struct {
	latency, throughput map[key][]sample
	stampedes           []stampedeSample
}

func newReport() *report {
	return &report{latency: make(map[key][]sample), throughput: make(map[key][]sample)}
}

// add ignores a pair that -bench left out.
func (r *report) add(table map[key][]sample, p pair, s sample) {
	if s.bare > 0 {
		k := key{p.name, p.beside}
		table[k] = append(table[k], s)
	}
}

// spread is the median of some figures with the smallest and the largest.
type spread struct{ Median, Min, Max float64 }

func spreadOf[T any](rounds []T, figure func(T) float64) spread {
	values := make([]float64, len(rounds))
	for i, r := range rounds {
		values[i] = figure(r)
	}
	slices.Sort(values)
	n := len(values)
	return spread{(values[(n-1)/2] + values[n/2]) / 2, values[0], values[n-1]}
}

type row struct {
	Name, Beside                        string
	Bare, Ours, Ratio, BareP99, OursP99 spread
}

func rows(pairs []pair, table map[key][]sample) (rows []row) {
	for _, p := range pairs {
		samples := table[key{p.name, p.beside}]
		if len(samples) == 0 {
			continue
		}
		rows = append(rows, row{
			Name: p.name, Beside: p.beside,
			Bare:    spreadOf(samples, func(s sample) float64 { return s.bare }),
			Ours:    spreadOf(samples, func(s sample) float64 { return s.ours }),
			Ratio:   spreadOf(samples, sample.ratio),
			BareP99: spreadOf(samples, func(s sample) float64 { return s.bareP99 }),
			OursP99: spreadOf(samples, func(s sample) float64 { return s.oursP99 }),
		})
	}
	return rows
}

var page = template.Must(template.New("rediskit.md").Parse(
	`# rediskit beside bare go-redis

Medians of {{.Rounds}} rounds. ours/bare is the median of the rounds' ratios, with the smallest and the largest.

## One caller: time of a call

| call | beside | bare µs | ours µs | ours/bare | bare p99 µs | ours p99 µs |
|---|---|--:|--:|--:|--:|--:|
{{range .Latency -}}
| {{.Name}} | {{.Beside}} | {{printf "%.1f" .Bare.Median}} | {{printf "%.1f" .Ours.Median}} | **{{printf "%.2f" .Ratio.Median}}** ({{printf "%.2f – %.2f" .Ratio.Min .Ratio.Max}}) | {{printf "%.0f" .BareP99.Median}} | {{printf "%.0f" .OursP99.Median}} |
{{end}}
## {{.Callers}} callers: calls a second

| call | beside | bare/s | ours/s | ours/bare |
|---|---|--:|--:|--:|
{{range .Throughput -}}
| {{.Name}} | {{.Beside}} | {{printf "%.0f" .Bare.Median}} | {{printf "%.0f" .Ours.Median}} | **{{printf "%.2f" .Ratio.Median}}** ({{printf "%.2f – %.2f" .Ratio.Min .Ratio.Max}}) |
{{end}}
## {{.Stampede}} callers of one missing key

Two clients, half of the callers each; the load takes {{.LoadTime}}. Bare is GET, load, SET.

| | bare | GetOrLoad |
|---|--:|--:|
| runs of the loader, worst round | {{printf "%.0f" .BareLoads.Max}} | **{{printf "%.0f" .OursLoads.Max}}** |
| until all have their value, ms | {{printf "%.0f" .BareTime.Median}} | {{printf "%.0f" .OursTime.Median}} |

## How to read this

- Noise: the rows "two equal calls" compare a call with itself. A difference that is not larger than the range there
  says nothing. Load average before the run: {{.LoadBefore}}, after it: {{.LoadAfter}}, on {{.Cores}} cores; the benchmark itself
  keeps about as many busy.
- Everything runs on one machine over loopback, so a round trip takes some tens of microseconds. Over a network the
  same microseconds of ours are a smaller part of a call.
- The two calls of a pair take turns, each first as often as the other, so both see the same machine. Throughput
  alternates between {{.Chunk}} calls of one and of the other.
- "+ JSON" is go-redis with the encoding and decoding of the value that ours does too; a row without it compares with
  moving the bytes only.
- "the same EVALSHA" is the very command that the limiter sends, recorded and sent with bare go-redis: what our code
  around it costs. INCR is the least that counting can cost in Redis, and no rate limit: what the script costs. Of
  100 users each may call 100 times a second.
- Redis is without persistence. The value is {{.Bytes}} bytes of JSON.
- Machine: {{.Machine}}. Versions: {{.Versions}}. {{.Commit}}.
- Repeat with ` + "`go tool -modfile=tools/go.mod task bench:rediskit`" + `.
`))

func (r *report) write(ctx context.Context, file string, latency, throughput []pair, loadBefore string) error {
	if len(r.stampedes) == 0 {
		return fmt.Errorf("write %s: it needs every benchmark; leave out -out or the pattern", file)
	}
	stampedeSpread := func(figure func(stampedeSample) float64) spread { return spreadOf(r.stampedes, figure) }
	raw, err := json.Marshal(ada)
	if err != nil {
		return err
	}
	data := map[string]any{
		"Bytes":  len(raw),
		"Rounds": *rounds, "Callers": callers, "Chunk": chunk, "Stampede": stampede, "LoadTime": loadTime,
		"Latency": rows(latency, r.latency), "Throughput": rows(throughput, r.throughput),
		"BareLoads":  stampedeSpread(func(s stampedeSample) float64 { return float64(s.bareLoads) }),
		"OursLoads":  stampedeSpread(func(s stampedeSample) float64 { return float64(s.oursLoads) }),
		"BareTime":   stampedeSpread(func(s stampedeSample) float64 { return s.bareTime.Seconds() * 1000 }),
		"OursTime":   stampedeSpread(func(s stampedeSample) float64 { return s.oursTime.Seconds() * 1000 }),
		"LoadBefore": loadBefore, "LoadAfter": loadAverage(), "Cores": runtime.NumCPU(),
		"Machine": machine(), "Versions": versions(ctx),
		"Commit": "Commit " + output(ctx, "git", "describe", "--always", "--dirty", "--abbrev=10"),
	}
	var text bytes.Buffer
	if err := page.Execute(&text, data); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return os.WriteFile(file, text.Bytes(), 0o644)
}

func machine() string {
	model := "unknown CPU"
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	return fmt.Sprintf("%d cores of %s, %s/%s, %s", runtime.NumCPU(), model, runtime.GOOS, runtime.GOARCH, time.Now().UTC().Format(time.DateOnly))
}

// loadAverage is that of the last minute: what else the machine was doing.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	average, _, _ := strings.Cut(string(text), " ")
	return average
}

func versions(ctx context.Context) string {
	server := "an unknown Redis"
	if fields := strings.Fields(output(ctx, "redis-server", "--version")); len(fields) > 2 {
		server = "Redis " + strings.TrimPrefix(fields[2], "v=")
	}
	return runtime.Version() + ", " + server + ", go-redis " + output(ctx, "go", "list", "-m", "-f", "{{.Version}}", "github.com/redis/go-redis/v9")
}

func output(ctx context.Context, name string, args ...string) string {
	text, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
}

func TestSpreadOf_MedianAndEnds(t *testing.T) {
	t.Parallel()
	itself := func(v float64) float64 { return v }
	if got, want := spreadOf([]float64{5, 1, 9, 2}, itself), (spread{Median: 3.5, Min: 1, Max: 9}); got != want {
		t.Errorf("four rounds: %+v, want %+v", got, want)
	}
	if got, want := spreadOf([]float64{5, 1, 9}, itself), (spread{Median: 5, Min: 1, Max: 9}); got != want {
		t.Errorf("three rounds: %+v, want %+v", got, want)
	}
}

func TestQuantile_IsInMicroseconds(t *testing.T) {
	t.Parallel()
	times := make([]time.Duration, 100)
	for i := range times {
		times[i] = time.Duration(100-i) * time.Millisecond
	}
	if p50, p99 := quantile(times, 0.5), quantile(times, 0.99); p50 != 51_000 || p99 != 100_000 {
		t.Errorf("median %v, 99th percentile %v", p50, p99)
	}
}
