package realtime_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/uuid"

	"github.com/medicalink/postroom/internal/inbox"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/realtime"
	"github.com/medicalink/postroom/rediskit"
)

// patience bounds what is waited for; it is reached only when a test fails.
const patience = 60 * time.Second

// site is a service that has mounted a handler at /realtime, and a worker's inbox.
type site struct {
	*inbox.Store
	handler *realtime.Handler
	url     string
	http    *http.Client
}

// byName takes the user's name from the query or a cookie: what a test needs.
func byName(r *http.Request) (realtime.Identity, error) {
	user := r.URL.Query().Get("user")
	if cookie, err := r.Cookie("user"); err == nil {
		user = cookie.Value
	}
	if user == "" {
		return realtime.Identity{}, errors.New("nobody: s3cret-t0ken is not known")
	}
	return realtime.Identity{User: user}, nil
}

func open(t testing.TB, client *rediskit.Client, cfg realtime.Config, limits inbox.Config) *site {
	t.Helper()
	if cfg.Authenticate == nil {
		cfg.Authenticate = byName
	}
	cfg.Namespace = client.Service()
	limits.Namespace = cfg.Namespace
	store, err := inbox.New(client, limits)
	if err != nil {
		t.Fatal(err)
	}
	handler, err := realtime.New(client, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := handler.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/realtime/", http.StripPrefix("/realtime", handler))
	server := httptest.NewUnstartedServer(mux)
	server.Listener = narrow{server.Listener}
	server.Start()
	s := &site{Store: store, handler: handler, url: server.URL + "/realtime", http: server.Client()}
	t.Cleanup(func() {
		// The test's context has ended, and with it the clients.
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := handler.Close(ctx); err != nil {
			t.Error(err)
		}
		server.CloseClientConnections()
		server.Close()
	})
	return s
}

// narrow makes connections that hold little of what the other side does not read.
type narrow struct{ net.Listener }

func (n narrow) Accept() (net.Conn, error) {
	conn, err := n.Listener.Accept()
	if tcp, ok := conn.(*net.TCPConn); ok {
		err = tcp.SetWriteBuffer(8 << 10)
	}
	return conn, err
}

// plain is a site on a server of its own.
func plain(t testing.TB, cfg realtime.Config, limits inbox.Config) (*site, *testenv.RedisServer) {
	t.Helper()
	server := testenv.Redis(t)
	return open(t, named(t, server.Config()), cfg, limits), server
}

func named(t testing.TB, cfg rediskit.Config) *rediskit.Client {
	t.Helper()
	cfg.Service = "staging"
	client, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func newID(t testing.TB) string {
	t.Helper()
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

// deliver puts a notification into the user's inbox and returns its position.
func (s *site) deliver(t testing.TB, user, title string) string {
	t.Helper()
	return s.deliverEntry(t, user, inbox.Entry{Title: title}).Position
}

func (s *site) deliverEntry(t testing.TB, user string, e inbox.Entry) inbox.Delivered {
	t.Helper()
	if e.ID == "" {
		e.ID = newID(t)
	}
	e.Kind, e.Category, e.Created = "lab.result.ready", "lab", time.Now()
	d, err := s.Deliver(t.Context(), user, e)
	if err != nil || d.Outcome != inbox.Accepted {
		t.Fatalf("delivered %+v, %v", d, err)
	}
	return d
}

// message is what a client gets, over either transport.
type message struct {
	Type string          `json:"type"`
	ID   string          `json:"id"`
	Data json.RawMessage `json:"data"`
}

// stream is a client's connection.
type stream interface {
	next(t *testing.T) (message, error)
	close()
}

// transport is a way to listen.
type transport struct {
	name string
	path string
	open func(t *testing.T, s *site, path string) stream
}

var transports = []transport{
	{"SSE", "/events", openSSE},
	{"WebSocket", "/ws", openSocket},
}

// each runs test for each transport.
func each(t *testing.T, test func(t *testing.T, listen transport)) {
	t.Helper()
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			t.Parallel()
			test(t, tr)
		})
	}
}

// listen connects user, who has seen everything up to after; empty: who wants new ones.
func (tr transport) listen(t *testing.T, s *site, user, after string) *listener {
	t.Helper()
	l := &listener{stream: tr.open(t, s, tr.path+"?user="+user+"&last_event_id="+after)}
	t.Cleanup(l.close)
	return l
}

type sseStream struct {
	body   io.ReadCloser
	cancel context.CancelFunc
	r      *bufio.Reader
}

func openSSE(t *testing.T, s *site, path string) stream {
	t.Helper()
	return openSSEWith(t, s, path, nil)
}

func openSSEWith(t *testing.T, s *site, path string, header http.Header) *sseStream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(r.Header, header)
	resp, err := s.http.Do(r) //nolint:bodyclose // the stream's close does
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" ||
		resp.Header.Get("Cache-Control") != "no-store" || resp.Header.Get("X-Accel-Buffering") != "no" {
		t.Fatalf("status %d, header %v", resp.StatusCode, resp.Header)
	}
	return &sseStream{body: resp.Body, cancel: cancel, r: bufio.NewReader(resp.Body)}
}

func (s *sseStream) close() {
	s.cancel()
	_ = s.body.Close()
}

// next returns the next event as EventSource would dispatch it; a comment is an event
// of type ":", and a time to come back one of type "retry".
func (s *sseStream) next(t *testing.T) (message, error) {
	t.Helper()
	var m message
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			return m, err
		}
		line = strings.TrimSuffix(line, "\n")
		name, value, _ := strings.Cut(line, ": ")
		switch {
		case line == "" && m.Type != "":
			return m, nil
		case line == "":
			t.Error("an event without a type")
		case line == ":":
			m.Type = ":"
		case name == "event":
			m.Type = value
		case name == "id":
			m.ID = value
		case name == "data":
			m.Data = json.RawMessage(value)
		case name == "retry":
			m.Type, m.Data = "retry", json.RawMessage(value)
		default:
			t.Errorf("line %q", line)
		}
	}
}

type socketStream struct {
	ctx    context.Context //nolint:containedctx // ends with the test
	cancel context.CancelFunc
	conn   *websocket.Conn
}

func openSocket(t *testing.T, s *site, path string) stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	conn, resp, err := websocket.Dial(ctx, s.url+path, &websocket.DialOptions{HTTPClient: s.http})
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body != nil {
		_ = resp.Body.Close()
	}
	return &socketStream{ctx: ctx, cancel: cancel, conn: conn}
}

func (s *socketStream) close() {
	_ = s.conn.CloseNow()
	s.cancel()
}

func (s *socketStream) next(*testing.T) (message, error) {
	var m message
	_, data, err := s.conn.Read(s.ctx)
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(data, &m)
}

// listener checks what every stream has to keep to.
type listener struct {
	stream
	unread int
	ids    []string
}

// any returns the next event that a page sees.
func (l *listener) any(t *testing.T) (message, error) {
	t.Helper()
	for {
		m, err := l.next(t)
		if err != nil {
			return m, err
		}
		if m.Type == ":" || m.Type == "retry" {
			continue
		}
		if (m.ID != "") != (m.Type == "notification") {
			t.Errorf("%s has the id %q", m.Type, m.ID)
		}
		if m.Type == "unread" {
			var count struct{ Count *int }
			if err := json.Unmarshal(m.Data, &count); err != nil || count.Count == nil {
				t.Errorf("unread %s, %v", m.Data, err)
			} else {
				l.unread = *count.Count
			}
		}
		if m.Type == "notification" {
			if n := len(l.ids); n > 0 && !inbox.After(m.ID, l.ids[n-1]) {
				t.Errorf("%s comes after %s", m.ID, l.ids[n-1])
			}
			l.ids = append(l.ids, m.ID)
		}
		return m, nil
	}
}

// until returns the next event of a type, and fails if one of another type than unread
// comes before it.
func (l *listener) until(t *testing.T, kind string) message {
	t.Helper()
	for {
		m, err := l.any(t)
		if err != nil {
			t.Fatalf("waiting for %s: %v", kind, err)
		}
		if m.Type == kind {
			return m
		}
		if m.Type != "unread" {
			t.Fatalf("waiting for %s: got %s %s", kind, m.Type, m.Data)
		}
	}
}

// notification returns the next one.
func (l *listener) notification(t *testing.T) map[string]any {
	t.Helper()
	m := l.until(t, "notification")
	var fields map[string]any
	if err := json.Unmarshal(m.Data, &fields); err != nil {
		t.Fatal(err)
	}
	if fields["id"] != m.ID {
		t.Errorf("the event %s holds %v", m.ID, fields)
	}
	return fields
}

// titles returns those of the next n notifications.
func (l *listener) titles(t *testing.T, n int) string {
	t.Helper()
	var all []string
	for range n {
		all = append(all, fmt.Sprint(l.notification(t)["title"]))
	}
	return strings.Join(all, " ")
}

// call makes a request of the API and returns status and body.
func (s *site) call(t testing.TB, method, path, body string, header ...string) (int, string) {
	t.Helper()
	resp := s.response(t, method, path, body, header...)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func (s *site) response(t testing.TB, method, path, body string, header ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := s.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}
