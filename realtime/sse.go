package realtime

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

// sse is the wire of /events.
type sse struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func (s sse) send(e *event) error { return s.write(e.sse) }

// heartbeat is a comment, which EventSource ignores.
func (s sse) heartbeat() error { return s.write([]byte(":\n\n")) }

func (s sse) farewell() error { return s.write(retry()) }

func (s sse) write(b []byte) error {
	if err := s.rc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	return s.rc.Flush()
}

// retry tells an EventSource how long to wait before it comes back, in milliseconds:
// one to four seconds, so that those who were cut off together do not come together.
func retry() []byte {
	return append(strconv.AppendInt([]byte("retry: "), 1000+rand.N(int64(3000)), 10), "\n\n"...)
}

// lastEventID returns what the client has seen. A browser that comes back asks for the
// address it was given first, so its header is newer.
func lastEventID(r *http.Request) string {
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		return id
	}
	return r.URL.Query().Get("last_event_id")
}

func (h *Handler) client(r *http.Request, id Identity) *client {
	return &client{
		user: id.User, after: lastEventID(r), expires: id.Expires,
		queue: make(chan *event, h.cfg.Buffer), cut: make(chan struct{}),
	}
}

// refuse answers a client that the hub did not take.
func refuse(w http.ResponseWriter, err error) {
	w.Header().Set("Retry-After", "10")
	status := http.StatusServiceUnavailable
	if errors.Is(err, errUserFull) {
		status = http.StatusTooManyRequests
	}
	http.Error(w, err.Error(), status)
}

func (h *Handler) events(w http.ResponseWriter, r *http.Request, id Identity) {
	if h.subscription() == nil {
		refuse(w, errors.New("the handler has not been started"))
		return
	}
	header := w.Header()
	header.Set("Content-Type", "text/event-stream")
	header.Set("X-Accel-Buffering", "no")
	if r.Method == http.MethodHead {
		return
	}
	rc := http.NewResponseController(w)
	// Without it a read timeout of the server would end the request.
	err := rc.SetReadDeadline(time.Time{})
	if err == nil {
		err = rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	}
	if err != nil {
		http.Error(w, "a middleware hides http.ResponseController: its ResponseWriter needs a method Unwrap", http.StatusInternalServerError)
		return
	}
	c := h.client(r, id)
	out := sse{w: w, rc: rc}
	switch err := h.hub.add(c); {
	case errors.Is(err, errClosing):
		// Another process is there, or will be: a browser would not look for it after
		// another answer than this.
		_ = out.farewell() // nobody is left to tell
		return
	case err != nil:
		refuse(w, err)
		return
	}
	defer h.hub.done(c)
	if out.write(retry()) == nil {
		h.follow(r.Context(), c, out)
	}
}
