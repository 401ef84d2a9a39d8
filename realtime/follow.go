package realtime

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/medicalink/postroom/internal/inbox"
)

// A wire is the connection of one client. Only the goroutine of [Handler.follow] calls
// it.
type wire interface {
	send(e *event) error
	heartbeat() error
	// farewell tells the client that the connection will end and that it may come back.
	farewell() error
}

// An ending is why a connection ends.
type ending int

const (
	lost    ending = iota // by the client, or by the network
	slow                  // it did not read
	expired               // its identity is no longer good
	closed                // the handler is being closed
)

// follow sends the client what it has missed, and then what happens, until the
// connection ends.
//
// position is up to where the client has seen everything. While behind, it may have
// missed something after that: then deliveries in the queue are dropped, because the
// stream, which is read afterwards, has them.
func (h *Handler) follow(ctx context.Context, c *client, w wire) ending {
	heartbeat := time.NewTimer(rand.N(h.cfg.Heartbeat) + 1)
	defer heartbeat.Stop()
	var expiry, leave, again <-chan time.Time
	if !c.expires.IsZero() {
		timer := time.NewTimer(time.Until(c.expires))
		defer timer.Stop()
		expiry = timer.C
	}
	closing := h.closing
	position, behind := c.after, true
	slot := h.slots // nil unless it is time to read the stream
	for {
		var err error
		select {
		case <-ctx.Done():
			return lost
		case <-h.killed:
			return closed
		case <-c.cut:
			return slow
		case <-expiry:
			return expired
		case <-leave:
			return closed
		case <-closing:
			closing = nil
			leave = time.After(rand.N(h.window))
			err = w.farewell()
		case <-heartbeat.C:
			heartbeat.Reset(h.cfg.Heartbeat)
			err = w.heartbeat()
		case <-again:
			slot = h.slots
		case slot <- struct{}{}:
			slot = nil
			page, readErr := h.missed(ctx, c.user, position)
			<-h.slots
			if readErr != nil {
				again = time.After(500*time.Millisecond + rand.N(time.Second))
				break
			}
			position, behind = page.Last, false
			err = h.replay(w, page)
		case e := <-c.queue:
			switch {
			case e.resync:
				behind, slot = true, h.slots
			case e.id == "":
				err = w.send(e)
			case behind: // the stream has it
			case e.previous == position:
				position = e.id
				err = w.send(e)
			case inbox.After(e.id, position): // something is missing before it
				behind, slot = true, h.slots
			default: // seen, in the stream
				err = w.send(e.count())
			}
		}
		if err != nil {
			return lost
		}
	}
}

var errInterrupted = errors.New("the subscription is interrupted")

// missed reads what has come after position.
func (h *Handler) missed(ctx context.Context, user, position string) (inbox.Page, error) {
	if !h.connected() {
		// What is read now would be incomplete in a moment. When changes arrive again
		// everybody is asked to read.
		return inbox.Page{}, errInterrupted
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	valid, err := inbox.Position(position)
	if err == nil {
		page, err := h.store.Since(ctx, user, valid)
		return page, h.note(err)
	}
	page, err := h.store.List(ctx, user, 1)
	page.Items, page.Gap = nil, position != "" // where it was, nobody can tell
	return page, h.note(err)
}

// note counts an answer that Redis did not give.
func (h *Handler) note(err error) error {
	if err != nil && !errors.Is(err, context.Canceled) {
		h.failures.Add(1)
	}
	return err
}

func (h *Handler) replay(w wire, page inbox.Page) error {
	e, err := replay(page)
	if err != nil {
		return err
	}
	h.replayed.Add(uint64(len(page.Items)))
	if page.Gap {
		h.resets.Add(1)
	}
	return w.send(e)
}
