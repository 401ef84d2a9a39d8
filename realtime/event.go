package realtime

import (
	"encoding/json"

	"github.com/medicalink/postroom/internal/inbox"
)

// A frame is one event of the protocol, its data encoded.
type frame struct {
	name string
	id   string // of notifications only
	data []byte
}

// appendSSE appends the event as a browser's EventSource reads it. JSON as encoding/json
// writes it has no line breaks.
func (f frame) appendSSE(b []byte) []byte {
	if f.id != "" {
		b = append(append(append(b, "id: "...), f.id...), '\n')
	}
	b = append(append(b, "event: "...), f.name...)
	b = append(append(b, "\ndata: "...), f.data...)
	return append(b, "\n\n"...)
}

// message is the event as a message of a WebSocket. The names and ids are our own, and
// need no escaping.
func (f frame) message() []byte {
	b := append(append([]byte(`{"type":"`), f.name...), '"')
	if f.id != "" {
		b = append(append(append(b, `,"id":"`...), f.id...), '"')
	}
	return append(append(append(b, `,"data":`...), f.data...), '}')
}

// An event is what all clients of a user are sent after one change of the inbox.
type event struct {
	// id and previous are set for a delivery; see [inbox.Event].
	id, previous string
	// resync asks the client to read the stream, because events may be missing here.
	resync bool
	// frames begin with that of the delivery or reading, and end with the count.
	frames []frame
	// sse is all frames, sseCount the last one.
	sse, sseCount []byte
}

func newEvent(frames ...frame) *event {
	e := &event{frames: frames}
	last := len(frames) - 1
	for _, f := range frames[:last] {
		e.sse = f.appendSSE(e.sse)
	}
	e.sse = frames[last].appendSSE(e.sse)
	count := frames[last].appendSSE(nil)
	e.sseCount = e.sse[len(e.sse)-len(count):]
	return e
}

// count is e without its delivery, for who has seen that already. The number still
// counts: an older one may have been sent since.
func (e *event) count() *event {
	return &event{frames: e.frames[len(e.frames)-1:], sse: e.sseCount}
}

// A notification is an entry as pages get it.
type notification struct {
	ID             string `json:"id"`
	NotificationID string `json:"notification_id"`
	inbox.Entry
	Read     bool   `json:"read,omitempty"`
	Replaces string `json:"replaces,omitempty"`
}

func notificationOf(item inbox.Item) notification {
	return notification{ID: item.Position, NotificationID: item.Entry.ID, Entry: item.Entry, Read: item.Read}
}

func (n notification) frame() (frame, error) {
	data, err := json.Marshal(n)
	return frame{name: "notification", id: n.ID, data: data}, err
}

type unreadCount struct {
	Count int `json:"count"`
}

type readIDs struct {
	IDs  []string `json:"ids,omitempty"`
	UpTo string   `json:"up_to,omitempty"`
}

func unreadFrame(n int) (frame, error) {
	data, err := json.Marshal(unreadCount{Count: n})
	return frame{name: "unread", data: data}, err
}

// live returns what the clients of the user are sent for a change.
func live(change *inbox.Event) (*event, error) {
	count, err := unreadFrame(change.Unread)
	if err != nil {
		return nil, err
	}
	if change.Position == "" {
		data, err := json.Marshal(readIDs{IDs: change.Read, UpTo: change.UpTo})
		if err != nil {
			return nil, err
		}
		return newEvent(frame{name: "read", data: data}, count), nil
	}
	entry, err := change.Entry()
	if err != nil {
		return nil, err
	}
	n := notification{ID: change.Position, NotificationID: entry.ID, Entry: entry, Replaces: change.Replaces}
	delivery, err := n.frame()
	if err != nil {
		return nil, err
	}
	e := newEvent(delivery, count)
	e.id, e.previous = change.Position, change.Previous
	return e, nil
}

// replay returns what a client is sent that had seen nothing newer than the page.
func replay(page inbox.Page) (*event, error) {
	var frames []frame
	if page.Gap {
		frames = append(frames, frame{name: "reset", data: []byte("{}")})
	}
	for _, item := range page.Items {
		f, err := notificationOf(item).frame()
		if err != nil {
			return nil, err
		}
		frames = append(frames, f)
	}
	count, err := unreadFrame(page.Unread)
	if err != nil {
		return nil, err
	}
	return newEvent(append(frames, count)...), nil
}
