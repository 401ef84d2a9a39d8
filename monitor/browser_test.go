package monitor_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// browser returns the context of a headless Chromium that talks to nobody on its
// own account.
func browser(t *testing.T) context.Context {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "headless-shell"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Fatal("no Chromium on PATH: this test looks at the dashboard in a real browser; `task setup` installs it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.WindowSize(1280, 900),
	)
	ctx, cancelAlloc := chromedp.NewExecAllocator(ctx, opts...)
	t.Cleanup(cancelAlloc)
	ctx, cancelTab := chromedp.NewContext(ctx)
	t.Cleanup(cancelTab)
	return ctx
}

func TestMonitor_dashboardInABrowser(t *testing.T) {
	t.Parallel()
	_, rdb, web := setup(t)
	fill(t, rdb)
	ctx := browser(t)

	var (
		mu       sync.Mutex
		requests []string
		problems []string
	)
	see := func(step string, err error) {
		t.Helper()
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			t.Fatalf("%s: %v\nproblems: %q\nrequests: %q", step, err, problems, requests)
		}
	}
	see("start the browser", chromedp.Listen(ctx, func(event any) {
		mu.Lock()
		defer mu.Unlock()
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			requests = append(requests, e.Request.URL)
		case *log.EventEntryAdded:
			problems = append(problems, e.Entry.Text+" "+e.Entry.URL)
		case *runtime.EventExceptionThrown:
			problems = append(problems, e.ExceptionDetails.Text)
		}
	}))
	_, err := chromedp.Call(ctx, network.Enable, network.EnableParams{})
	see("watch the network", err)
	_, err = chromedp.Call(ctx, log.Enable, cdp.Empty{})
	see("watch the log", err)
	see("open the queues", chromedp.Do(ctx,
		chromedp.Navigate(web.URL+"/monitor/"),
		chromedp.WaitVisible(`//a[text()="email:bulk"]`),
		chromedp.WaitVisible(`//a[text()="email:critical"]`),
	))
	text, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS("body")))
	see("read the queues", err)
	picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	see("take a picture", err)
	see("open a task", chromedp.Do(ctx,
		chromedp.Navigate(web.URL+"/monitor/queues/email:critical/tasks/refused"),
		chromedp.WaitVisible(`//*[contains(text(), "no such user")]`),
	))
	task, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS("body")))
	see("read the task", err)
	// For a look at it: MONITOR_SCREENSHOT=/tmp/dashboard.png go test ./monitor
	if file := os.Getenv("MONITOR_SCREENSHOT"); file != "" {
		if err := os.WriteFile(file, picture, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(requests) < 5 {
		t.Errorf("only %d requests were seen: %q", len(requests), requests)
	}
	for _, url := range requests {
		if !strings.HasPrefix(url, web.URL+"/") && !strings.HasPrefix(url, "data:") {
			t.Errorf("the browser asked %s", url)
		}
	}
	if len(problems) > 0 {
		t.Errorf("the browser complains: %q", problems)
	}
	for _, want := range []string{"email:critical", "email:bulk"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not shown:\n%s", want, text)
		}
	}
	if !strings.Contains(task, "[address]") || !strings.Contains(task, "welcome") || strings.Contains(task, canary) {
		t.Errorf("the task's page:\n%s", task)
	}
}
