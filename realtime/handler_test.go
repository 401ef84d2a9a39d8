package realtime_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/inbox"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/realtime"
	"github.com/medicalink/postroom/rediskit"
)

func TestHandler_liveAndReplay(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		s := open(t, client, realtime.Config{}, inbox.Config{})
		each(t, func(t *testing.T, tr transport) {
			user := "ada." + tr.name
			first := s.deliver(t, user, "a")
			s.deliver(t, user, "b")
			s.deliver(t, "grace", "not for ada")

			news := tr.listen(t, s, user, "")
			news.until(t, "unread")
			all := tr.listen(t, s, user, inbox.Start)
			if got := all.titles(t, 2); got != "a b" {
				t.Errorf("from the start: %s", got)
			}
			all.until(t, "unread")
			rest := tr.listen(t, s, user, first)
			if got := rest.titles(t, 1); got != "b" {
				t.Errorf("after the first: %s", got)
			}
			rest.until(t, "unread")

			id := newID(t)
			d := s.deliverEntry(t, user, inbox.Entry{ID: id, Title: "c", Body: "zwei\nZeilen", Action: "/results"})
			for _, l := range []*listener{news, all, rest} {
				if l.unread != 2 {
					t.Errorf("%d unread at the beginning", l.unread)
				}
				n := l.notification(t)
				created, err := time.Parse(time.RFC3339, fmt.Sprint(n["created_at"]))
				if err != nil || time.Since(created) > patience {
					t.Errorf("created %v, %v", n["created_at"], err)
				}
				delete(n, "created_at")
				want := map[string]any{
					"id": d.Position, "notification_id": id, "kind": "lab.result.ready", "title": "c",
					"body": "zwei\nZeilen", "action": "/results", "category": "lab",
				}
				if fmt.Sprint(n) != fmt.Sprint(want) {
					t.Errorf("got %v, want %v", n, want)
				}
				if l.until(t, "unread"); l.unread != 3 {
					t.Errorf("%d unread", l.unread)
				}
			}
		})
	})
}

// What arrives while a client connects and reads the stream comes once, in order.
func TestHandler_replayMeetsLive(t *testing.T) {
	t.Parallel()
	s, _ := plain(t, realtime.Config{Buffer: 1000}, inbox.Config{MaxEntries: 1000})
	each(t, func(t *testing.T, tr transport) {
		const total = 300
		user := "ada." + tr.name
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			for i := range total {
				s.deliver(t, user, fmt.Sprint(i))
			}
		})
		var want []string
		for i := range total {
			want = append(want, fmt.Sprint(i))
		}
		// Each comes while the deliveries go on.
		var clients sync.WaitGroup
		for range 5 {
			clients.Go(func() {
				l := tr.listen(t, s, user, inbox.Start)
				var got []string
				for len(got) < total {
					m, err := l.any(t)
					if err != nil {
						t.Error(err)
						return
					}
					if m.Type != "notification" {
						continue
					}
					var n struct{ Title string }
					if err := json.Unmarshal(m.Data, &n); err != nil {
						t.Error(err)
					}
					got = append(got, n.Title)
				}
				if !slices.Equal(got, want) {
					t.Errorf("got %v", got)
				}
				for l.unread != total {
					if _, err := l.any(t); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		clients.Wait()
	})
}

// A browser that comes back asks for the same address again, with a newer header.
func TestHandler_lastEventIDHeaderWins(t *testing.T) {
	t.Parallel()
	s, _ := plain(t, realtime.Config{}, inbox.Config{})
	a := s.deliver(t, "ada", "a")
	b := s.deliver(t, "ada", "b")
	s.deliver(t, "ada", "c")
	l := &listener{stream: openSSEWith(t, s, "/events?user=ada&last_event_id="+a, http.Header{"Last-Event-Id": {b}})}
	defer l.close()
	if got := l.titles(t, 1); got != "c" {
		t.Errorf("got %s", got)
	}
}

func TestHandler_gapResets(t *testing.T) {
	t.Parallel()
	s, _ := plain(t, realtime.Config{}, inbox.Config{MaxEntries: 3})
	each(t, func(t *testing.T, tr transport) {
		user := "ada." + tr.name
		first := s.deliver(t, user, "0")
		for i := range 5 {
			s.deliver(t, user, fmt.Sprint(i+1))
		}
		for _, after := range []string{first, "9999999999999-0", "nonsense", "5-0"} {
			l := tr.listen(t, s, user, after)
			if m := l.until(t, "reset"); string(m.Data) != "{}" {
				t.Errorf("reset %s", m.Data)
			}
			if l.until(t, "unread"); l.unread != 3 {
				t.Errorf("%d unread", l.unread)
			}
			s.deliver(t, user, "live")
			if got := l.titles(t, 1); got != "live" {
				t.Errorf("after the reset: %s", got)
			}
			l.close()
		}
		if got := s.handler.Stats(); got.Resets < 4 || got.Replayed != 0 {
			t.Errorf("stats %+v", got)
		}
	})
}

// A message of the channel is lost without anybody noticing: the next one tells.
func TestHandler_lostMessage(t *testing.T) {
	t.Parallel()
	client := named(t, testenv.Redis(t).Config())
	s := open(t, client, realtime.Config{}, inbox.Config{})
	each(t, func(t *testing.T, tr transport) {
		user := "ada." + tr.name
		l := tr.listen(t, s, user, inbox.Start)
		l.until(t, "unread")
		s.deliver(t, user, "a")
		if got := l.titles(t, 1); got != "a" {
			t.Errorf("got %s", got)
		}
		if err := client.XAdd(t.Context(), &redis.XAddArgs{
			Stream: "postroom:inbox:{staging:" + user + "}", Values: []any{"n", newID(t), "c", `{"title":"lost"}`},
		}).Err(); err != nil {
			t.Fatal(err)
		}
		s.deliver(t, user, "b")
		if got := l.titles(t, 2); got != "lost b" {
			t.Errorf("got %s", got)
		}
	})
}

// After a lost subscription clients catch up at once, not with the next delivery.
func TestHandler_lostSubscription(t *testing.T) {
	t.Parallel()
	client := named(t, testenv.Redis(t).Config())
	s := open(t, client, realtime.Config{}, inbox.Config{})
	l := transports[0].listen(t, s, "ada", inbox.Start)
	l.until(t, "unread")
	if err := client.XAdd(t.Context(), &redis.XAddArgs{
		Stream: "postroom:inbox:{staging:ada}", Values: []any{"n", newID(t), "c", `{"title":"meanwhile"}`},
	}).Err(); err != nil {
		t.Fatal(err)
	}
	if err := client.Do(t.Context(), "CLIENT", "KILL", "TYPE", "pubsub").Err(); err != nil {
		t.Fatal(err)
	}
	if got := l.titles(t, 1); got != "meanwhile" {
		t.Errorf("got %s", got)
	}
	if got := s.handler.Stats(); got.Gaps != 1 || got.Replayed != 1 {
		t.Errorf("stats %+v", got)
	}
}

func TestHandler_tabsAgree(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		s := open(t, client, realtime.Config{}, inbox.Config{})
		a, b := transports[0].listen(t, s, "ada", inbox.Start), transports[1].listen(t, s, "ada", inbox.Start)
		one, two, three := s.deliver(t, "ada", "1"), s.deliver(t, "ada", "2"), s.deliver(t, "ada", "3")
		both := []*listener{a, b}
		for _, l := range both {
			l.titles(t, 3)
			for l.unread != 3 {
				l.until(t, "unread")
			}
		}
		agree := func(data string, unread int) {
			t.Helper()
			for _, l := range both {
				if m := l.until(t, "read"); string(m.Data) != data {
					t.Errorf("read %s, want %s", m.Data, data)
				}
				if l.until(t, "unread"); l.unread != unread {
					t.Errorf("%d unread, want %d", l.unread, unread)
				}
			}
		}
		body := fmt.Sprintf(`{"ids":["%s"]}`, two)
		for range 2 { // the second call changes nothing and tells nobody
			if status, answer := s.call(t, "POST", "/read?user=ada", body); status != 200 || answer != "{\"unread\":2}\n" {
				t.Errorf("read: %d %s", status, answer)
			}
		}
		agree(body, 2)
		socket := b.stream.(*socketStream)
		if err := socket.conn.Write(socket.ctx, websocket.MessageText, fmt.Appendf(nil, `{"type":"read","ids":["%s"]}`, one)); err != nil {
			t.Fatal(err)
		}
		agree(fmt.Sprintf(`{"ids":["%s"]}`, one), 1)
		if status, answer := s.call(t, "POST", "/read-all?user=ada", fmt.Sprintf(`{"up_to":"%s"}`, two)); status != 200 || answer != "{\"unread\":1}\n" {
			t.Errorf("read-all: %d %s", status, answer)
		}
		if err := socket.conn.Write(socket.ctx, websocket.MessageText, fmt.Appendf(nil, `{"type":"read_all","up_to":"%s"}`, three)); err != nil {
			t.Fatal(err)
		}
		agree(fmt.Sprintf(`{"up_to":"%s"}`, three), 0)
		if status, answer := s.call(t, "GET", "/unread?user=ada", ""); status != 200 || answer != "{\"unread\":0}\n" {
			t.Errorf("unread: %d %s", status, answer)
		}
	})
}

func TestHandler_collapse(t *testing.T) {
	t.Parallel()
	s, _ := plain(t, realtime.Config{}, inbox.Config{})
	each(t, func(t *testing.T, tr transport) {
		user := "ada." + tr.name
		l := tr.listen(t, s, user, inbox.Start)
		l.until(t, "unread")
		first := s.deliverEntry(t, user, inbox.Entry{Title: "place 3", Collapse: "queue"})
		s.deliverEntry(t, user, inbox.Entry{Title: "place 2", Collapse: "queue"})
		if n := l.notification(t); n["replaces"] != nil {
			t.Errorf("the first: %v", n)
		}
		if n := l.notification(t); n["replaces"] != first.Position {
			t.Errorf("the second: %v, want it to replace %s", n, first.Position)
		}
		if l.until(t, "unread"); l.unread != 1 {
			t.Errorf("%d unread", l.unread)
		}
		// Whoever comes now sees the second only.
		late := tr.listen(t, s, user, inbox.Start)
		if got := late.titles(t, 1); got != "place 2" {
			t.Errorf("got %s", got)
		}
	})
}

func TestHandler_expiryCloses(t *testing.T) {
	t.Parallel()
	s, _ := plain(t, realtime.Config{Authenticate: func(r *http.Request) (realtime.Identity, error) {
		id, err := byName(r)
		id.Expires = time.Now().Add(300 * time.Millisecond)
		if r.URL.Query().Get("last_event_id") == "5-0" {
			id.Expires = time.Now().Add(-time.Second)
		}
		return id, err
	}}, inbox.Config{})
	if status, _ := s.call(t, "GET", "/events?user=ada&last_event_id=5-0", ""); status != http.StatusUnauthorized {
		t.Errorf("an identity that has expired: %d", status)
	}
	each(t, func(t *testing.T, tr transport) {
		l := tr.listen(t, s, "ada", "")
		l.until(t, "unread")
		_, err := l.any(t)
		if tr.name == "WebSocket" {
			if websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
				t.Errorf("ended with %v", err)
			}
		} else if err != io.EOF { //nolint:errorlint // exactly that, the regular end
			t.Errorf("ended with %v", err)
		}
	})
}

// A client that does not read is cut, and finds everything when it comes back.
func TestHandler_slowClient(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, tr transport) {
		s, _ := plain(t, realtime.Config{Buffer: 4}, inbox.Config{MaxEntries: 1000})
		dialer := net.Dialer{}
		s.http = &http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := dialer.DialContext(ctx, network, addr)
				if tcp, ok := conn.(*net.TCPConn); ok {
					err = tcp.SetReadBuffer(8 << 10)
				}
				return conn, err
			},
		}}
		l := tr.listen(t, s, "ada", inbox.Start)
		l.until(t, "unread")
		fast := tr.listen(t, s, "ada", inbox.Start)
		fast.until(t, "unread")
		total := 0
		for ; s.handler.Stats().Cut == 0; total++ {
			if total == 900 {
				t.Fatal("the client was not cut")
			}
			s.deliverEntry(t, "ada", inbox.Entry{Title: fmt.Sprint(total), Body: strings.Repeat("x", 4000)})
			if got := fast.titles(t, 1); got != fmt.Sprint(total) {
				t.Fatalf("the one that reads got %s", got)
			}
		}
		if got := s.handler.Stats().Clients; got != 1 {
			t.Errorf("%d clients after one of two was cut", got)
		}
		seen := 0
		for { // until the connection has ended
			m, err := l.any(t)
			if err != nil {
				break
			}
			if m.Type == "notification" {
				seen++
			}
		}
		if seen >= total {
			t.Fatalf("the client saw all %d", total)
		}
		after := inbox.Start
		if seen > 0 {
			after = l.ids[seen-1]
		}
		back := tr.listen(t, s, "ada", after)
		for i := seen; i < total; i++ {
			if got := back.titles(t, 1); got != fmt.Sprint(i) {
				t.Fatalf("got %s, want %d", got, i)
			}
		}
		if got := s.handler.Stats().Replayed; got < uint64(total-seen) {
			t.Errorf("replayed %d", got)
		}
	})
}

// through delivers while disturb does its worst, and checks that a client that stays, or
// comes back, sees everything that the inbox has.
func through(t *testing.T, s *site, tr transport, user string, disturb func()) {
	t.Helper()
	l := tr.listen(t, s, user, inbox.Start)
	l.until(t, "unread")
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	begun := make(chan struct{})
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			once, done := context.WithTimeout(ctx, 5*time.Second)
			_, _ = s.Deliver(once, user, inbox.Entry{ID: newID(t), Kind: "a.b", Title: fmt.Sprint(i)}) // fails, in between
			done()
			if i == 20 {
				close(begun)
			}
			select {
			case <-time.After(time.Millisecond): // not more than the inbox holds
			case <-ctx.Done():
			}
		}
	})
	<-begun
	disturb()
	before := s.handler.Stats().Gaps
	eventually(t, "the handler is ready again", func() bool { return s.handler.Ready() == nil && s.handler.Stats().Gaps >= max(before, 1) })
	eventually(t, "deliveries succeed again", func() bool {
		_, err := s.Deliver(t.Context(), user, inbox.Entry{ID: newID(t), Kind: "a.b", Title: "again"})
		return err == nil
	})
	cancel()
	wg.Wait()
	last := s.deliver(t, user, "last")
	page, err := s.List(t.Context(), user, inbox.MaxEntries)
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := l.any(t) // which checks that each comes once
		if err != nil {
			t.Fatal(err)
		}
		if m.Type == "reset" {
			t.Log("the client was told to load the inbox again")
		}
		if m.ID == last {
			break
		}
	}
	var want []string
	for _, item := range slices.Backward(page.Items) {
		want = append(want, item.Position)
	}
	var missing []string
	for _, id := range want {
		if !slices.Contains(l.ids, id) {
			missing = append(missing, id)
		}
	}
	if len(missing) > 0 && s.handler.Stats().Resets == 0 {
		t.Errorf("of %d notifications in the inbox the client missed %v", len(want), missing)
	}
	t.Logf("%d notifications in the inbox, %d came to the client; %+v", len(want), len(l.ids), s.handler.Stats())
}

func TestHandler_redisRestarts(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, tr transport) {
		server := testenv.Redis(t, testenv.AOF())
		s := open(t, named(t, server.Config()), realtime.Config{Buffer: 1000}, inbox.Config{MaxEntries: 1000})
		through(t, s, tr, "ada", func() {
			server.Kill()
			eventually(t, "the loss shows", func() bool { return s.handler.Ready() != nil })
			// Who comes now is let in, and served when Redis is back.
			late := tr.listen(t, s, "ada", inbox.Start)
			server.Restart()
			late.until(t, "notification")
			late.close()
		})
		if got := s.handler.Stats(); got.Gaps == 0 || got.Resets != 0 {
			t.Errorf("stats %+v: want a gap, and nothing lost", got)
		}
	})
}

func TestHandler_sentinelFailover(t *testing.T) {
	t.Parallel()
	set := testenv.Sentinel(t)
	s := open(t, named(t, set.Config()), realtime.Config{Buffer: 1000}, inbox.Config{MaxEntries: 1000})
	through(t, s, transports[0], "ada", func() {
		set.KillMaster()
		eventually(t, "the loss shows", func() bool { return s.handler.Stats().Gaps > 0 })
	})
}

func TestHandler_clusterFailover(t *testing.T) {
	t.Parallel()
	cluster := testenv.Cluster(t)
	s := open(t, named(t, cluster.Config()), realtime.Config{Buffer: 1000}, inbox.Config{MaxEntries: 1000})
	through(t, s, transports[0], "ada", func() {
		cluster.KillMaster("postroom:inbox:staging") // where go-redis subscribes
		eventually(t, "the loss shows", func() bool { return s.handler.Stats().Gaps > 0 })
	})
}

func TestHandler_list(t *testing.T) {
	t.Parallel()
	s, _ := plain(t, realtime.Config{}, inbox.Config{})
	if status, body := s.call(t, "GET", "/notifications?user=ada", ""); status != 200 || body != `{"notifications":[],"unread":0,"last_id":"0-0"}`+"\n" {
		t.Errorf("an empty inbox: %d %s", status, body)
	}
	a, b := s.deliver(t, "ada", "a"), s.deliver(t, "ada", "b")
	if _, err := s.Read(t.Context(), "ada", b); err != nil {
		t.Fatal(err)
	}
	type list struct {
		Notifications []struct {
			ID, Title string
			Read      bool
		}
		Unread int
		LastID string `json:"last_id"`
	}
	for query, want := range map[string]string{
		"":         fmt.Sprintf("{[{%s b true} {%s a false}] 1 %s}", b, a, b),
		"&limit=1": fmt.Sprintf("{[{%s b true}] 1 %s}", b, b),
	} {
		resp := s.response(t, "GET", "/notifications?user=ada"+query, "")
		var got list
		if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if fmt.Sprint(got) != want || resp.Header.Get("Cache-Control") != "no-store" || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %v, want %s; header %v", query, got, want, resp.Header)
		}
	}
}

func TestHandler_refuses(t *testing.T) {
	t.Parallel()
	s, _ := plain(t, realtime.Config{}, inbox.Config{})
	const user = "?user=ada"
	id := s.deliver(t, "ada", "a")
	ok := `{"ids":["` + id + `"]}`
	for _, c := range []struct {
		name, method, path, body string
		header                   []string
		want                     int
	}{
		{"unknown route", "GET", "/nothing" + user, "", nil, 404},
		{"the mount itself", "GET", "/" + user, "", nil, 404},
		{"method", "DELETE", "/read" + user, "", nil, 405},
		{"preflight", "OPTIONS", "/read" + user, "", []string{"Origin", "https://evil.example"}, 405},
		{"nobody", "GET", "/events", "", nil, 401},
		{"nobody", "GET", "/ws", "", nil, 401},
		{"nobody", "GET", "/notifications", "", nil, 401},
		{"nobody", "POST", "/read", ok, nil, 401},
		{"a user that cannot be", "GET", "/events?user=%7B", "", nil, 401},
		{"limit", "GET", "/notifications?user=ada&limit=0", "", nil, 400},
		{"limit", "GET", "/notifications?user=ada&limit=1001", "", nil, 400},
		{"limit", "GET", "/notifications?user=ada&limit=x", "", nil, 400},
		{"no JSON", "POST", "/read" + user, `{"ids":`, nil, 400},
		{"no ids", "POST", "/read" + user, `{}`, nil, 400},
		{"bad id", "POST", "/read" + user, `{"ids":["x"]}`, nil, 400},
		{"no position", "POST", "/read-all" + user, `{}`, nil, 400},
		{"form", "POST", "/read" + user, ok, []string{"Content-Type", "text/plain"}, 415},
		{"form", "POST", "/read-all" + user, ok, []string{"Content-Type", ""}, 415},
		{"large", "POST", "/read" + user, `{"ids":["` + strings.Repeat("1", 40_000) + `"]}`, nil, 413},
		{"other site", "POST", "/read" + user, ok, []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"other origin", "POST", "/read" + user, ok, []string{"Origin", "https://evil.example"}, 403},
		{"other site", "GET", "/events" + user, "", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"other origin", "GET", "/ws" + user, "", []string{
			"Origin", "https://evil.example", "Connection", "Upgrade", "Upgrade", "websocket",
			"Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==",
		}, 403},
		{"no upgrade", "GET", "/ws" + user, "", nil, 426},
		{"own page", "POST", "/read" + user, ok, []string{"Sec-Fetch-Site", "same-origin"}, 200},
		{"own origin", "POST", "/read" + user, ok, []string{"Origin", strings.TrimSuffix(s.url, "/realtime")}, 200},
		{"charset", "POST", "/read" + user, ok, []string{"Content-Type", "application/json; charset=utf-8"}, 200},
		{"head", "HEAD", "/events" + user, "", nil, 200},
	} {
		status, body := s.call(t, c.method, c.path, c.body, c.header...)
		if status != c.want {
			t.Errorf("%s: %s %s: %d %s, want %d", c.name, c.method, c.path, status, body, c.want)
		}
		if strings.Contains(body, "s3cret") {
			t.Errorf("%s: the answer tells %s", c.name, body)
		}
	}
	if got := s.handler.Stats(); got.Clients != 0 || got.Failures != 0 {
		t.Errorf("stats %+v", got)
	}
}

func TestHandler_allowedOrigins(t *testing.T) {
	t.Parallel()
	const app = "https://app.example.org"
	s, _ := plain(t, realtime.Config{AllowedOrigins: []string{app}}, inbox.Config{})
	for origin, want := range map[string]int{app: 204, "https://evil.example": 403} {
		resp := s.response(t, "OPTIONS", "/read?user=ada", "", "Origin", origin, "Sec-Fetch-Site", "cross-site", "Access-Control-Request-Method", "POST")
		_ = resp.Body.Close()
		allowed := resp.Header.Get("Access-Control-Allow-Origin")
		if resp.StatusCode != want || (want == 204) != (allowed == origin && resp.Header.Get("Access-Control-Allow-Methods") == "POST") {
			t.Errorf("%s: %d, header %v", origin, resp.StatusCode, resp.Header)
		}
	}
	resp := s.response(t, "GET", "/unread?user=ada", "", "Origin", app, "Sec-Fetch-Site", "cross-site")
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Access-Control-Allow-Origin") != app || resp.Header.Get("Vary") != "Origin" ||
		resp.Header.Get("Access-Control-Allow-Credentials") != "true" {
		t.Errorf("%d, header %v", resp.StatusCode, resp.Header)
	}
	conn, _, err := websocket.Dial(t.Context(), s.url+"/ws?user=ada", &websocket.DialOptions{ //nolint:bodyclose // Dial says that it need not
		HTTPClient: s.http, HTTPHeader: http.Header{"Origin": {app}},
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.CloseNow()
}

func TestHandler_limits(t *testing.T) {
	t.Parallel()
	s, _ := plain(t, realtime.Config{MaxConnections: 3, MaxPerUser: 2}, inbox.Config{})
	transports[0].listen(t, s, "ada", "").until(t, "unread")
	second := transports[1].listen(t, s, "ada", "")
	second.until(t, "unread")
	for _, path := range []string{"/events", "/ws"} {
		if status, _ := s.call(t, "GET", path+"?user=ada", ""); status != http.StatusTooManyRequests {
			t.Errorf("a third of the user on %s: %d", path, status)
		}
	}
	third := transports[0].listen(t, s, "grace", "")
	third.until(t, "unread")
	if status, _ := s.call(t, "GET", "/events?user=alan", ""); status != http.StatusServiceUnavailable {
		t.Errorf("a fourth: %d", status)
	}
	second.close()
	eventually(t, "the place is free", func() bool { return s.handler.Stats().Clients == 2 })
	transports[0].listen(t, s, "ada", "").until(t, "unread")
}

func TestHandler_heartbeat(t *testing.T) {
	t.Parallel()
	s, _ := plain(t, realtime.Config{Heartbeat: 20 * time.Millisecond}, inbox.Config{})
	l := openSSE(t, s, "/events?user=ada")
	defer l.close()
	for beats := 0; beats < 3; {
		m, err := l.next(t)
		if err != nil {
			t.Fatal(err)
		}
		if m.Type == ":" {
			beats++
		}
	}
	// A WebSocket's client answers a ping only while it reads, so a delivery behind
	// several pings shows that they were answered.
	socket := transports[1].listen(t, s, "grace", "")
	socket.until(t, "unread")
	go func() {
		time.Sleep(100 * time.Millisecond) // the passing of time is what is tested
		s.deliver(t, "grace", "later")
	}()
	if got := socket.titles(t, 1); got != "later" {
		t.Errorf("got %s", got)
	}
}

func TestHandler_Close(t *testing.T) {
	t.Parallel()
	s, _ := plain(t, realtime.Config{}, inbox.Config{})
	events, socket := transports[0].listen(t, s, "ada", ""), transports[1].listen(t, s, "ada", "")
	events.until(t, "unread")
	socket.until(t, "unread")
	closed := make(chan error)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	go func() { closed <- s.handler.Close(ctx) }()

	var m message
	var err, end error
	for end == nil {
		if m, end = events.next(t); end == nil {
			if m.Type == "retry" {
				err = json.Unmarshal(m.Data, new(int))
			} else {
				t.Errorf("got %+v", m)
			}
		}
	}
	if end != io.EOF || err != nil { //nolint:errorlint // exactly that, the regular end
		t.Errorf("ended with %v, %v", end, err)
	}
	if _, err := socket.any(t); websocket.CloseStatus(err) != websocket.StatusServiceRestart {
		t.Errorf("the WebSocket ended with %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if got := s.handler.Stats().Clients; got != 0 {
		t.Errorf("%d clients", got)
	}
	// A browser that comes too early looks again, for another process.
	if status, body := s.call(t, "GET", "/events?user=ada", ""); status != 200 || !strings.HasPrefix(body, "retry: ") {
		t.Errorf("after the end: %d %q", status, body)
	}
	if err := s.handler.Ready(); err == nil {
		t.Error("a closed handler is ready")
	}
	if err := s.handler.Start(t.Context()); err == nil {
		t.Error("a closed handler started")
	}
}

// Close does not wait longer than it may.
func TestHandler_Close_inTime(t *testing.T) {
	t.Parallel()
	s, _ := plain(t, realtime.Config{}, inbox.Config{})
	l := transports[0].listen(t, s, "ada", "")
	l.until(t, "unread")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.handler.Close(ctx); err == nil || !strings.Contains(err.Error(), "1 clients") {
		t.Errorf("closed with %v", err)
	}
	if _, err := l.any(t); err != io.EOF { //nolint:errorlint // exactly that, the regular end
		t.Errorf("ended with %v", err)
	}
}

func TestHandler_Ready(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	client := named(t, server.Config())
	handler, err := realtime.New(client, realtime.Config{Authenticate: byName})
	if err != nil {
		t.Fatal(err)
	}
	if err := handler.Ready(); err == nil {
		t.Error("ready before the start")
	}
	for _, path := range []string{"/events", "/ws"} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path+"?user=ada", nil))
		if w.Code != http.StatusServiceUnavailable {
			t.Errorf("%s before the start: %d", path, w.Code)
		}
	}
	for range 2 {
		if err := handler.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := handler.Ready(); err != nil {
		t.Error(err)
	}
	// A response writer that cannot have deadlines would let a dead client stay for ever.
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/events?user=ada", nil))
	if w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), "Unwrap") {
		t.Errorf("without deadlines: %d %s", w.Code, w.Body)
	}
	server.Kill()
	eventually(t, "the loss shows", func() bool { return handler.Ready() != nil })
	w = httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/unread?user=ada", nil))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || handler.Stats().Failures == 0 {
		t.Errorf("without Redis: %d, stats %+v", w.Code, handler.Stats())
	}
	for range 2 {
		if err := handler.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// The message that is not one of the protocol's ends the connection with a reason.
func TestHandler_socketRefuses(t *testing.T) {
	t.Parallel()
	s, _ := plain(t, realtime.Config{}, inbox.Config{})
	for _, c := range []struct {
		kind websocket.MessageType
		text string
		want websocket.StatusCode
	}{
		{websocket.MessageText, `{"type":"write"}`, websocket.StatusPolicyViolation},
		{websocket.MessageText, `[`, websocket.StatusPolicyViolation},
		{websocket.MessageText, `{"type":"read","ids":["x"]}`, websocket.StatusPolicyViolation},
		{websocket.MessageBinary, `{"type":"read","ids":[]}`, websocket.StatusPolicyViolation},
		{websocket.MessageText, `{"type":"` + strings.Repeat("x", 40_000) + `"}`, websocket.StatusMessageTooBig},
	} {
		l := transports[1].listen(t, s, "ada", "")
		l.until(t, "unread")
		socket := l.stream.(*socketStream)
		if err := socket.conn.Write(socket.ctx, c.kind, []byte(c.text)); err != nil {
			t.Fatal(err)
		}
		if _, err := l.any(t); websocket.CloseStatus(err) != c.want {
			t.Errorf("%.40s: ended with %v, want %d", c.text, err, c.want)
		}
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	client := named(t, testenv.Redis(t).Config())
	for name, cfg := range map[string]realtime.Config{
		"Authenticate":   {},
		"Heartbeat":      {Authenticate: byName, Heartbeat: time.Millisecond},
		"Buffer":         {Authenticate: byName, Buffer: -1},
		"MaxConnections": {Authenticate: byName, MaxConnections: -1},
		"MaxPerUser":     {Authenticate: byName, MaxPerUser: -1},
		"AllowedOrigins": {Authenticate: byName, AllowedOrigins: []string{"app.example.org"}},
		"Namespace":      {Authenticate: byName, Namespace: "a:b"},
	} {
		if _, err := realtime.New(client, cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := realtime.New(nil, realtime.Config{Authenticate: byName}); err == nil {
		t.Error("no client was accepted")
	}
}

// The rights that the documentation of the package asks for are enough, and no others
// are needed beside those of any client.
func TestHandler_rights(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(strings.ReplaceAll(string(text), "\n// ", " "), "NAMESPACE: ")
	list, _, _ = strings.Cut(list, ".")
	_, forPush, _ := strings.Cut(strings.ReplaceAll(string(text), "\n// ", " "), "postroom:push:endpoint:{…}: ")
	forPush, _, _ = strings.Cut(forPush, ".")
	list += " and " + forPush
	var rights string
	for command := range strings.FieldsSeq(strings.NewReplacer(",", " ", " and ", " ").Replace(list)) {
		rights += " +" + command
	}
	cfg := testenv.Redis(t, testenv.ACL("service", "s3cret", "~postroom:inbox:{* ~postroom:push:{* ~postroom:push:endpoint:{* &postroom:inbox -@all +ping"+rights),
		testenv.RedisSetting("user worker on >s3cret ~* &* +@all")).Config()
	worker := cfg
	worker.Username = "worker"
	own, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = own.Close() })
	workers, err := rediskit.Open(t.Context(), worker)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = workers.Close() })
	s := open(t, own, realtime.Config{PushPublicKey: pointP256(t)}, inbox.Config{})
	if s.Store, err = inbox.New(workers, inbox.Config{}); err != nil {
		t.Fatal(err)
	}
	l := transports[0].listen(t, s, "ada", inbox.Start)
	l.until(t, "unread")
	a, b := s.deliver(t, "ada", "a"), s.deliver(t, "ada", "b")
	l.titles(t, 2)
	for _, call := range [][3]string{
		{"GET", "/notifications", ""},
		{"GET", "/unread", ""},
		{"POST", "/read", `{"ids":["` + a + `"]}`},
		{"POST", "/read-all", `{"up_to":"` + b + `"}`},
	} {
		if status, body := s.call(t, call[0], call[1]+"?user=ada", call[2]); status != http.StatusOK {
			t.Errorf("%s: %d %s", call[1], status, body)
		}
	}
	const endpoint = "https://push.example.org/1"
	for _, call := range [][3]string{
		{"POST", "grace", browserJSON(t, endpoint)},
		{"POST", "ada", browserJSON(t, endpoint)},
		{"GET", "ada", ""},
		{"DELETE", "ada", `{"endpoint":"` + endpoint + `"}`},
	} {
		if status, body := s.call(t, call[0], "/push?user="+call[1], call[2], "Content-Type", "application/json"); status >= 300 {
			t.Errorf("%s /push: %d %s", call[0], status, body)
		}
	}
	if got := transports[0].listen(t, s, "ada", a).titles(t, 1); got != "b" {
		t.Errorf("replayed %s", got)
	}
}

// Whatever the text of a notification is, an event stays one event.
func TestHandler_textStaysInside(t *testing.T) {
	t.Parallel()
	s, _ := plain(t, realtime.Config{}, inbox.Config{})
	each(t, func(t *testing.T, tr transport) {
		user := "ada." + tr.name
		l := tr.listen(t, s, user, "")
		l.until(t, "unread")
		for _, title := range []string{"a\n\nevent: reset\ndata: {}\n\n", "\r\rid: 1\r", `"}`, "\u2028\u2029\x00\x7f", "\ufeff:"} {
			s.deliver(t, user, title)
			if got := l.titles(t, 1); got != title {
				t.Errorf("got %q, want %q", got, title)
			}
		}
	})
}

// A page must not learn of others.
func TestHandler_othersSeeNothing(t *testing.T) {
	t.Parallel()
	s, _ := plain(t, realtime.Config{}, inbox.Config{})
	each(t, func(t *testing.T, tr transport) {
		grace := "grace." + tr.name
		l := tr.listen(t, s, grace, inbox.Start)
		l.until(t, "unread")
		id := s.deliver(t, "ada", "secret")
		if status, body := s.call(t, "POST", "/read?user="+grace, `{"ids":["`+id+`"]}`); status != 200 || !bytes.Contains([]byte(body), []byte(`"unread":0`)) {
			t.Errorf("grace reads: %d %s", status, body)
		}
		if n, err := s.Unread(t.Context(), "ada"); err != nil || n == 0 {
			t.Errorf("ada has %d unread, %v", n, err)
		}
		s.deliver(t, grace, "own")
		if got := l.titles(t, 1); got != "own" {
			t.Errorf("grace got %s", got)
		}
	})
}
