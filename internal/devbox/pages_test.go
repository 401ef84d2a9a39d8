package devbox

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/smtp"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/medicalink/postroom/tasks"
)

// newBox starts everything but the printing, with templates that may be edited.
func newBox(t *testing.T) (b *box, base string) {
	t.Helper()
	return newBoxAt(t, "127.0.0.1:0")
}

func newBoxAt(t *testing.T, addr string) (b *box, base string) {
	t.Helper()
	cfg := testConfig()
	cfg.Addr = addr
	cfg.TemplatesDir = editable(t)
	b = &box{cfg: cfg.withDefaults()}
	t.Cleanup(func() {
		if err := b.stop(t.Context()); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	if err := b.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	server, err := b.serve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return b, "http://" + server.addr
}

func (b *box) enqueue(t *testing.T, e tasks.Email) {
	t.Helper()
	if _, err := b.producer.SendEmail(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

func click(css string) chromedp.Action[chromedp.Void] { return chromedp.Click(chromedp.CSS(css)) }

const isLive = `document.getElementById("live").dataset.state === "live"`

// quoted is s as a JavaScript string.
func quoted(s string) string {
	b, _ := json.Marshal(s) // a string always encodes
	return string(b)
}

// A mail appears in the open inbox by itself, with every part of it shown as
// what it is and never as markup of the page.
func TestBrowser_Inbox(t *testing.T) {
	t.Parallel()
	b, base := newBox(t)
	tab := newBrowser(t)
	tab.look(t, 1280, 800, "light")
	tab.run(t, chromedp.Navigate(base+"/inbox/"))
	tab.waitFor(t, isLive)
	tab.waitFor(t, `!document.getElementById("empty").hidden`)
	tab.shootAll(t, "inbox-empty")
	tab.run(t, chromedp.Evaluate[chromedp.Void](`window.sameDocument = true`))

	const clinic = `Riverside <Family> Health`
	b.enqueue(t, tasks.Email{
		To: `"` + clinic + `" <ada@example.com>`, Template: "appointment-reminder", Locale: "en",
		Data: map[string]any{
			"first_name": "Ada", "last_name": "Lovelace", "clinic": clinic,
			"appointment_at": "2026-12-03T09:15:00Z", "confirm_url": "https://portal.example.com/confirm/1",
		},
		Attachments: []tasks.Attachment{{Name: "how to get there.txt", ContentType: "text/plain", Content: []byte("second left")}},
	})
	tab.waitFor(t, `document.querySelector("#list li:nth-child(1) .row-to")?.textContent === `+quoted(clinic))
	// The first message of an empty inbox opens by itself; go by the list here.
	tab.run(t, click("#list li:nth-child(1) a"))
	tab.waitFor(t, `document.getElementById("people").textContent.includes(`+quoted(clinic)+`)`)
	if !eval[bool](t, tab, `window.sameDocument === true`) {
		t.Error("the page was loaded anew: the update was not live")
	}
	if n := eval[int](t, tab, `document.querySelectorAll("family").length`); n != 0 {
		t.Errorf("the name became %d elements of the page", n)
	}

	// What the reader sees in the frame.
	inFrame := tab.frameText(t, "/api/messages/1/html")
	if !strings.Contains(inFrame, clinic) || !strings.Contains(inFrame, "Ada") {
		t.Errorf("the frame shows %q, want the clinic's name as it is", inFrame)
	}
	tab.shootAll(t, "inbox-html")

	// Tabs, with the mouse and with the keyboard.
	tab.run(t, click("#tab-text"))
	tab.waitFor(t, `!document.getElementById("panel-text").hidden && document.getElementById("panel-html").hidden`)
	if text := eval[string](t, tab, `document.getElementById("text").innerText`); !strings.Contains(text, clinic) {
		t.Errorf("the text part shows %q", text)
	}
	tab.shootAll(t, "inbox-text")
	tab.run(t, chromedp.KeyEvent(kb.ArrowRight))
	tab.waitFor(t, `!document.getElementById("panel-headers").hidden && document.activeElement.id === "tab-headers"`)
	if headers := eval[string](t, tab, `document.getElementById("headers").innerText`); !strings.Contains(headers, "Auto-Submitted") {
		t.Errorf("the headers are %q", headers)
	}
	tab.shootAll(t, "inbox-headers")
	tab.run(t, click("#tab-source"))
	tab.waitFor(t, `document.getElementById("source").textContent.includes("Content-Type: multipart/")`)
	tab.shootAll(t, "inbox-source")
	if names := eval[string](t, tab, `document.getElementById("attachments").innerText`); !strings.Contains(names, "how to get there.txt") {
		t.Errorf("the attachments are %q", names)
	}

	// More mail, search, keys, and the address bar.
	for _, name := range []string{"Grace Hopper", "Katherine Johnson", "José Álvarez", "李小龙"} {
		b.enqueue(t, tasks.Email{To: fmt.Sprintf("%q <x@example.com>", name), Template: "welcome", Locale: "es", Data: map[string]any{"name": name}})
	}
	tab.waitFor(t, `document.querySelectorAll("#list li").length === 5 && document.querySelectorAll("#list .new").length === 4`)
	tab.shootAll(t, "inbox-list")
	tab.run(t, // Not KeyEvent: it would send the character after the key whatever the page says.
		chromedp.Evaluate[chromedp.Void](`document.activeElement.blur(); document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "/", bubbles: true}))`))
	tab.waitFor(t, `document.activeElement.id === "search"`)
	tab.run(t, chromedp.KeyEvent("hopper"))
	tab.waitFor(t, `document.querySelectorAll("#list li").length === 1 && document.getElementById("summary").textContent === "1 of 5 messages"`)
	tab.run(t, chromedp.KeyEvent("x"))
	tab.waitFor(t, `!document.getElementById("no-match").hidden`)
	tab.run(t, chromedp.Evaluate[chromedp.Void](`(() => { const s = document.getElementById("search"); s.value = ""; s.dispatchEvent(new Event("input")); s.blur(); })()`))
	tab.waitFor(t, `document.querySelectorAll("#list li").length === 5`)
	tab.run(t, chromedp.KeyEvent("k"))
	tab.waitFor(t, `location.hash !== "#m1" && document.querySelector(".row[aria-current]").hash === location.hash && document.activeElement.hash === location.hash`)
	// Not NavigateBack: it waits for a page to load, and going back here loads none.
	tab.run(t, chromedp.Evaluate[chromedp.Void](`history.back()`))
	tab.waitFor(t, `location.hash === "#m1" && document.querySelector(".row[aria-current]").hash === "#m1"`)

	// On a phone: the list or a message, never both, and no sideways scrolling.
	tab.look(t, 390, 800, "light")
	for _, view := range []string{"message", "list"} {
		tab.waitFor(t, `document.getElementById("main").dataset.shows === `+quoted(view))
		if wide := eval[int](t, tab, `document.documentElement.scrollWidth`); wide > 390 {
			t.Errorf("on a phone the %s is %d pixels wide", view, wide)
		}
		if view == "message" {
			tab.run(t, click("#back"))
		}
	}

	tab.look(t, 1280, 800, "light")
	tab.run(t, click("#clear"))
	tab.waitFor(t, `document.getElementById("confirm").open`)
	tab.shootAll(t, "inbox-delete")
	tab.run(t, click(`#confirm button[value="no"]`))
	tab.waitFor(t, `!document.getElementById("confirm").open && document.querySelectorAll("#list li").length === 5`)
	tab.run(t, click("#clear"), click(`#confirm button[value="yes"]`))
	tab.waitFor(t, `document.querySelectorAll("#list li").length === 0 && !document.getElementById("empty").hidden`)
	tab.assertLocal(t, base)
}

// Whatever a mail contains, looking at it tells nobody.
func TestBrowser_HostileMail(t *testing.T) {
	t.Parallel()
	b, base := newBox(t)
	var mu sync.Mutex
	var asked []string
	tracker := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.URL.Path)
	}))
	defer tracker.Close()
	remote := tracker.URL
	raw := crlf(`From: x@example.com
To: ada@example.com
Subject: <img src=x onerror="document.title='owned'">
Date: Mon, 23 Nov 2026 15:04:05 +0100
Content-Type: multipart/mixed; boundary=m

--m
Content-Type: text/html; charset=utf-8

<html><head><meta http-equiv="refresh" content="0;url=` + remote + `/refresh"><base href="` + remote + `/base/">
<link rel="stylesheet" href="` + remote + `/css"><link rel="prefetch" href="` + remote + `/prefetch">
<style>@import "` + remote + `/import"; body{background:url(` + remote + `/bg)} @font-face{font-family:f;src:url(` + remote + `/font)} p{font-family:f}</style>
</head><body><p>harmless text</p><img src="` + remote + `/img"><img src="relative"><video src="` + remote + `/video" poster="` + remote + `/poster"></video>
<iframe src="` + remote + `/frame"></iframe><iframe srcdoc="<script>parent.document.title='owned'</script>"></iframe><object data="` + remote + `/object"></object>
<script>parent.document.title='owned'; fetch('` + remote + `/fetch')</script><script src="` + remote + `/script"></script>
<img src=x onerror="top.location='` + remote + `/top'"><form action="` + remote + `/form"><input name=q autofocus></form><svg onload="fetch('` + remote + `/svg')"></svg>
</body></html>
--m
Content-Type: text/html; name="<b>x</b>.html"
Content-Disposition: attachment

<script>1</script>
--m--
`)
	if err := smtp.SendMail(b.catcher.addr, nil, "x@example.com", []string{"ada@example.com"}, raw); err != nil {
		t.Fatal(err)
	}
	tab := newBrowser(t)
	tab.look(t, 1280, 800, "light")
	tab.run(t, chromedp.Navigate(base+"/inbox/#m1"))
	tab.waitFor(t, `!document.getElementById("message").hidden && !document.getElementById("remote").hidden`)
	if text := tab.frameText(t, "/api/messages/1/html"); !strings.Contains(text, "harmless text") {
		t.Errorf("the frame shows %q", text)
	}
	for _, panel := range []string{"headers", "source", "html"} {
		tab.run(t, click("#tab-"+panel))
		tab.waitFor(t, `!document.getElementById("panel-`+panel+`").hidden`)
	}
	tab.shoot(t, "inbox-hostile")
	if title := eval[string](t, tab, `document.title`); !strings.Contains(title, "Inbox") {
		t.Errorf("a script of the mail ran: title %q", title)
	}
	if subject := eval[string](t, tab, `document.getElementById("subject").textContent`); subject != `<img src=x onerror="document.title='owned'">` {
		t.Errorf("subject %q", subject)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(asked) > 0 {
		t.Errorf("looking at the mail asked another server for %v", asked)
	}
}

func TestBrowser_Templates(t *testing.T) {
	t.Parallel()
	b, base := newBox(t)
	tab := newBrowser(t)
	tab.look(t, 1280, 800, "light")
	tab.run(t, chromedp.Navigate(base+"/templates/#welcome/en"))
	tab.waitFor(t, isLive)
	const subjectIs = `document.getElementById("subject").textContent === `
	tab.waitFor(t, subjectIs+quoted("Welcome to MedicaLink"))
	tab.run(t, chromedp.Evaluate[chromedp.Void](`window.sameDocument = true`))
	frame := eval[string](t, tab, `document.getElementById("html").getAttribute("src")`)
	if text := tab.frameText(t, frame); !strings.Contains(text, "Ada") {
		t.Errorf("the frame shows %q, want the sample's name", text)
	}
	tab.shootAll(t, "templates")

	// Language.
	tab.run(t, click(`#locales input[value="de"]`))
	tab.waitFor(t, `location.hash === "#welcome/de" && document.getElementById("subject").textContent !== "Welcome to MedicaLink"`)
	german, err := func() (string, error) {
		set, _ := b.templates.current()
		m, err := set.Render("welcome", "de", map[string]any{"name": "Ada"})
		return m.Subject, err
	}()
	if err != nil {
		t.Fatal(err)
	}
	tab.waitFor(t, subjectIs+quoted(german))
	tab.run(t, click(`#locales input[value="en"]`))
	tab.waitFor(t, subjectIs+quoted("Welcome to MedicaLink"))

	// Width.
	tab.run(t, click(`#widths input[value="phone"]`))
	tab.waitFor(t, `document.getElementById("html").getBoundingClientRect().width === 375`)
	tab.shootAll(t, "templates-phone")
	tab.run(t, click(`#widths input[value="desktop"]`))

	// The reader's colour scheme, whatever the developer's is.
	const dark = `String(matchMedia("(prefers-color-scheme: dark)").matches)`
	if got := tab.inFrame(t, frame, dark); got != "false" {
		t.Errorf("dark for the mail: %s, want false", got)
	}
	tab.run(t, click(`#schemes input[value="dark"]`))
	eventually(t, "the mail is told that its reader likes it dark", func() bool { return tab.inFrame(t, frame, dark) == "true" })
	tab.shootAll(t, "templates-dark-mail")
	tab.run(t, click(`#schemes input[value="light"]`))

	// A template that is a notification alone has nothing of an email to show or send.
	tab.run(t, click(`#template-list a[href="#lab-result-ready/en"]`))
	tab.waitFor(t, `!document.getElementById("panel-notification").hidden && document.getElementById("notification").textContent.includes("New lab result")`)
	for _, id := range []string{"tab-html", "panel-html", "subject-line", "send", "widths"} {
		tab.waitFor(t, `document.getElementById(`+quoted(id)+`).hidden`)
	}
	tab.shootAll(t, "templates-notification")
	tab.run(t, click(`#template-list a[href="#welcome/en"]`))
	tab.waitFor(t, `!document.getElementById("panel-html").hidden && document.getElementById("tab-notification").hidden && !document.getElementById("send").hidden`)

	// Data, good and bad.
	set := func(data string) {
		tab.run(t, chromedp.Evaluate[chromedp.Void](`(() => { const d = document.getElementById("data"); d.value = `+quoted(data)+`; d.dispatchEvent(new Event("input")); })()`))
	}
	set(`{"name": "Riverside <Family> Health"}`)
	tab.waitFor(t, `document.getElementById("text").textContent.includes("Riverside <Family> Health")`)
	set(`{"nam`)
	tab.waitFor(t, `document.getElementById("data-problem").textContent.startsWith("Not JSON yet")`)
	set(`{}`)
	tab.waitFor(t, `document.getElementById("render-error").textContent.includes("name")`)
	tab.shoot(t, "templates-data-error")
	tab.run(t, click("#reset"))
	tab.waitFor(t, `document.getElementById("render-error").hidden && document.getElementById("text").textContent.includes("Ada")`)

	// Through the real queue into the inbox.
	tab.run(t, click("#send"))
	tab.waitFor(t, `!document.getElementById("toast").hidden && document.getElementById("nav-count").textContent === "1"`)
	if m, ok := b.store.latest(); !ok || m.Subject != "Welcome to MedicaLink" {
		t.Errorf("the inbox got %+v", m)
	}

	// Saving a file changes the page, a bad file says where, and the worker goes on.
	file := filepath.Join(b.cfg.TemplatesDir, "welcome", "en", "subject.txt")
	edit(t, file, "Welcome", "A warm welcome")
	tab.waitFor(t, subjectIs+quoted("A warm welcome to MedicaLink"))
	edit(t, file, "A warm welcome", "{{ .nonsense")
	tab.waitFor(t, `document.getElementById("load-error-lines").textContent.includes("welcome/en/subject.txt:1")`)
	tab.waitFor(t, subjectIs+quoted("A warm welcome to MedicaLink"))
	tab.shootAll(t, "templates-load-error")
	b.enqueue(t, firstEmail())
	eventually(t, "the worker uses the last good templates", func() bool {
		m, _ := b.store.latest()
		return m.Subject == "A warm welcome to MedicaLink"
	})
	edit(t, file, "{{ .nonsense", "Welcome")
	tab.waitFor(t, `document.getElementById("load-errors").hidden && `+subjectIs+quoted("Welcome to MedicaLink"))
	if !eval[bool](t, tab, `window.sameDocument === true`) {
		t.Error("the page was loaded anew: the update was not live")
	}

	tab.look(t, 390, 800, "light")
	if wide := eval[int](t, tab, `document.documentElement.scrollWidth`); wide > 390 {
		t.Errorf("on a phone the page is %d pixels wide", wide)
	}
	tab.assertLocal(t, base)
}

func TestBrowser_StartAndDashboard(t *testing.T) {
	t.Parallel()
	b, base := newBox(t)
	b.enqueue(t, firstEmail())
	tab := newBrowser(t)
	tab.look(t, 1280, 800, "light")
	tab.run(t, chromedp.Navigate(base+"/"))
	tab.waitFor(t, `document.getElementById("card-inbox").textContent.includes("Welcome to MedicaLink")`)
	if text := eval[string](t, tab, `document.body.innerText`); !strings.Contains(text, b.redis.url()) || !strings.Contains(text, b.catcher.url()) {
		t.Errorf("the start page names no addresses: %s", text)
	}
	tab.shootAll(t, "start")
	for _, link := range eval[[]string](t, tab, `[...document.querySelectorAll("main a.card")].map((a) => a.href)`) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, link, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Close = true
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s answers %s", link, resp.Status)
		}
	}
	tab.look(t, 390, 800, "light")
	if wide := eval[int](t, tab, `document.documentElement.scrollWidth`); wide > 390 {
		t.Errorf("on a phone the page is %d pixels wide", wide)
	}
	tab.look(t, 1280, 800, "light")

	tab.run(t, click(`nav a[href="/monitor/"]`))
	tab.waitFor(t, `document.body.innerText.includes(`+quoted(tasks.EmailQueue("", tasks.Default))+`)`)
	tab.shootAll(t, "dashboard")
	tab.assertLocal(t, base)

	// The pages end with the server while they are open, and follow the next one:
	// its first message is another one, though it has the same number.
	tab.run(t, chromedp.Navigate(base+"/inbox/"))
	tab.waitFor(t, isLive+` && document.getElementById("subject").textContent === "Welcome to MedicaLink"`)
	if err := b.stop(t.Context()); err != nil {
		t.Errorf("stop with an open page: %v", err)
	}
	tab.waitFor(t, `document.getElementById("live").dataset.state === "lost"`)
	next, again := newBoxAt(t, strings.TrimPrefix(base, "http://"))
	if again != base {
		t.Fatalf("the port of %s was not free again: got %s", base, again)
	}
	next.enqueue(t, tasks.Email{To: "ada@example.com", Subject: "After the restart", Body: "Hello"})
	tab.waitFor(t, isLive+` && document.getElementById("subject").textContent === "After the restart"`)
}

// A bulk run: the newest are kept, the reader is told of the rest.
func TestBrowser_ManyMails(t *testing.T) {
	t.Parallel()
	b, base := newBox(t)
	for i := range keepMessages + 1 {
		b.store.add(envelope{To: []string{"ada@example.com"}}, letter("ada@example.com", fmt.Sprintf("Letter %d", i), "Hello"))
	}
	tab := newBrowser(t)
	tab.look(t, 1280, 800, "light")
	tab.run(t, chromedp.Navigate(base+"/inbox/"))
	tab.waitFor(t, `document.getElementById("summary").textContent === "1,000 messages · 1 older one was dropped: the inbox keeps the newest 1,000, 64 MiB at most"`)
	tab.waitFor(t, `document.querySelectorAll("#list li").length === 200`)
	tab.run(t, chromedp.Evaluate[chromedp.Void](`document.getElementById("more").click()`))
	tab.waitFor(t, `document.querySelectorAll("#list li").length === 400`)
	tab.shootAll(t, "inbox-many")
	for i := range 50 {
		b.store.add(envelope{To: []string{"ada@example.com"}}, letter("ada@example.com", fmt.Sprintf("Late %d", i), "Hello"))
	}
	tab.waitFor(t, `document.querySelector("#list .row-subject").textContent === "Late 49" && document.querySelectorAll("#list li").length === 400`)
	tab.assertLocal(t, base)
}
