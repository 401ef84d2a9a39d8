package realtime

import (
	"errors"
	"slices"
	"sync"
	"time"
)

var (
	errClosing  = errors.New("the handler is being closed")
	errFull     = errors.New("there are too many connections")
	errUserFull = errors.New("the user has too many connections")
)

// A client is one connection. Its queue is filled by the hub and emptied by the
// goroutine that serves the request.
type client struct {
	user    string
	after   string // what it has seen, as it says; empty: it wants to know of new ones only
	expires time.Time
	queue   chan *event
	cut     chan struct{} // closed by the hub when the queue was full
}

// The hub knows who is connected. Its lock is held while an event is put into queues,
// which never waits.
type hub struct {
	max, maxPerUser int

	mu      sync.Mutex // owns what follows
	clients map[string][]*client
	total   int
	closed  bool
	cuts    uint64
	serving sync.WaitGroup // those between add and done
}

func newHub(most, mostPerUser int) *hub {
	return &hub{max: most, maxPerUser: mostPerUser, clients: make(map[string][]*client)}
}

// add makes the client known. Whoever calls it calls done in the end.
func (h *hub) add(c *client) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return errClosing
	case h.total >= h.max:
		return errFull
	case len(h.clients[c.user]) >= h.maxPerUser:
		return errUserFull
	}
	h.clients[c.user] = append(h.clients[c.user], c)
	h.total++
	h.serving.Add(1)
	return nil
}

func (h *hub) done(c *client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.remove(c)
	h.serving.Done()
}

// remove is for callers that hold mu. A client that was cut is not there any more.
func (h *hub) remove(c *client) {
	all := h.clients[c.user]
	i := slices.Index(all, c)
	switch {
	case i < 0:
		return
	case len(all) == 1:
		delete(h.clients, c.user)
	default:
		h.clients[c.user] = slices.Delete(all, i, i+1)
	}
	h.total--
}

// has reports whether the user has a client here.
func (h *hub) has(user string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.clients[user]) > 0
}

// send queues e for every client of the user, and cuts those whose queue is full.
func (h *hub) send(user string, e *event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sendTo(h.clients[user], e)
}

// sendAll is send for every user.
func (h *hub) sendAll(e *event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, clients := range h.clients {
		h.sendTo(clients, e)
	}
}

func (h *hub) sendTo(clients []*client, e *event) {
	var full []*client // removing changes the slice that is walked
	for _, c := range clients {
		select {
		case c.queue <- e:
		default:
			full = append(full, c)
		}
	}
	for _, c := range full {
		h.remove(c)
		h.cuts++
		close(c.cut)
	}
}

// close lets nobody in any more.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
}

func (h *hub) count() (clients int, cuts uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.total, h.cuts
}
