package devbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/templates"
)

// editable copies the repository's templates to a directory that a test may edit.
func editable(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("..", "..", builtinTemplates))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// edit replaces old by new in a file as careful editors do: a new file in its place.
func edit(t *testing.T, path, old, replacement string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), old) {
		t.Fatalf("%s does not contain %q:\n%s", path, old, text)
	}
	if err := os.WriteFile(path+".new", []byte(strings.Replace(string(text), old, replacement, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func subject(t *testing.T, set *templates.Set) string {
	t.Helper()
	m, err := set.Render("welcome", "en", map[string]any{"name": "Ada"})
	if err != nil {
		t.Fatal(err)
	}
	return m.Subject
}

func TestLiveTemplates(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "link") // links are followed
	if err := os.Symlink(editable(t), dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "welcome", "en", "subject.txt")
	loads := make(chan struct{}, 100)
	l, err := loadTemplates(dir, func() { loads <- struct{}{} }, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	used := make(chan *templates.Set, 100)
	stop, err := l.watch(func(set *templates.Set) { used <- set })
	if err != nil {
		t.Fatal(err)
	}
	before, loadErr := l.current()
	if loadErr != nil {
		t.Fatal(loadErr)
	}

	edit(t, file, "Welcome", "A warm welcome")
	<-loads
	good := <-used
	if now, err := l.current(); now != good || err != nil || subject(t, good) != strings.Replace(subject(t, before), "Welcome", "A warm welcome", 1) {
		t.Errorf("after a good edit: subject %q (%v)", subject(t, now), err)
	}

	edit(t, file, "A warm welcome", "{{.nonsense}} {{")
	var bad error
	for bad == nil {
		<-loads
		_, bad = l.current()
	}
	if now, _ := l.current(); now != good {
		t.Error("a bad edit replaced the good templates")
	}
	if lines := problemLines(bad); !strings.Contains(lines[0], filepath.Join("welcome", "en", "subject.txt")+":1") {
		t.Errorf("the problems %q do not name file and line", lines)
	}

	// A directory that is made later is watched too.
	edit(t, file, "{{.nonsense}} {{", "Welcome")
	<-used
	if err := os.MkdirAll(filepath.Join(dir, "hello"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "hello"), os.DirFS(filepath.Join(dir, "welcome"))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new template is listed", func() bool {
		set, _ := l.current()
		return len(set.List()) == len(before.List())+1
	})
	if err := stop(t.Context()); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// A directory that is broken at the start must not keep the page from showing why.
func TestLoadTemplates_BrokenAtStart(t *testing.T) {
	t.Parallel()
	dir := editable(t)
	edit(t, filepath.Join(dir, "welcome", "en", "subject.txt"), "Welcome", "{{")
	l, err := loadTemplates(dir, func() {}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	set, loadErr := l.current()
	if loadErr == nil || subject(t, set) == "" {
		t.Errorf("load error %v, subject %q: want an error and the built-in templates", loadErr, subject(t, set))
	}
}
