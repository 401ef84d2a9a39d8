package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/medicalink/postroom"

// goPackage is the part of `go list -json` that the rules read.
type goPackage struct {
	ImportPath string
	Dir        string
	Name       string
	Standard   bool
	GoFiles    []string
	CgoFiles   []string
	Imports    []string
	Deps       []string
}

// house lists every package of the module and all it is built of, without tests, once for all rules.
var house = sync.OnceValues(func() (map[string]goPackage, error) {
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,Name,Standard,GoFiles,CgoFiles,Imports,Deps", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list packages: %w: %s", err, stderr.String())
	}
	packages := map[string]goPackage{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages, nil
		}
		if err != nil {
			return nil, fmt.Errorf("decode package: %w", err)
		}
		packages[p.ImportPath] = p
	}
})

func load(t *testing.T) map[string]goPackage {
	t.Helper()
	packages, err := house()
	if err != nil {
		t.Fatal(err)
	}
	return packages
}

// ours returns the module's own packages with their path inside the module.
func ours(packages map[string]goPackage) map[string]goPackage {
	own := map[string]goPackage{}
	for path, p := range packages {
		if path == module || strings.HasPrefix(path, module+"/") {
			own[strings.TrimPrefix(strings.TrimPrefix(path, module), "/")] = p
		}
	}
	return own
}

// isIn tells whether path is room or lies inside it.
func isIn(path, room string) bool { return path == room || strings.HasPrefix(path, room+"/") }

// floors is the house from top to bottom. A package imports only from floors below its own, or from its own room
// (mailer may have sub-packages; it may not know the ledger).
var floors = [][]string{
	{"cmd", "examples", "bench"},
	{"config", "internal/cli", "internal/devbox"},
	{"internal/worker", "realtime"},
	{"internal/engine", "internal/mailer", "internal/notifier", "internal/ledger", "internal/digest", "internal/audit", "templates", "monitor"},
	{"internal/inbox", "internal/egress", "preferences"},
	{"rediskit", "tasks"},
	{"internal/lifecycle", "internal/wake"},
}

func place(path string) (floor int, room string, found bool) {
	for floor, rooms := range floors {
		for _, room := range rooms {
			if isIn(path, room) {
				return floor, room, true
			}
		}
	}
	return 0, "", false
}

func TestImports_PointDown(t *testing.T) {
	t.Parallel()
	for path, p := range ours(load(t)) {
		if isIn(path, "internal/testenv") || isIn(path, "internal/archtest") {
			continue // test code: may use everything, and TestImports_TestServersStayInTests keeps it out of the product
		}
		floor, room, found := place(path)
		if !found {
			t.Errorf("%s has no floor: add it to the list in this test, and to ARCHITECTURE.md", path)
			continue
		}
		for _, imported := range p.Imports {
			if !isIn(imported, module) {
				continue
			}
			below := strings.TrimPrefix(imported, module+"/")
			floorBelow, roomBelow, found := place(below)
			if found && room != roomBelow && floorBelow <= floor {
				t.Errorf("%s imports %s, which is not below it", path, below)
			}
		}
	}
}

func TestImports_ConfigOnlyFromTheTop(t *testing.T) {
	t.Parallel()
	for path, p := range ours(load(t)) {
		if isIn(path, "cmd") || isIn(path, "examples") || isIn(path, "config") {
			continue
		}
		if slices.Contains(p.Imports, module+"/config") {
			t.Errorf("%s imports config; only cmd/* and examples/* read the environment", path)
		}
	}
}

func TestImports_NothingPublicKnowsTheWorker(t *testing.T) {
	t.Parallel()
	for path, p := range ours(load(t)) {
		if isIn(path, "internal") || isIn(path, "cmd") {
			continue
		}
		if slices.Contains(p.Deps, module+"/internal/worker") {
			t.Errorf("%s depends on internal/worker", path)
		}
	}
}

func TestImports_TestServersStayInTests(t *testing.T) {
	t.Parallel()
	for path, p := range ours(load(t)) {
		if isIn(path, "internal/testenv") {
			continue
		}
		for _, dep := range p.Deps {
			if isIn(dep, module+"/internal/testenv") || dep == "testing" {
				t.Errorf("%s depends on %s outside its tests", path, dep)
			}
		}
	}
}

// A service imports tasks to enqueue. What that costs it is asynq and go-redis with what they need, and no more.
func TestTasks_CostsAServiceAsynqAndRedisOnly(t *testing.T) {
	t.Parallel()
	packages := load(t)
	allowed := map[string]bool{}
	for _, root := range []string{"github.com/hibiken/asynq", "github.com/redis/go-redis/v9"} {
		p, found := packages[root]
		if !found {
			t.Fatalf("%s is not among the dependencies; has tasks changed its engine?", root)
		}
		allowed[root] = true
		for _, dep := range p.Deps {
			allowed[dep] = true
		}
	}
	seen := 0
	for path, p := range ours(packages) {
		if !isIn(path, "tasks") {
			continue
		}
		seen++
		for _, dep := range p.Deps {
			if !packages[dep].Standard && !allowed[dep] && !isIn(dep, module+"/tasks") && dep != module+"/internal/wake" {
				t.Errorf("%s makes a service compile %s", path, dep)
			}
		}
	}
	if seen == 0 {
		t.Fatal("package tasks is gone")
	}
}

// main parses, loads, runs and exits; what is worth reading stands elsewhere, where it can be tested.
func TestMain_IsAFewLines(t *testing.T) {
	t.Parallel()
	const most = 60 // lines of main.go, comments and imports included
	mains := 0
	for path, p := range ours(load(t)) {
		if !isIn(path, "cmd") || p.Name != "main" {
			continue
		}
		mains++
		text, err := os.ReadFile(filepath.Join(p.Dir, "main.go"))
		if err != nil {
			t.Errorf("%s has no main.go: %v", path, err)
			continue
		}
		if lines := bytes.Count(text, []byte("\n")); lines > most {
			t.Errorf("%s/main.go has %d lines, more than %d", path, lines, most)
		}
		for _, file := range slices.Concat(p.GoFiles, p.CgoFiles) {
			text, err := os.ReadFile(filepath.Join(p.Dir, file))
			if err != nil {
				t.Fatal(err)
			}
			if file != "main.go" && bytes.Contains(text, []byte("os.Exit(")) {
				t.Errorf("%s/%s exits; only main.go does", path, file)
			}
		}
	}
	if mains == 0 {
		t.Fatal("no command under cmd/")
	}
}
