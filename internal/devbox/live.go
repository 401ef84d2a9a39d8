package devbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/templates"
)

// settle is how long a directory must be quiet before it is loaded: editors
// write a file in several steps.
const settle = 100 * time.Millisecond

// liveTemplates are the templates of a directory that is being edited. A bad edit
// is reported and changes nothing: the last good set stays.
type liveTemplates struct {
	dir     string // "" is the built-in templates alone, which never change
	changed func() // called after every load, good or bad
	log     zerolog.Logger

	mu  sync.Mutex
	set *templates.Set
	err error // of the last load
}

// loadTemplates loads dir over the built-in templates. If dir does not load, the
// built-in templates alone are used until it does.
func loadTemplates(dir string, changed func(), log zerolog.Logger) (*liveTemplates, error) {
	l := &liveTemplates{dir: dir, changed: changed, log: log}
	l.set, l.err = templates.Load(dir)
	if l.err == nil {
		return l, nil
	}
	builtin, err := templates.Load("")
	if err != nil {
		return nil, fmt.Errorf("load built-in templates: %w", err)
	}
	l.set = builtin
	log.Warn().Str("dir", dir).Err(l.err).Msg("templates do not load; using the built-in ones until they do")
	return l, nil
}

// current returns the last good set, and what is wrong with the files now.
func (l *liveTemplates) current() (*templates.Set, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.set, l.err
}

// reload loads the directory again and returns the new set, or nil if it is bad.
func (l *liveTemplates) reload() *templates.Set {
	set, err := templates.Load(l.dir)
	l.mu.Lock()
	l.err = err
	if err == nil {
		l.set = set
	}
	l.mu.Unlock()
	l.changed()
	if err != nil {
		l.log.Warn().Str("dir", l.dir).Err(err).Msg("templates do not load; the last good ones stay in use")
		return nil
	}
	return set
}

// watch reloads after every change in the directory, and hands good sets to use.
// The returned function ends it and waits.
func (l *liveTemplates) watch(use func(*templates.Set)) (stop func(context.Context) error, err error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch templates: %w", err)
	}
	if err := addTree(watcher, l.dir); err != nil {
		return nil, errors.Join(fmt.Errorf("watch templates: %w", err), watcher.Close())
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.follow(watcher, use)
	}()
	return func(context.Context) error {
		err := watcher.Close()
		<-done
		return err
	}, nil
}

func (l *liveTemplates) follow(watcher *fsnotify.Watcher, use func(*templates.Set)) {
	quiet := time.NewTimer(settle)
	quiet.Stop()
	defer quiet.Stop()
	for {
		select {
		case event, ok := <-watcher.Events:
			if !ok {
				return
			}
			if event.Op != fsnotify.Chmod {
				quiet.Reset(settle)
			}
		case err, ok := <-watcher.Errors:
			if !ok {
				return
			}
			// An overflow, say: something was missed, so look again.
			l.log.Warn().Err(err).Msg("watching the templates failed once")
			quiet.Reset(settle)
		case <-quiet.C:
			// Directories made since are watched from now on.
			if err := addTree(watcher, l.dir); err != nil && !errors.Is(err, fsnotify.ErrClosed) {
				l.log.Warn().Err(err).Msg("not every directory of the templates is watched")
			}
			if set := l.reload(); set != nil {
				use(set)
			}
		}
	}
}

// addTree watches dir and every directory in it; watching one twice is harmless.
func addTree(watcher *fsnotify.Watcher, dir string) error {
	dir, err := filepath.EvalSymlinks(dir) // the walk follows none
	if err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != dir:
			return nil // removed meanwhile
		case err != nil:
			return err
		case !entry.IsDir():
			return nil
		case path != dir && strings.HasPrefix(entry.Name(), "."):
			return filepath.SkipDir
		default:
			return watcher.Add(path)
		}
	})
}
