package realtime_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/medicalink/postroom/internal/inbox"
	"github.com/medicalink/postroom/realtime"
)

// script returns the script that the documentation of the package gives, so that it is
// the one that is tested.
func script(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if len(lines) == 0 && line != "//	let source, loads = 0\n" {
			continue
		}
		code, ok := strings.CutPrefix(line, "//	")
		if !ok {
			break
		}
		lines = append(lines, code)
	}
	if len(lines) < 20 {
		t.Fatalf("the script in doc.go has %d lines", len(lines))
	}
	return strings.Join(lines, "")
}

// page is what an app adds to the script.
const page = `<!doctype html><meta charset="utf-8"><title>inbox</title><p id="count"></p><ul id="list"></ul><script>
const entries = new Map(), errors = [], added = []
let starts = 0
window.addEventListener("error", e => errors.push(e.message))
window.addEventListener("unhandledrejection", e => errors.push(String(e.reason)))
function draw() {
  document.getElementById("count").textContent = countShown()
  document.getElementById("list").replaceChildren(...[...entries.values()].map(n => {
    const li = document.createElement("li")
    li.textContent = n.title
    return li
  }))
}
function countShown() { return [...entries.values()].filter(n => !n.read).length }
function show(list) { starts++; entries.clear(); for (const n of list.reverse()) entries.set(n.id, n); draw() }
function add(n) { if (n.replaces) entries.delete(n.replaces); added.push(n.id); entries.set(n.id, n); draw() }
function markRead(r) {
  for (const [id, n] of entries) if (r.ids?.includes(id) || r.up_to && !after(id, r.up_to)) n.read = true
  draw()
}
function after(a, b) {
  const [am, as] = a.split("-").map(Number), [bm, bs] = b.split("-").map(Number)
  return am > bm || am === bm && as > bs
}
function login() { errors.push("not logged in") }
function post(path, body) {
  return fetch("/realtime" + path, {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)})
}
const titles = () => [...entries.values()].map(n => n.title).join(" ")
`

// webSite is a site with a page for whoever has opened it as ?user=.
func webSite(t *testing.T) (*site, *httptest.Server) {
	t.Helper()
	s, _ := plain(t, realtime.Config{}, inbox.Config{})
	mux := http.NewServeMux()
	mux.Handle("/realtime/", http.StripPrefix("/realtime", s.handler))
	html := page + script(t) + "start()\n</script>"
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "user", Value: r.URL.Query().Get("user"), HttpOnly: true, SameSite: http.SameSiteLaxMode})
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte(html))
	})
	server := httptest.NewServer(mux)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return s, server
}

// tab is a page in a headless Chromium.
type tab struct {
	ctx context.Context //nolint:containedctx // chromedp keeps the tab in it
}

func browser(t *testing.T) tab {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "headless-shell"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Fatal("no Chromium on PATH: this test listens in a real browser; `task setup` installs it")
	}
	timed, cancel := context.WithTimeout(t.Context(), 2*patience)
	t.Cleanup(cancel)
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("disable-sync", true))
	allocator, cancelAllocator := chromedp.NewExecAllocator(timed, opts...)
	t.Cleanup(cancelAllocator)
	ctx, cancelTab := chromedp.NewContext(allocator)
	t.Cleanup(cancelTab)
	return tab{ctx}
}

// another returns a second tab of the same browser.
func (b tab) another(t *testing.T) tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx)
	t.Cleanup(cancel)
	return tab{ctx}
}

func (b tab) open(t *testing.T, address string) {
	t.Helper()
	if err := chromedp.Do(b.ctx, chromedp.Navigate(address)); err != nil {
		t.Fatalf("open %s: %v", address, err)
	}
}

func (b tab) eval(t *testing.T, expression string) string {
	t.Helper()
	text, err := chromedp.Run(b.ctx, chromedp.Evaluate[string](`String(`+expression+`)`))
	if err != nil {
		t.Fatalf("evaluate %s: %v", expression, err)
	}
	return text
}

// waitFor polls a JavaScript expression until it has a value.
func (b tab) waitFor(t *testing.T, expression, want string) {
	t.Helper()
	got := ""
	for deadline := time.Now().Add(patience); time.Now().Before(deadline) && b.ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		// An error is a page that is just being loaded.
		var err error
		if got, err = chromedp.Run(b.ctx, chromedp.Evaluate[string](`String(`+expression+`)`)); err == nil && got == want {
			return
		}
	}
	t.Fatalf("%s is %q, want %q; errors on the page: %s", expression, got, want, b.eval(t, "errors"))
}

func (b tab) noErrors(t *testing.T) {
	t.Helper()
	if errs := b.eval(t, "errors"); errs != "" {
		t.Errorf("errors on the page: %s", errs)
	}
}

func TestHandler_inABrowser(t *testing.T) {
	t.Parallel()
	s, server := webSite(t)
	b := browser(t)
	s.deliver(t, "ada", "before")
	b.open(t, server.URL+"/?user=ada")
	b.waitFor(t, "titles()", "before")
	s.deliver(t, "ada", "live")
	b.waitFor(t, `document.getElementById("list").innerText`, "before\nlive")
	b.waitFor(t, `document.getElementById("count").innerText`, "2")

	// Deliveries go on while the page is loaded again, and while the network fails.
	want := []string{"before", "live"}
	var wg sync.WaitGroup
	defer wg.Wait()
	step := make(chan struct{})
	for i := range 60 {
		want = append(want, fmt.Sprint(i))
	}
	wg.Go(func() {
		for i := range 60 {
			s.deliver(t, "ada", fmt.Sprint(i))
			if i%20 == 10 {
				step <- struct{}{}
			}
		}
	})
	<-step
	b.open(t, server.URL+"/?user=ada")
	<-step
	b.waitFor(t, "source?.readyState === EventSource.OPEN", "true")
	server.CloseClientConnections()
	<-step
	b.waitFor(t, "titles()", strings.Join(want, " "))
	b.waitFor(t, "countShown()", fmt.Sprint(len(want)))
	if got := b.eval(t, "added.length - new Set(added).size"); got != "0" {
		t.Errorf("%s notifications came twice: %s", got, b.eval(t, "added"))
	}
	if got := b.eval(t, "starts"); got != "1" {
		t.Errorf("the page loaded the inbox %s times: the browser should have come back with Last-Event-ID", got)
	}
	b.noErrors(t)
}

func TestHandler_tabsAgreeInABrowser(t *testing.T) {
	t.Parallel()
	s, server := webSite(t)
	a := browser(t)
	var last string
	for i := range 4 {
		last = s.deliver(t, "ada", fmt.Sprint(i))
	}
	a.open(t, server.URL+"/?user=ada")
	b := a.another(t)
	b.open(t, server.URL+"/?user=ada")
	agree := func(unread string) {
		t.Helper()
		for _, tab := range []tab{a, b} {
			tab.waitFor(t, `document.getElementById("count").innerText`, unread)
		}
	}
	agree("4")
	a.waitFor(t, "source?.readyState === EventSource.OPEN", "true")
	b.waitFor(t, "source?.readyState === EventSource.OPEN", "true")
	a.eval(t, `void post("/read", {ids: [[...entries.keys()][1]]})`)
	agree("3")
	s.deliver(t, "ada", "new")
	agree("4")
	b.eval(t, `void post("/read-all", {up_to: "`+last+`"})`)
	agree("1")
	// What was read while a page was away is known when it comes back.
	a.open(t, "about:blank")
	if n, err := s.ReadAll(t.Context(), "ada", "9999999999999-0"); err != nil || n != 0 {
		t.Fatal(n, err)
	}
	a.open(t, server.URL+"/?user=ada")
	agree("0")
	for _, tab := range []tab{a, b} {
		tab.noErrors(t)
	}
	// A page of another origin gets nothing, and marks nothing as read. Another port is
	// another origin of the same site, so that the cookie goes along.
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte("<!doctype html><title>other</title>"))
	}))
	defer other.Close()
	s.deliver(t, "ada", "secret")
	a.open(t, other.URL)
	address, err := url.JoinPath(server.URL, "realtime")
	if err != nil {
		t.Fatal(err)
	}
	a.eval(t, `(window.outcome = "", (async () => {
		const tried = []
		for (const path of ["/notifications", "/events"])
			tried.push(await fetch("`+address+`" + path, {credentials: "include"}).then(() => "read", () => "refused"))
		tried.push(await fetch("`+address+`/read-all", {method: "POST", mode: "no-cors", credentials: "include", body: '{"up_to":"9999999999999-0"}'}).then(r => r.type))
		tried.push(await new Promise(done => { const w = new WebSocket("`+address+`/ws"); w.onopen = () => done("open"); w.onerror = () => done("refused") }))
		window.outcome = tried.join(" ")
	})(), "")`)
	a.waitFor(t, "window.outcome", "refused refused opaque refused")
	if n, err := s.Unread(t.Context(), "ada"); err != nil || n != 1 {
		t.Errorf("%d unread after a request from elsewhere, %v", n, err)
	}
}
