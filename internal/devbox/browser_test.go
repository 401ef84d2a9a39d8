package devbox

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/cdproto/target"
	"github.com/chromedp/chromedp"
)

// Pictures for the eye: go test ./internal/devbox -run Browser -shots /tmp/shots.
var shots = flag.String("shots", "", "write screenshots of every page into this directory")

// browserTimeout bounds everything one test does in the browser.
const browserTimeout = 90 * time.Second

// browser is a headless Chromium tab that notes every request, every exception of
// a script and everything that a page's policy forbade.
type browser struct {
	ctx context.Context //nolint:containedctx // chromedp keeps the tab in it

	mu       sync.Mutex
	requests []string
	errors   []string
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless-shell"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Fatal("no Chromium on PATH: this test looks at the pages in a real browser; `task setup` installs one")
	}
	allocator, cancelAllocator := chromedp.NewExecAllocator(t.Context(),
		chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()),
		chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("disable-extensions", true), chromedp.Flag("hide-scrollbars", true), chromedp.Flag("lang", "en-GB"),
	)
	t.Cleanup(cancelAllocator)
	timed, cancelTimed := context.WithTimeout(allocator, browserTimeout)
	t.Cleanup(cancelTimed)
	ctx, cancel := chromedp.NewContext(timed)
	t.Cleanup(func() {
		cancel() // closes the browser and waits
	})
	b := &browser{ctx: ctx}
	if err := chromedp.Listen(ctx, b.note); err != nil {
		t.Fatalf("start %s: %v", path, err)
	}
	return b
}

func (b *browser) note(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, e.Request.URL)
	case *network.EventWebSocketCreated:
		b.requests = append(b.requests, e.URL)
	case *runtime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			text += " " + e.ExceptionDetails.Exception.Description
		}
		b.errors = append(b.errors, text)
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError && strings.Contains(e.Entry.Text, "Content Security Policy") {
			b.errors = append(b.errors, e.Entry.Text+" "+e.Entry.URL)
		}
	}
}

func (b *browser) run(t *testing.T, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(b.ctx, actions...); err != nil {
		t.Fatalf("browser: %v\nerrors on the page: %q", err, b.pageErrors())
	}
}

func (b *browser) pageErrors() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.errors...)
}

// waitFor polls a JavaScript expression in the page until it is true.
func (b *browser) waitFor(t *testing.T, expression string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		// An error is a page that is just being loaded, or one that lacks an element yet.
		ok, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool](`Boolean(`+expression+`)`))
		if ok {
			return
		}
		if time.Now().After(deadline) || b.ctx.Err() != nil {
			body, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string](`document.body.innerText`))
			t.Fatalf("not within 20 s: %s (%v)\nerrors on the page: %q\nthe page says:\n%.3000s", expression, err, b.pageErrors(), body)
		}
		time.Sleep(30 * time.Millisecond)
	}
}

// eval returns the value of a JavaScript expression.
func eval[T any](t *testing.T, b *browser, expression string) T {
	t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		t.Fatalf("evaluate %s: %v", expression, err)
	}
	return v
}

// frameText returns what a message's frame shows.
func (b *browser) frameText(t *testing.T, path string) string {
	t.Helper()
	return b.inFrame(t, path, `document.body.innerText`)
}

// inFrame evaluates an expression in a message's frame. The frame is sandboxed, so
// that it has a process and a target of its own.
func (b *browser) inFrame(t *testing.T, path, expression string) string {
	t.Helper()
	var id target.ID
	var seen []string
	eventually(t, "the frame "+path+" is there", func() bool {
		infos, err := chromedp.Targets(b.ctx)
		if err != nil {
			t.Fatal(err)
		}
		seen = nil
		for _, info := range infos {
			seen = append(seen, info.Type+" "+info.URL)
			if strings.HasSuffix(info.URL, path) {
				id = info.TargetID
			}
		}
		return id != ""
	})
	ctx, cancel := chromedp.NewContext(b.ctx, chromedp.WithTargetID(id), chromedp.WithDetachOnCancel())
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string](expression))
	if err != nil {
		t.Fatalf("read the frame: %v (targets: %q)", err, seen)
	}
	return text
}

// look sets the size of the window and the colour scheme.
func (b *browser) look(t *testing.T, width, height int64, scheme string) {
	t.Helper()
	b.run(t, chromedp.EmulateViewport(width, height))
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// shoot writes a picture if pictures were asked for.
func (b *browser) shoot(t *testing.T, name string) {
	t.Helper()
	if *shots == "" {
		return
	}
	picture, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(*shots, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(*shots, name+".png"), picture, 0o644); err != nil {
		t.Fatal(err)
	}
}

// shootAll takes the page at both widths and in both colour schemes.
func (b *browser) shootAll(t *testing.T, name string) {
	t.Helper()
	if *shots == "" {
		return
	}
	for _, width := range []int64{1280, 390} {
		for _, scheme := range []string{"light", "dark"} {
			b.look(t, width, 800, scheme)
			b.run(t, chromedp.Sleep(400*time.Millisecond)) // pictures only: fonts and frames settle
			b.shoot(t, fmt.Sprintf("%s-%d-%s", name, width, scheme))
		}
	}
	b.look(t, 1280, 800, "light")
}

// assertLocal fails if anything was asked of another server than base.
func (b *browser) assertLocal(t *testing.T, base string) {
	t.Helper()
	want, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	seen := 0
	for _, raw := range b.requests {
		u, err := url.Parse(raw)
		if err != nil {
			t.Errorf("request to %q: %v", raw, err)
			continue
		}
		switch {
		case u.Scheme == "data" || u.Scheme == "blob" || raw == "about:blank":
		case u.Host != want.Host:
			t.Errorf("a page asked another server: %s", raw)
		default:
			seen++
		}
	}
	if seen == 0 {
		t.Error("no request was seen at all: is the listener attached?")
	}
	for _, e := range b.errors {
		t.Errorf("error on a page: %s", e)
	}
}
