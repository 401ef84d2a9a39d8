package realtime

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"

	"github.com/coder/websocket"

	"github.com/medicalink/postroom/internal/inbox"
)

// socket is the wire of /ws.
type socket struct {
	//nolint:containedctx // it lives as long as the connection, and wire has none for /events
	ctx  context.Context
	conn *websocket.Conn
}

func (s socket) send(e *event) error {
	for _, f := range e.frames {
		if err := s.within(func(ctx context.Context) error {
			return s.conn.Write(ctx, websocket.MessageText, f.message())
		}); err != nil {
			return err
		}
	}
	return nil
}

// heartbeat waits for the answer: a WebSocket's silence tells nothing.
func (s socket) heartbeat() error { return s.within(s.conn.Ping) }

// farewell has nothing to say: the status of the end tells the client to come back.
func (socket) farewell() error { return nil }

func (s socket) within(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(s.ctx, writeTimeout)
	defer cancel()
	return f(ctx)
}

// errMessage is about a message that is none of the protocol's.
var errMessage = errors.New(`want {"type":"read","ids":[…]} or {"type":"read_all","up_to":"…"}`)

func (h *Handler) socket(w http.ResponseWriter, r *http.Request, id Identity) {
	if h.subscription() == nil {
		refuse(w, errors.New("the handler has not been started"))
		return
	}
	c := h.client(r, id)
	if err := h.hub.add(c); err != nil {
		refuse(w, err)
		return
	}
	defer h.hub.done(c)
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		InsecureSkipVerify: true, // the origin has been checked, as on every route
	})
	if err != nil {
		return // Accept has answered
	}
	conn.SetReadLimit(maxBody)
	// The request's own context is not that of a connection which was taken over.
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	// A write whose context ends would tear the connection down before it is told why.
	read, over := context.WithCancel(ctx)
	var reader sync.WaitGroup
	var refused error
	reader.Go(func() {
		defer over()
		refused = h.receive(ctx, conn, id.User)
	})
	end := h.follow(read, c, socket{ctx: ctx, conn: conn})
	switch end {
	case expired:
		_ = conn.Close(websocket.StatusPolicyViolation, "the session has expired")
	case closed:
		_ = conn.Close(websocket.StatusServiceRestart, "come back in a moment")
	case slow:
		_ = conn.CloseNow() // it would not read the reason either
	case lost:
	}
	cancel()
	reader.Wait()
	switch {
	case errors.Is(refused, errMessage), errors.Is(refused, inbox.ErrPosition):
		_ = conn.Close(websocket.StatusPolicyViolation, errMessage.Error())
	case refused != nil:
		_ = conn.Close(websocket.StatusInternalError, "come back and try again")
	}
	_ = conn.CloseNow() // closes what is not closed yet
}

// receive carries out what the client asks for. It returns nil when the connection has
// ended, or why it has to end.
func (h *Handler) receive(ctx context.Context, conn *websocket.Conn, user string) error {
	for {
		kind, data, err := conn.Read(ctx)
		if err != nil {
			return nil //nolint:nilerr // the connection's end is no fault
		}
		var message struct {
			Type string   `json:"type"`
			IDs  []string `json:"ids"`
			UpTo string   `json:"up_to"`
		}
		if kind != websocket.MessageText || json.Unmarshal(data, &message) != nil {
			return errMessage
		}
		once, cancel := context.WithTimeout(ctx, readTimeout)
		switch message.Type {
		case "read":
			_, err = h.store.Read(once, user, message.IDs...)
		case "read_all":
			_, err = h.store.ReadAll(once, user, message.UpTo)
		default:
			err = errMessage
		}
		cancel()
		if err != nil {
			return err
		}
	}
}
