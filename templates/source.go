package templates

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"
)

//go:embed builtin
var builtin embed.FS

// The two folders that are not templates.
const (
	layoutDir  = "layout"
	localesDir = "locales"
)

// maxFile is the most a single file may hold, in bytes.
const maxFile = 1 << 20

// file is one source file, wherever it came from.
type file struct {
	display string // what an error calls it
	data    string
}

// tree maps slash-separated paths such as "welcome/en/body.html" to files.
type tree map[string]file

// readSources reads the embedded files and lays those of dir over them.
func readSources(dir string) (tree, error) {
	sub, err := fs.Sub(builtin, "builtin")
	if err != nil {
		return nil, fmt.Errorf("open built-in templates: %w", err)
	}
	files, err := readTree(sub, "builtin")
	if err != nil || dir == "" {
		return files, err
	}
	own, err := readTree(os.DirFS(dir), dir)
	if err != nil {
		return nil, err
	}
	// Remove what the directory replaces as a whole before adding.
	replaced := map[string]bool{}
	for name := range own {
		folder, rest, _ := strings.Cut(name, "/")
		if folder == layoutDir || folder == localesDir {
			continue
		}
		if rest == "schema.json" {
			replaced[folder] = true // its own contract: nothing of the old one fits
		}
		replaced[partsOf(folder, rest)] = true
	}
	for name := range files {
		folder, rest, _ := strings.Cut(name, "/")
		if replaced[folder] || replaced[partsOf(folder, rest)] {
			delete(files, name)
		}
	}
	maps.Copy(files, own)
	return files, nil
}

// partsOf names the files that replace each other as a whole: the email of a locale, or
// its notification. Any other file replaces the one of its own name.
func partsOf(folder, rest string) string {
	locale, _, inLocale := strings.Cut(rest, "/")
	switch email, notification := kindOf(rest); {
	case inLocale && email:
		return folder + "/" + locale + " email"
	case inLocale && notification:
		return folder + "/" + locale + " notification"
	}
	return folder + "/" + rest
}

// readTree reads every file below fsys. It follows symbolic links, because
// that is how Kubernetes mounts a ConfigMap, and skips what editors leave.
func readTree(fsys fs.FS, display string) (tree, error) {
	files := tree{}
	var walk func(dir string, depth int) error
	walk = func(dir string, depth int) error {
		entries, err := fs.ReadDir(fsys, dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			name := e.Name()
			if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") || strings.HasSuffix(name, "~") {
				continue
			}
			if depth == 0 && strings.HasSuffix(name, ".md") {
				continue // notes for the authors
			}
			full := path.Join(dir, name)
			info, err := fs.Stat(fsys, full)
			switch {
			case err != nil:
				return err
			case info.IsDir() && depth < 2:
				if err := walk(full, depth+1); err != nil {
					return err
				}
			case info.IsDir():
				return fmt.Errorf("%s: folders are nested too deeply", full)
			case info.Size() > maxFile:
				return fmt.Errorf("%s: larger than %d bytes", full, maxFile)
			default:
				data, err := fs.ReadFile(fsys, full)
				if err != nil {
					return err
				}
				text := strings.TrimPrefix(string(data), "\ufeff")
				files[full] = file{
					display: filepath.Join(display, filepath.FromSlash(full)),
					data:    strings.ReplaceAll(text, "\r\n", "\n"),
				}
			}
		}
		return nil
	}
	if err := walk(".", 0); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read templates: %s is not a directory that can be read: %w", display, err)
		}
		return nil, fmt.Errorf("read templates in %s: %w", display, err)
	}
	return files, nil
}
