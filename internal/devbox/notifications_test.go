package devbox

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/medicalink/postroom/tasks"
)

// binaries is a directory that TestMain makes and removes.
var binaries string

// enqueueBinary is the real program, built once.
var enqueueBinary = sync.OnceValues(func() (string, error) {
	path := filepath.Join(binaries, "enqueue")
	if out, err := exec.Command("go", "build", "-o", path, "../../cmd/enqueue").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build enqueue: %w\n%s", err, out)
	}
	return path, nil
})

// enqueueCLI runs enqueue from another shell, so to speak.
func (r *running) enqueueCLI(t *testing.T, args ...string) {
	t.Helper()
	binary, err := enqueueBinary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, args...)
	cmd.Dir, cmd.Env = t.TempDir(), []string{"REDIS_URL=" + r.redis}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("enqueue: %v\n%s", err, out)
	}
}

const bothLive = `document.querySelectorAll('[data-pane][data-state="live"]').length === 2`

// inBoth is a JavaScript expression that holds if it holds for each pane p.
func inBoth(condition string) string {
	return `[...document.querySelectorAll("[data-pane]")].every((p) => ` + condition + `)`
}

func unreadIs(n int) string {
	return inBoth(fmt.Sprintf(`p.querySelector('[data-part="count"]').textContent === "%[1]d" && p.querySelectorAll(".unread").length === %[1]d`, n))
}

func titleOnTop(title string) string {
	return inBoth(`p.querySelector(".note-title")?.textContent === ` + quoted(title))
}

// Two browsers of one user receive the same, live, on both kinds of Redis.
func TestBrowser_Notifications(t *testing.T) {
	t.Parallel()
	for kind, path := range bothKinds(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := startChild(t, path)
			tab := newBrowser(t)
			tab.look(t, 1280, 800, "light")
			tab.run(t, chromedp.Navigate(r.base+"notifications/"))
			tab.waitFor(t, isLive+" && "+bothLive)
			tab.waitFor(t, titleOnTop("Notifications work")+" && "+unreadIs(1))
			tab.run(t, chromedp.Evaluate[chromedp.Void](`window.sameDocument = true`))

			// From a shell.
			const title = `Riverside <Family> Health`
			r.enqueueCLI(t, "notification", "--user", "demo", "--title", title, "--body", "Your results are ready.\nThey are in your record.")
			tab.waitFor(t, titleOnTop(title)+" && "+unreadIs(2))

			// The other channels, with what is inside when it is opened.
			tab.waitFor(t, `document.querySelector("#arrivals .chip.good")?.textContent === "signature verified"`)
			r.enqueueCLI(t, "notification", "--user", "demo", "--title", title, "--sensitivity", "none", "--channel", "sms", "--phone", demoPhone)
			tab.waitFor(t, `document.querySelector("#arrivals .arrival-text").textContent === `+quoted(title)+` && !document.querySelector("#arrivals family")`)
			tab.run(t, click("#arrivals li:last-child summary"))
			tab.waitFor(t, `document.querySelector("#arrivals details[open] pre").textContent.includes('"notification_id"')`)

			// From the form, of its own words and by a template.
			tab.run(t, click("#send"))
			tab.waitFor(t, titleOnTop("Your results are ready")+" && "+unreadIs(3))
			tab.run(t, click(`#sources input[value="template"]`))
			tab.waitFor(t, `document.getElementById("sample").textContent.includes("HbA1c")`)
			tab.run(t, click("#send"))
			tab.waitFor(t, titleOnTop("New lab result")+" && "+unreadIs(4))
			tab.shootAll(t, "notifications-template-"+kind)

			// What is wrong is said.
			tab.run(t, click(`#sources input[value="text"]`),
				chromedp.Evaluate[chromedp.Void](`document.getElementById("title").value = ""`), click("#send"))
			tab.waitFor(t, `document.getElementById("problem").textContent.includes("title")`)

			// One is read here and gone there; then all.
			tab.run(t, click(`[data-pane="B"] .note.unread .copy`))
			tab.waitFor(t, unreadIs(3))
			tab.shootAll(t, "notifications-"+kind)

			// A browser that was away catches up.
			tab.run(t, click(`[data-pane="A"] [data-part="line"]`))
			tab.waitFor(t, `document.querySelector('[data-pane="A"]').dataset.state === "offline"`)
			r.enqueueCLI(t, "notification", "--user", "demo", "--title", "While you were away")
			tab.waitFor(t, `document.querySelector('[data-pane="B"] .note-title').textContent === "While you were away"`)
			if shown := eval[string](t, tab, `document.querySelector('[data-pane="A"] .note-title').textContent`); shown != "New lab result" {
				t.Errorf("the disconnected browser shows %q on top", shown)
			}
			tab.shoot(t, "notifications-away-"+kind)
			tab.run(t, click(`[data-pane="A"] [data-part="line"]`))
			tab.waitFor(t, titleOnTop("While you were away")+" && "+unreadIs(4))

			tab.run(t, click(`[data-pane="A"] [data-part="read-all"]`))
			tab.waitFor(t, unreadIs(0))
			if !eval[bool](t, tab, `window.sameDocument === true`) {
				t.Error("the page was loaded anew: the updates were not live")
			}

			tab.look(t, 390, 800, "light")
			if wide := eval[int](t, tab, `document.documentElement.scrollWidth`); wide > 390 {
				t.Errorf("on a phone the page is %d pixels wide", wide)
			}
			tab.assertLocal(t, r.base)
		})
	}
}

// The page is loaded again while notifications arrive, and each is there once.
func TestBrowser_NotificationsWhileLoading(t *testing.T) {
	t.Parallel()
	for kind, path := range bothKinds(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := startChild(t, path)
			producer, err := tasks.NewProducer(r.open(t))
			if err != nil {
				t.Fatal(err)
			}
			tab := newBrowser(t)
			tab.look(t, 1280, 800, "light")
			tab.run(t, chromedp.Navigate(r.base+"notifications/"))
			tab.waitFor(t, bothLive+" && "+titleOnTop("Notifications work"))

			const many = 50
			want := []string{"Notifications work"}
			for i := range many {
				want = append(want, fmt.Sprintf("Result %02d", i))
			}
			underWay, sent := make(chan struct{}), make(chan error, 1)
			go func() {
				for i, title := range want[1:] {
					if i == many/4 {
						close(underWay)
					}
					_, err := producer.SendNotification(context.WithoutCancel(t.Context()), tasks.Notification{Kind: "lab.result.ready", User: demoUser, Title: title})
					if err != nil {
						sent <- err
						return
					}
				}
				sent <- nil
			}()
			select {
			case <-underWay:
			case err := <-sent:
				t.Fatal(err)
			}
			for range 3 {
				tab.run(t, chromedp.Evaluate[chromedp.Void](`window.before = true; location.reload()`))
				tab.waitFor(t, `!window.before && `+bothLive)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			tab.waitFor(t, unreadIs(many+1))
			for _, pane := range []string{"A", "B"} {
				got := eval[[]string](t, tab, `[...document.querySelectorAll('[data-pane="`+pane+`"] .note-title')].map((n) => n.textContent)`)
				slices.Sort(got)
				if slices.Sort(want); !slices.Equal(got, want) {
					t.Errorf("browser %s shows %d: %q\nwant each once: %q", pane, len(got), got, want)
				}
			}
			tab.shootAll(t, "notifications-many-"+kind)
			tab.assertLocal(t, r.base)
		})
	}
}

func TestNotifications(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	tests := []struct {
		name, body, want string
		status           int
	}{
		{"text", `{"title":"Hello","body":"there"}`, "", http.StatusAccepted},
		{"template", `{"template":"lab-result-ready","data":{"test_name":"HbA1c","result_id":"r-1","ready_at":"2026-12-03T09:15:00Z","time_zone":"Europe/Berlin"}}`, "", http.StatusAccepted},
		{"no text", `{}`, "title", http.StatusUnprocessableEntity},
		{"data that does not fit", `{"template":"lab-result-ready","data":{}}`, "test_name", http.StatusUnprocessableEntity},
		{"an email's template", `{"template":"welcome","data":{"name":"Ada"}}`, "no such template", http.StatusNotFound},
		{"no JSON", `title=Hello`, "JSON", http.StatusBadRequest},
		{"every channel", `{"title":"Hello","also":["webhook","sms","chat"],"email":true}`, "", http.StatusAccepted},
		{"a channel that is none", `{"title":"Hello","also":["fax"]}`, "channel", http.StatusUnprocessableEntity},
		{"a channel that leaves the machine", `{"title":"Hello","also":["push"]}`, "also", http.StatusUnprocessableEntity},
		{"too long", `{"title":"` + strings.Repeat("x", maxBody) + `"}`, "too large", http.StatusBadRequest},
	}
	for _, tt := range tests {
		rec := s.do("POST", "/api/notifications", tt.body)
		if rec.Code != tt.status || !strings.Contains(rec.Body.String(), tt.want) {
			t.Errorf("%s: %d %s, want %d and %q", tt.name, rec.Code, rec.Body, tt.status, tt.want)
		}
	}

	rec := s.do("POST", "/api/notifications", `{"title":"Hello","email":true}`)
	n := s.notified[len(s.notified)-1]
	want := tasks.Step{Channel: tasks.ChannelEmail, After: tasks.Duration(emailAfter), OnlyIf: tasks.OnlyIfUnread}
	if rec.Code != http.StatusAccepted || n.User != demoUser || n.Email != demoEmail || len(n.Plan) != 2 || n.Plan[1] != want {
		t.Errorf("%d, sent %+v, want an email after a while if it is unread", rec.Code, n)
	}
	s.sendErr = errors.New("redis is away")
	if rec := s.do("POST", "/api/notifications", `{"title":"Hello"}`); rec.Code != http.StatusInternalServerError || !strings.Contains(rec.Body.String(), "redis is away") {
		t.Errorf("a failure answered %d %s", rec.Code, rec.Body)
	}
}
