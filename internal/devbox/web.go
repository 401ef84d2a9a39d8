package devbox

import (
	"context"
	"crypto/rand"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	stdlog "log"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

//go:embed assets
var assets embed.FS

// pagePolicy is the Content-Security-Policy of the pages: their own files, and
// nothing else.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"frame-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"

const (
	ssePause     = 100 * time.Millisecond // between two events: a bulk run changes the inbox thousands of times a second
	sseHeartbeat = 15 * time.Second
	maxBody      = 1 << 20 // bytes of a request
)

// versions count changes of what the pages show.
type versions struct {
	Process   string `json:"process"` // another one begins to count anew
	Inbox     uint64 `json:"inbox"`
	Templates uint64 `json:"templates"`
	Arrivals  uint64 `json:"arrivals"`
}

// changes tells any number of pages that something they show has changed. It
// carries state, not events, so a page that was away misses nothing.
type changes struct {
	mu   sync.Mutex
	now  versions
	next chan struct{} // closed at the next change
}

func newChanges() *changes {
	return &changes{now: versions{Process: rand.Text()}, next: make(chan struct{})}
}

func (c *changes) note(change func(*versions)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.now)
	close(c.next)
	c.next = make(chan struct{})
}

func (c *changes) state() (versions, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now, c.next
}

// links are what the start page lists.
type links struct {
	Redis, RedisKind string
	SMTP             string
	Commands         []command
	Notification     command // one of them
	NotServed        bool    // the worker consumes no notifications
	Kept             int     // notifications of a user
}

type command struct{ Title, Line string }

// web is every page and the API behind them.
type web struct {
	mails         *mails
	preview       *preview
	notifications *notifications
	changes       *changes
	links         links
	monitor       http.Handler // every other path
	pages         map[string]*template.Template
}

func newWeb(mails *mails, preview *preview, notifications *notifications, changes *changes, links links, monitor http.Handler) (*web, error) {
	w := &web{mails: mails, preview: preview, notifications: notifications, changes: changes, links: links, monitor: monitor, pages: map[string]*template.Template{}}
	for _, name := range []string{"start", "inbox", "notifications", "templates"} {
		t, err := template.ParseFS(assets, "assets/pages/layout.html", "assets/pages/"+name+".html")
		if err != nil {
			return nil, fmt.Errorf("parse page %s: %w", name, err)
		}
		w.pages[name] = t
	}
	return w, nil
}

// handler returns the whole site for a server that listens on addr.
func (w *web) handler() (http.Handler, error) {
	static, err := fs.Sub(assets, "assets/static")
	if err != nil {
		return nil, fmt.Errorf("open static files: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", w.page("start"))
	mux.HandleFunc("GET /inbox/{$}", w.page("inbox"))
	mux.HandleFunc("GET /notifications/{$}", w.page("notifications"))
	mux.HandleFunc("GET /templates/{$}", w.page("templates"))
	mux.Handle("GET /assets/", http.StripPrefix("/assets/", http.FileServerFS(static)))
	mux.HandleFunc("GET /api/events", w.events)
	w.mails.routes(mux)
	w.preview.routes(mux)
	w.notifications.routes(mux)
	mux.Handle("/", w.monitor) // the dashboard, health and whatever else it serves
	return hostCheck(headers(http.NewCrossOriginProtection().Handler(mux))), nil
}

func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h := rw.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(rw, r)
	})
}

// hostCheck refuses requests for another name than this machine's own: after DNS
// rebinding a foreign page could otherwise read the inbox as its own origin.
func hostCheck(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if !loopbackHost(host) {
			http.Error(rw, "These pages answer only to localhost and loopback addresses.", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(rw, r)
	})
}

func loopbackHost(host string) bool {
	if host == "localhost" {
		return true
	}
	if len(host) > 1 && host[0] == '[' && host[len(host)-1] == ']' {
		host = host[1 : len(host)-1]
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

func (w *web) page(name string) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Security-Policy", pagePolicy)
		rw.Header().Set("Content-Type", "text/html; charset=utf-8")
		// An error here is the browser's going away.
		_ = w.pages[name].ExecuteTemplate(rw, "layout.html", struct {
			Page  string
			Links links
		}{name, w.links})
	}
}

// events streams the versions of what the pages show as server-sent events: at
// once, and after each change.
func (w *web) events(rw http.ResponseWriter, r *http.Request) {
	rw.Header().Set("Content-Type", "text/event-stream")
	flusher := http.NewResponseController(rw)
	for {
		now, next := w.changes.state()
		data, err := json.Marshal(now)
		if err != nil {
			return
		}
		if _, err := fmt.Fprintf(rw, "data: %s\n\n", data); err != nil || flusher.Flush() != nil {
			return
		}
		if !wait(r.Context(), ssePause) {
			return
		}
		for waiting := true; waiting; {
			select {
			case <-r.Context().Done():
				return
			case <-next:
				waiting = false
			case <-time.After(sseHeartbeat):
				// Finds out that the page is gone.
				if _, err := fmt.Fprint(rw, ":\n\n"); err != nil || flusher.Flush() != nil {
					return
				}
			}
		}
	}
}

// wait reports whether d passed before ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func writeJSON(rw http.ResponseWriter, status int, v any) {
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(status)
	_ = json.NewEncoder(rw).Encode(v) // an error is the browser's going away
}

func writeError(rw http.ResponseWriter, status int, problem string) {
	writeJSON(rw, status, map[string]string{"error": problem})
}

// webServer serves the pages on a loopback address.
type webServer struct {
	addr   string // host:port
	server *http.Server
	end    context.CancelFunc // of every request, also those that never end by themselves
	served chan error
}

// nextPorts is how many ports after the wanted one are tried.
const nextPorts = 20

// listenWeb listens on addr, or on one of the next ports if that one is taken.
func listenWeb(ctx context.Context, addr string) (net.Listener, error) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: the port must be a number", addr)
	}
	var first error
	for p := port; p <= min(port+nextPorts, 65535); p++ {
		ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(p)))
		if err == nil {
			return ln, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, fmt.Errorf("listen for the pages (the %d ports after it are taken too): %w", nextPorts, first)
}

func serveWeb(ln net.Listener, handler http.Handler, log zerolog.Logger) *webServer {
	requests, end := context.WithCancel(context.Background())
	s := &webServer{
		addr: ln.Addr().String(),
		end:  end,
		server: &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: 10 * time.Second,
			BaseContext:       func(net.Listener) context.Context { return requests },
			ErrorLog:          debugLog(log),
		},
		served: make(chan error, 1),
	}
	go func() { s.served <- s.server.Serve(ln) }()
	return s
}

func (s *webServer) stop(ctx context.Context) error {
	s.end()
	err := s.server.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.server.Close())
	}
	if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// debugLog is net/http's log of connections that broke: of interest to nobody
// who has not asked.
func debugLog(log zerolog.Logger) *stdlog.Logger {
	return stdlog.New(writerFunc(func(line []byte) { log.Debug().Msg("pages: " + strings.TrimSpace(string(line))) }), "", 0)
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}
