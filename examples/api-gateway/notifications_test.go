package main

import (
	"context"
	"flag"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/google/uuid"

	"github.com/medicalink/postroom/internal/inbox"
	"github.com/medicalink/postroom/internal/testenv"
)

// A picture for the eye: go test ./examples/api-gateway -run Browser -shot /tmp/page.png.
var shot = flag.String("shot", "", "write a screenshot of the page into this file")

// deliver does what a worker does with the job.
func deliver(t *testing.T, redis *testenv.RedisServer, user, title string) {
	t.Helper()
	store, err := inbox.New(redis.Open(t), inbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	_, err = store.Deliver(t.Context(), user, inbox.Entry{
		ID: id.String(), Kind: "lab.result.ready", Title: title, Body: "Dr Hopper has released it.", Action: "/?opened=result", Created: time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestGateway_Notifications(t *testing.T) {
	t.Parallel()
	redis := testenv.Redis(t)
	base, _ := start(t, redis)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	try := func(method, path, body string, want int, header ...string) http.Header {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s %s: %d, want %d", method, path, resp.StatusCode, want)
		}
		return resp.Header
	}
	if policy := try("GET", "/", "", 200).Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") {
		t.Errorf("the page's policy is %q", policy)
	}
	try("GET", "/realtime/notifications", "", 401)
	try("POST", "/notify-me", "", 401)
	try("POST", "/login", "user=404", 403)
	try("POST", "/login", "user=123", 403, "Sec-Fetch-Site", "cross-site")
	cookie := try("POST", "/login", "user=123", 303).Get("Set-Cookie")
	if !strings.Contains(cookie, "HttpOnly") || !strings.Contains(cookie, "SameSite=Lax") {
		t.Error("the cookie is open to scripts or to other sites")
	}
	try("GET", "/realtime/notifications", "", 200)
	try("POST", "/notify-me", "", 403, "Origin", "https://evil.example")
	try("POST", "/notify-me", "", 202)
	if n, err := redis.Open(t).LLen(t.Context(), "asynq:{notification:default}:pending").Result(); err != nil || n != 1 {
		keys := redis.Open(t).Keys(t.Context(), "*").Val()
		t.Errorf("%d jobs wait, %v; keys %v", n, err, keys)
	}
	address, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	former := jar.Cookies(address)
	try("POST", "/logout", "", 303)
	jar.SetCookies(address, former) // as somebody who has copied it
	try("GET", "/realtime/notifications", "", 401)
}

func TestGateway_Browser(t *testing.T) {
	t.Parallel()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "headless-shell"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Fatal("no Chromium on PATH: this test opens the page in a real browser; `task setup` installs one")
	}
	redis := testenv.Redis(t)
	base, _ := start(t, redis)
	timed, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	t.Cleanup(cancel)
	allocator, cancelAllocator := chromedp.NewExecAllocator(timed, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("disable-sync", true))...)
	t.Cleanup(cancelAllocator)
	first, cancelFirst := chromedp.NewContext(allocator)
	t.Cleanup(cancelFirst)
	waitFor := func(tab context.Context, expression string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			// An error is a page that is just being loaded.
			if ok, err := chromedp.Run(tab, chromedp.Evaluate[bool](`Boolean(`+expression+`)`)); err == nil && ok {
				return
			}
		}
		text, _ := chromedp.Run(tab, chromedp.Evaluate[string](`document.body.innerText`))
		t.Fatalf("never: %s; the page says %s", expression, text)
	}
	open := func(tab context.Context) {
		t.Helper()
		if err := chromedp.Do(tab, chromedp.Navigate(base)); err != nil {
			t.Fatal(err)
		}
	}
	click := func(tab context.Context, selector string) {
		t.Helper()
		waitFor(tab, `document.querySelector('`+selector+`')?.offsetParent`)
		if _, err := chromedp.Run(tab, chromedp.Evaluate[bool](`(document.querySelector('`+selector+`').click(), true)`)); err != nil {
			t.Fatal(err)
		}
	}
	open(first)
	click(first, `#login button[value="123"]`)
	waitFor(first, `source?.readyState === EventSource.OPEN`)
	second, cancelSecond := chromedp.NewContext(first)
	t.Cleanup(cancelSecond)
	open(second)
	waitFor(second, `source?.readyState === EventSource.OPEN`)

	const hostile = `<img src=x onerror=alert(1)> ready`
	deliver(t, redis, "123", "Your laboratory result is ready")
	deliver(t, redis, "124", "not for Ada")
	deliver(t, redis, "123", hostile)
	for _, tab := range []context.Context{first, second} {
		waitFor(tab, `document.querySelectorAll("#list .unread").length === 2 && document.getElementById("count").textContent === "2"`)
		waitFor(tab, `document.querySelector("#list a").textContent === "`+hostile+`" && !document.querySelector("#list img")`)
	}
	click(first, "#list button")
	for _, tab := range []context.Context{first, second} {
		waitFor(tab, `document.getElementById("count").textContent === "1"`)
	}
	if *shot != "" {
		picture, err := chromedp.Run(first, chromedp.CaptureScreenshot())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(*shot, picture, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	click(second, "#read-all")
	for _, tab := range []context.Context{first, second} {
		waitFor(tab, `document.getElementById("count").hidden && document.querySelectorAll("#list .read").length === 2`)
	}
	click(first, "#send")
	for deadline := time.Now().Add(30 * time.Second); redis.Open(t).Exists(t.Context(), "asynq:queues").Val() == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the button handed in no job")
		}
	}
}

// The script of the page is that of the documentation, so that it is tested there too.
func TestPage_script(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../realtime/doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "//	let source, loads = 0\n")
	code, _, _ := strings.Cut(rest, "//\n")
	if code = strings.ReplaceAll(code, "//	", ""); len(code) < 500 || !strings.Contains(string(pageJS), code) {
		t.Error("page.js is not the script of realtime/doc.go")
	}
}
