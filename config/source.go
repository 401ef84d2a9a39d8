package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/joho/godotenv"

	"github.com/medicalink/postroom/rediskit"
)

// Source tells where a value comes from.
type Source string

// The sources, in order of precedence from the last to the first.
const (
	SourceDefault Source = "default"
	SourceFile    Source = ".env"
	SourceEnv     Source = "env"
	// SourceSecretFile is a file named by NAME_FILE.
	SourceSecretFile Source = "file"
)

// Secret is a value that is never printed.
type Secret = rediskit.Secret

const masked = "<secret>"

// reader finds values and collects problems.
type reader struct {
	dir      string
	known    []Variable
	env      map[string]string
	file     map[string]string
	errs     []error
	settings map[string]Setting // what was read, by name
}

func newReader(environ []string, dir string) *reader {
	r := &reader{dir: dir, known: Reference(), env: map[string]string{}, settings: map[string]Setting{}}
	for _, entry := range environ {
		if name, value, ok := strings.Cut(entry, "="); ok {
			r.env[name] = value
		}
	}
	r.readDotEnv()
	r.findMisspelt()
	return r
}

func (r *reader) readDotEnv() {
	text, err := os.ReadFile(r.path(".env"))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		r.problem(".env", SourceFile, "", "must be a readable file: "+err.Error())
		return
	}
	if r.file, err = godotenv.UnmarshalBytes(text); err == nil {
		return
	}
	// godotenv's error quotes the file, secrets included, and names no line.
	lines := slices.Collect(strings.Lines(string(text)))
	bad := 1
	for n := range lines {
		if _, err := godotenv.Unmarshal(strings.Join(lines[:n], "")); err == nil {
			bad = n + 1
		}
	}
	r.problem(".env", SourceFile, "", fmt.Sprintf("line %d must be NAME=value, # comment or empty; a value with spaces, # or $ goes between single quotes", bad))
}

// findMisspelt reports unknown names. The environment belongs to others too
// (Kubernetes sets REDIS_PORT_6379_TCP and the like for a Service named redis),
// so there only a name that is nearly one of ours counts.
func (r *reader) findMisspelt() {
	var names []string
	for _, v := range r.known {
		names = append(names, v.Name)
		if v.Secret {
			names = append(names, v.Name+"_FILE")
		}
	}
	for _, name := range sortedKeys(r.file) {
		if slices.Contains(names, name) {
			continue
		}
		near, _ := nearest(name, names)
		r.problem(name, SourceFile, "", "is not a setting of postroom; did you mean "+near+"?")
	}
	for _, name := range sortedKeys(r.env) {
		if slices.Contains(names, name) {
			continue
		}
		near, d := nearest(name, names)
		prefix, rest, _ := strings.Cut(near, "_")
		// Any two letters are within two edits of the DB of REDIS_DB.
		limit := 2
		if rest != "" {
			limit = min(limit, len(rest)-1)
		}
		if strings.HasPrefix(name, prefix[:min(len(prefix), 5)]) && d <= limit {
			r.problem(name, SourceEnv, "", "is not a setting of postroom; did you mean "+near+"?")
		}
	}
}

// text returns the value of a variable, or its default.
func (r *reader) text(name string) string {
	i := slices.IndexFunc(r.known, func(v Variable) bool { return v.Name == name })
	v := r.known[i] // every name read is in the Reference: a test holds that
	value, source := r.lookUp(v)
	if value == "" {
		value, source = v.Default, SourceDefault
	}
	s := Setting{Name: name, Value: value, Source: source}
	if v.Secret && value != "" {
		s.Value = masked
		if strings.HasSuffix(name, "_URL") {
			s.Value = maskURLs(value)
		}
	}
	r.settings[name] = s
	return value
}

func (r *reader) lookUp(v Variable) (string, Source) {
	for _, layer := range []struct {
		values map[string]string
		source Source
	}{{r.env, SourceEnv}, {r.file, SourceFile}} {
		value := layer.values[v.Name]
		if v.Name != "REDIS_PASSWORD" && v.Name != "REDIS_SENTINEL_PASSWORD" { // where a blank may be meant
			value = strings.TrimSpace(value)
		}
		path := ""
		if v.Secret {
			path = layer.values[v.Name+"_FILE"]
		}
		switch {
		case value != "" && path != "":
			r.problem(v.Name, layer.source, "", "is set, and so is "+v.Name+"_FILE: set one of them")
			return value, layer.source
		case value != "":
			return value, layer.source
		case path != "":
			return r.readSecret(v.Name, layer.source, path), SourceSecretFile
		}
	}
	return "", SourceDefault
}

func (r *reader) readSecret(name string, source Source, path string) string {
	secret, err := rediskit.ReadSecret(r.path(path))
	if err != nil {
		r.problem(name+"_FILE", source, path, err.Error())
	}
	return string(secret)
}

// isSet tells whether the variable has a value of its own; text must have read it.
func (r *reader) isSet(name string) bool { return r.settings[name].Source != SourceDefault }

// filePath returns the path in a variable, which must be a file, or a directory if dir.
func (r *reader) filePath(name string, dir bool) string {
	value := r.text(name)
	if value == "" {
		return ""
	}
	path := r.path(value)
	info, err := os.Stat(path)
	switch {
	case err != nil:
		r.wrong(name, "want a path that exists: "+pathCause(err))
	case dir && !info.IsDir():
		r.wrong(name, "want a directory")
	case !dir && info.IsDir():
		r.wrong(name, "want a file, not a directory")
	}
	return path
}

func (r *reader) path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(r.dir, p)
}

// wrong reports a variable that text has read.
func (r *reader) wrong(name, want string) {
	s := r.settings[name]
	got := s.Value
	if i := slices.IndexFunc(r.known, func(v Variable) bool { return v.Name == name }); r.known[i].Secret && got != "" {
		got = masked
	}
	r.problem(name, s.Source, got, want)
}

func (r *reader) problem(name string, source Source, got, want string) {
	r.errs = append(r.errs, &Error{Name: name, Source: source, Got: got, Want: want})
}

// pathCause drops the path, which the caller shows already.
func pathCause(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err.Error()
	}
	return err.Error()
}

// nearest returns the name with the smallest edit distance.
func nearest(name string, names []string) (string, int) {
	best, least := "", len(name)+100
	for _, candidate := range names {
		if d := distance(name, candidate); d < least {
			best, least = candidate, d
		}
	}
	return best, least
}

// distance is Levenshtein's: insertions, deletions and substitutions.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
