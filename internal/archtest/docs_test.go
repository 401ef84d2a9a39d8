package archtest

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/medicalink/postroom/config"
)

const root = "../.."

// pages are the documents that must stay true.
func pages(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", "bench/results/*.md"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			texts[file] = string(text)
		}
	}
	if len(texts) < 5 {
		t.Fatalf("found %d documents only: are they still where this test looks?", len(texts))
	}
	return texts
}

var update = flag.Bool("update", false, "rewrite what the code makes: the settings table and .env.example")

// settingsTable finds the table by its first cell; it ends at an empty line.
var settingsTable = regexp.MustCompile(`(?s)\| Variable \|.*?\|\n(\n)`)

// The settings table is made from the code that reads the settings.
func TestReadme_SettingsAreThoseOfConfig(t *testing.T) {
	t.Parallel()
	file := filepath.Join(root, "README.md")
	readme := pages(t)[file]
	made := settingsTable.ReplaceAllLiteralString(readme, config.Table()+"\n")
	if !strings.Contains(made, config.Table()) {
		t.Fatal("README.md has no settings table")
	}
	compare(t, file, readme, made)
}

func TestExampleEnvironment_IsThatOfConfig(t *testing.T) {
	t.Parallel()
	file := filepath.Join(root, ".env.example")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, file, string(text), config.Example())
}

// compare fails when a file is not what the code makes of it, or rewrites it.
func compare(t *testing.T, file, is, made string) {
	t.Helper()
	if is == made {
		return
	}
	if !*update {
		t.Errorf("%s is older than package config; go test ./internal/archtest -update rewrites it", filepath.Base(file))
		return
	}
	if err := os.WriteFile(file, []byte(made), 0o644); err != nil {
		t.Fatal(err)
	}
}

var (
	code         = regexp.MustCompile("(?s)```.*?```|`[^`\n]*`")
	markdownLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading      = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	notInAnchor  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are the fragments under which a page's headings can be reached on a forge.
func anchors(text string) map[string]bool {
	found := map[string]bool{}
	for _, match := range heading.FindAllStringSubmatch(text, -1) {
		name := notInAnchor.ReplaceAllString(strings.ToLower(match[1]), "")
		found[strings.ReplaceAll(name, " ", "-")] = true
	}
	return found
}

func TestDocuments_LinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	texts := pages(t)
	links := 0
	for file, text := range texts {
		for _, match := range markdownLink.FindAllStringSubmatch(code.ReplaceAllString(text, ""), -1) {
			link := match[1]
			if strings.Contains(link, "://") {
				continue
			}
			links++
			path, fragment, _ := strings.Cut(link, "#")
			target := file
			if path != "" {
				target = filepath.Join(filepath.Dir(file), path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which is not there", file, link)
				continue
			}
			if fragment != "" && !anchors(texts[target])[fragment] {
				t.Errorf("%s links to %s, and there is no such heading", file, link)
			}
		}
	}
	if links == 0 {
		t.Error("found no link: has their form changed?")
	}
}
