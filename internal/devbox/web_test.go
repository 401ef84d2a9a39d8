package devbox

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/tasks"
)

// site is the pages over a store and the built-in templates, without a queue.
type site struct {
	store    *store
	sent     []tasks.Email
	notified []tasks.Notification
	sendErr  error
	handler  http.Handler
	changes  *changes
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{changes: newChanges()}
	s.store = &store{changed: func() { s.changes.note(func(v *versions) { v.Inbox++ }) }}
	live, err := loadTemplates("", func() {}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	send := func(_ context.Context, e tasks.Email, _ ...tasks.Option) (tasks.Receipt, error) {
		s.sent = append(s.sent, e)
		return tasks.Receipt{ID: "1"}, s.sendErr
	}
	notify := func(_ context.Context, n tasks.Notification, _ ...tasks.Option) (tasks.Receipt, error) {
		s.notified = append(s.notified, n)
		return tasks.Receipt{ID: "2"}, cmp.Or(n.Validate(), s.sendErr)
	}
	w, err := newWeb(&mails{s.store}, &preview{templates: live, send: send},
		&notifications{templates: live, receiver: &receiver{}, send: notify, realtime: http.NotFoundHandler()}, s.changes,
		links{Commands: []command{{"One", "enqueue <x>"}}}, http.NotFoundHandler())
	if err != nil {
		t.Fatal(err)
	}
	if s.handler, err = w.handler(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) do(method, target, body string, change ...func(*http.Request)) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, "http://localhost:8080"+target, strings.NewReader(body))
	for _, c := range change {
		c(req)
	}
	rec := httptest.NewRecorder()
	s.handler.ServeHTTP(rec, req)
	return rec
}

func decode[T any](t *testing.T, rec *httptest.ResponseRecorder) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(rec.Body.Bytes(), &v); err != nil {
		t.Fatalf("answer %d is not the JSON expected: %v\n%s", rec.Code, err, rec.Body)
	}
	return v
}

func TestWeb_Host(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	tests := map[string]bool{
		"localhost": true, "localhost:8080": true, "127.0.0.1:8080": true, "127.1.2.3": true, "[::1]:8080": true, "[::1]": true,
		"evil.example": false, "evil.example:8080": false, "localhost.evil.example": false, "10.0.0.1:8080": false, "[2001:db8::1]": false, "": false,
	}
	for host, ok := range tests {
		for _, path := range []string{"/inbox/", "/api/messages", "/api/events", "/assets/style.css", "/monitor/"} {
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // or /api/events would wait for changes
			rec := s.do("GET", path, "", func(r *http.Request) { *r = *r.WithContext(ctx); r.Host = host })
			if refused := rec.Code == http.StatusMisdirectedRequest; refused == ok {
				t.Errorf("host %q, %s: status %d", host, path, rec.Code)
			}
		}
	}
}

func TestWeb_CrossOrigin(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.store.add(envelope{}, letter("a@example.com", "x", ""))
	for _, target := range []string{"DELETE /api/messages", "POST /api/templates/welcome/send", "POST /api/notifications"} {
		method, path, _ := strings.Cut(target, " ")
		for name, value := range map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"} {
			rec := s.do(method, path, `{"locale":"en","data":{"name":"Ada"}}`, func(r *http.Request) { r.Header.Set(name, value) })
			if rec.Code != http.StatusForbidden {
				t.Errorf("%s with %s: %s answered %d, want 403", target, name, value, rec.Code)
			}
		}
	}
	if l := s.store.list("", 1); l.Total != 1 || len(s.sent)+len(s.notified) != 0 {
		t.Error("a request of another site changed something")
	}
	if rec := s.do("DELETE", "/api/messages", "", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-origin") }); rec.Code != http.StatusNoContent {
		t.Errorf("our own page may delete: got %d", rec.Code)
	}
	if l := s.store.list("", 1); l.Total != 0 {
		t.Error("nothing was deleted")
	}
}

func TestWeb_Pages(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for path, word := range map[string]string{"/": "enqueue &lt;x&gt;", "/inbox/": `id="list"`, "/templates/": `id="locales"`, "/notifications/": `data-pane="B"`} {
		rec := s.do("GET", path, "")
		policy := rec.Header().Get("Content-Security-Policy")
		if rec.Code != 200 || !strings.Contains(rec.Body.String(), word) || !strings.HasPrefix(policy, "default-src 'none'; script-src 'self';") {
			t.Errorf("%s: %d, policy %q\n%s", path, rec.Code, policy, rec.Body)
		}
		if body := rec.Body.String(); strings.Contains(body, "style=") || strings.Contains(body, "<script>") || strings.Contains(body, "://") {
			t.Errorf("%s has something inline or foreign, which its policy forbids", path)
		}
	}
	for path, kind := range map[string]string{"/assets/style.css": "text/css", "/assets/inbox.js": "javascript", "/assets/icon.svg": "image/svg"} {
		if rec := s.do("GET", path, ""); rec.Code != 200 || !strings.Contains(rec.Header().Get("Content-Type"), kind) || rec.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %d, headers %v", path, rec.Code, rec.Header())
		}
	}
	if rec := s.do("GET", "/assets/pages/layout.html", ""); rec.Code != 404 {
		t.Errorf("the pages' sources are served: %d", rec.Code)
	}
}

func TestInbox(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	raw := crlf(`From: MedicaLink <no-reply@medicalink.example>
To: "Riverside <Family> Health" <ada@example.com>
Subject: A <b>letter</b>
Date: Mon, 23 Nov 2026 15:04:05 +0100
Content-Type: multipart/mixed; boundary=m

--m
Content-Type: text/html; charset=utf-8

<p>Hello</p><img src="https://tracker.example/p.gif"><script>alert(1)</script>
--m
Content-Type: image/svg+xml
Content-Disposition: attachment; filename="a\"b.svg"

<svg onload="alert(1)"/>
--m--
`)
	s.store.add(envelope{From: "bounce@medicalink.example", To: []string{"ada@example.com"}}, raw)
	s.store.add(envelope{To: []string{"b@example.com"}}, letter("b@example.com", "Second", "plain"))

	l := decode[listing](t, s.do("GET", "/api/messages?q=riverside&limit=5", ""))
	if l.Matched != 1 || l.Total != 2 || len(l.Messages) != 1 || l.Messages[0].ID != 1 || l.Messages[0].Attachments != 1 {
		t.Fatalf("search found %+v", l)
	}
	m := decode[messageView](t, s.do("GET", "/api/messages/1", ""))
	if m.Subject != "A <b>letter</b>" || m.To[0].Name != "Riverside <Family> Health" || m.Envelope.From != "bounce@medicalink.example" ||
		!m.HasHTML || m.HasText || m.Remote != 1 || len(m.Headers) != 5 || m.Size != len(raw) || m.Date == nil {
		t.Errorf("message %+v", m)
	}
	if m := decode[messageView](t, s.do("GET", "/api/messages/latest", "")); m.ID != 2 || m.Text != "plain" || m.Attachments == nil || m.Problems == nil || m.Cc == nil {
		t.Errorf("latest %+v: want message 2, its lists empty rather than null", m)
	}

	rec := s.do("GET", "/api/messages/1/html", "")
	policy := rec.Header().Get("Content-Security-Policy")
	if !strings.Contains(rec.Body.String(), "<p>Hello</p>") || !strings.HasPrefix(policy, "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; img-src data:;") ||
		strings.Contains(policy, "script") || strings.Contains(policy, "self'; img") {
		t.Errorf("HTML: %s\npolicy %s", rec.Body, policy)
	}
	rec = s.do("GET", "/api/messages/1/raw", "")
	if !bytes.Equal(rec.Body.Bytes(), raw) || rec.Header().Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("raw: %v\n%s", rec.Header(), rec.Body)
	}
	rec = s.do("GET", "/api/messages/1/raw?download=1", "")
	if rec.Header().Get("Content-Disposition") != "attachment; filename=message-1.eml" {
		t.Errorf("download: %v", rec.Header())
	}
	rec = s.do("GET", "/api/messages/1/parts/0", "")
	if d := rec.Header().Get("Content-Disposition"); rec.Body.String() != `<svg onload="alert(1)"/>` || d != `attachment; filename="a\"b.svg"` ||
		!strings.HasPrefix(rec.Header().Get("Content-Security-Policy"), "sandbox;") {
		t.Errorf("attachment: %v\n%s", rec.Header(), rec.Body)
	}

	for target, code := range map[string]int{
		"/api/messages/3": 404, "/api/messages/x": 404, "/api/messages/-1": 404, "/api/messages/2/html": 404, "/api/messages/1/parts/1": 404,
		"/api/messages/1/parts/-1": 404, "/api/messages?limit=0": 400, "/api/messages?limit=1001": 400, "/api/messages?limit=a": 400,
	} {
		if rec := s.do("GET", target, ""); rec.Code != code || decode[map[string]string](t, rec)["error"] == "" {
			t.Errorf("GET %s = %d %s, want %d and an explanation", target, rec.Code, rec.Body, code)
		}
	}
}

func TestPreview(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	list := decode[struct {
		Dir       string
		Errors    []string
		Templates []templateView
	}](t, s.do("GET", "/api/templates", ""))
	if list.Dir != "" || list.Errors == nil || len(list.Errors) > 0 || len(list.Templates) < 4 {
		t.Fatalf("templates %+v", list)
	}
	// Every template, in every locale, with its own sample.
	for _, info := range list.Templates {
		for _, locale := range info.Locales {
			input, err := json.Marshal(map[string]any{"locale": locale, "data": info.Sample})
			if err != nil {
				t.Fatal(err)
			}
			view := decode[struct {
				Email        *struct{ Subject, Text, Source, Locale, Frame string }
				Notification []noteView
			}](t, s.do("POST", "/api/templates/"+info.Name+"/render", string(input)))
			if (view.Email != nil) != info.Email || (view.Notification != nil) != info.Notification || !info.Email && !info.Notification {
				t.Fatalf("%s is listed as %+v and renders as %+v", info.Name, info, view)
			}
			if n := view.Notification; n != nil && (n[0].Text == "" || n[1].Text == "") {
				t.Errorf("%s in %s: notification %+v", info.Name, locale, n)
			}
			m := view.Email
			if m == nil {
				continue
			}
			if m.Subject == "" || m.Text == "" || m.Locale != locale {
				t.Errorf("%s in %s renders as %+v", info.Name, locale, m)
			}
			rec := s.do("GET", m.Frame, "")
			if rec.Code != 200 || !strings.Contains(rec.Body.String(), "</html>") || rec.Header().Get("Content-Security-Policy") != framePolicy {
				t.Errorf("%s in %s: frame %d %v", info.Name, locale, rec.Code, rec.Header())
			}
		}
	}
	lab := decode[struct{ Notification []noteView }](t, s.do("POST", "/api/templates/lab-result-ready/render", `{"locale":"en","data":{"test_name":"HbA1c","result_id":"r-1"}}`))
	if want := []noteView{
		{"Title in the app", "New lab result"},
		{"Message in the app", "The result of your test HbA1c is ready."},
		{"Push", "MedicaLink\nThere is something new in your record. Log in to read it."},
		{"Chat", ""},
		{"SMS", ""},
		{"Webhook data", "{\n  \"result\": \"r-1\"\n}"},
	}; !slices.Equal(lab.Notification, want) {
		t.Errorf("the notification is shown as %q, want %q", lab.Notification, want)
	}
	tests := []struct {
		name, target, body string
		code               int
	}{
		{"unknown template", "/api/templates/nope/render", `{"data":{}}`, 404},
		{"unknown template, send", "/api/templates/nope/send", `{"data":{}}`, 404},
		{"missing field", "/api/templates/welcome/render", `{"locale":"en","data":{}}`, 422},
		{"missing field of a notification", "/api/templates/lab-result-ready/render", `{"locale":"en","data":{}}`, 422},
		{"a notification, send", "/api/templates/lab-result-ready/send", `{"locale":"en","data":{"test_name":"x","result_id":"1"}}`, 404},
		{"missing field, send", "/api/templates/welcome/send", `{"locale":"en","data":{}}`, 422},
		{"not JSON", "/api/templates/welcome/render", `{`, 400},
		{"not an object", "/api/templates/welcome/render", `{"data":[1]}`, 400},
		{"too big", "/api/templates/welcome/render", `{"data":{"name":"` + strings.Repeat("x", maxBody) + `"}}`, 413},
	}
	for _, tt := range tests {
		if rec := s.do("POST", tt.target, tt.body); rec.Code != tt.code || decode[map[string]string](t, rec)["error"] == "" {
			t.Errorf("%s: %d %s, want %d and an explanation", tt.name, rec.Code, rec.Body, tt.code)
		}
	}
	if len(s.sent) > 0 {
		t.Errorf("sent %+v although the data was bad", s.sent)
	}
	if rec := s.do("POST", "/api/templates/welcome/send", `{"locale":"de","data":{"name":"Grete"}}`); rec.Code != http.StatusAccepted {
		t.Fatalf("send: %d %s", rec.Code, rec.Body)
	}
	if e := s.sent[0]; e.Template != "welcome" || e.Locale != "de" || e.Data["name"] != "Grete" || e.Validate() != nil {
		t.Errorf("sent %+v (%v)", e, e.Validate())
	}
	s.sendErr = errors.New("Redis is away")
	if rec := s.do("POST", "/api/templates/welcome/send", `{"locale":"de","data":{"name":"Grete"}}`); rec.Code != 500 || !strings.Contains(rec.Body.String(), "Redis is away") {
		t.Errorf("send without Redis: %d %s", rec.Code, rec.Body)
	}
}

func TestFrameCache(t *testing.T) {
	t.Parallel()
	var c frameCache
	first := c.put([]byte("first"))
	for i := range keepFrames {
		c.put([]byte{byte(i)})
		c.put([]byte{byte(i)}) // the same again takes no second place
	}
	if _, ok := c.get(first); ok || len(c.docs) != keepFrames || len(c.order) != keepFrames {
		t.Errorf("kept %d documents, %d in order, want %d", len(c.docs), len(c.order), keepFrames)
	}
	if doc, ok := c.get(c.put([]byte{1})); !ok || string(doc) != "\x01" {
		t.Errorf("got %q", doc)
	}
}

// The stream says at once how things stand and again after each change, and ends
// when the server stops: an open page must not keep Ctrl-C waiting.
func TestWeb_Events(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ln, err := listenWeb(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := serveWeb(ln, s.handler, zerolog.Nop())
	resp, err := http.Get("http://" + server.addr + "/api/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	next := func() (v versions) {
		t.Helper()
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				if err := json.Unmarshal([]byte(data), &v); err != nil {
					t.Fatal(err)
				}
				return v
			}
		}
		t.Fatalf("the stream ended: %v", lines.Err())
		return v
	}
	if v := next(); v.Inbox != 0 {
		t.Errorf("first state %+v", v)
	}
	for i := range 300 {
		s.store.add(envelope{}, letter("a@example.com", "x", ""))
		if i == 0 {
			if v := next(); v.Inbox == 0 {
				t.Errorf("state after a message %+v", v)
			}
		}
	}
	events := 1
	for next().Inbox < 300 {
		events++
	}
	if events > 100 {
		t.Errorf("%d events for 300 messages: they are not bundled", events)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := server.stop(ctx); err != nil {
		t.Errorf("stop with an open stream: %v", err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestListenWeb(t *testing.T) {
	t.Parallel()
	first, err := listenWeb(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := listenWeb(t.Context(), first.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	a, b := first.Addr().(*net.TCPAddr).Port, second.Addr().(*net.TCPAddr).Port
	if b <= a || b > a+nextPorts {
		t.Errorf("port %d is taken; got %d, want one of the next %d", a, b, nextPorts)
	}
	for _, addr := range []string{"nonsense", "127.0.0.1:http-alt-x"} {
		if _, err := listenWeb(t.Context(), addr); err == nil {
			t.Errorf("listens on %q", addr)
		}
	}
}

func getJSON[T any](t *testing.T, url string) T {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var v T
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		t.Fatalf("GET %s: %s: %v", url, resp.Status, err)
	}
	return v
}
