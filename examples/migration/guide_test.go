package migration_test

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

// shared is the client of the Examples, whose service is api-gateway.
var shared *rediskit.Client

func TestMain(m *testing.M) { goleak.VerifyTestMain(withRedis{m}, testenv.IgnorePools()) }

// withRedis runs the tests beside a server that the environment names.
type withRedis struct{ m *testing.M }

func (w withRedis) Run() int {
	cfg, stop := testenv.ExampleRedis()
	defer stop()
	for name, value := range map[string]string{"SERVICE_NAME": cfg.Service, "REDIS_URL": "redis://" + cfg.Addrs[0]} {
		if err := os.Setenv(name, value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	var err error
	if shared, err = rediskit.Open(context.Background(), cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = shared.Close() }()
	return w.m.Run()
}

var (
	codeSpan = regexp.MustCompile("`([^`]+)`")
	goBlock  = regexp.MustCompile("(?s)```go\n(.*?)```")
)

// Every new call on the page is one that the Examples here make.
func TestGuide_TableIsCompiled(t *testing.T) {
	t.Parallel()
	page := mustRead(t, "../../docs/guide-services.md")
	examples := flat(mustRead(t, "example_test.go"))
	_, table, found := strings.Cut(page, "\n| old module | now |")
	if !found {
		t.Fatal("the guide has no table of old and new calls")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	rows := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if len(cells) != 2 {
			continue // the line under the heading
		}
		rows++
		calls := codeSpan.FindAllStringSubmatch(cells[1], -1)
		if len(calls) == 0 && !strings.Contains(cells[1], "](") {
			t.Errorf("the row of %s shows no call and leads nowhere", cells[0])
		}
		for _, call := range calls {
			if !strings.Contains(examples, flat(call[1])) {
				t.Errorf("no Example compiles `%s`", call[1])
			}
		}
	}
	if rows < 15 {
		t.Errorf("the table has %d rows: has its form changed?", rows)
	}
}

// So is the set-up that opens the page.
func TestGuide_SetUpIsCompiled(t *testing.T) {
	t.Parallel()
	examples := flat(mustRead(t, "example_test.go"))
	block := goBlock.FindStringSubmatch(mustRead(t, "../../docs/guide-services.md"))
	if block == nil {
		t.Fatal("the guide has no Go code")
	}
	lines := 0
	for line := range strings.Lines(block[1]) {
		line, _, _ = strings.Cut(line, " // ")
		if line = flat(line); !strings.Contains(line, "= ") {
			continue
		}
		lines++
		if !strings.Contains(examples, line) {
			t.Errorf("no Example compiles %s", line)
		}
	}
	if lines == 0 {
		t.Error("found no statement")
	}
}

func mustRead(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// flat forgets how a text is broken into lines.
func flat(text string) string { return strings.Join(strings.Fields(text), " ") }
