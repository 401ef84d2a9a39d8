package main

import (
	"fmt"
	"net/http"
	"sync"
)

// event is one server-sent event.
type event struct {
	name string
	data []byte
}

// feed passes events on to the browsers that listen to this process.
type feed struct {
	mu        sync.Mutex // owns both
	listeners map[chan event]struct{}
	closed    bool
}

func newFeed() *feed { return &feed{listeners: make(map[chan event]struct{})} }

// join returns a channel of events. It is closed when the listener is too slow,
// or when the process ends: the browser then connects again by itself and reads
// the appointments anew, so that it misses nothing without knowing.
func (f *feed) join() chan event {
	f.mu.Lock()
	defer f.mu.Unlock()
	events := make(chan event, 16)
	if f.closed {
		close(events)
	} else {
		f.listeners[events] = struct{}{}
	}
	return events
}

// leave ends what join began.
func (f *feed) leave(events chan event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remove(events)
}

func (f *feed) remove(events chan event) {
	if _, ok := f.listeners[events]; ok {
		delete(f.listeners, events)
		close(events)
	}
}

func (f *feed) send(e event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for events := range f.listeners {
		select {
		case events <- e:
		default: // too slow
			f.remove(events)
		}
	}
}

func (f *feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for events := range f.listeners {
		f.remove(events)
	}
}

// stream is the feed as server-sent events, which EventSource in a browser reads.
func (gw *gateway) stream(w http.ResponseWriter, r *http.Request) {
	events := gw.feed.join()
	defer gw.feed.leave(events)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	flusher := http.NewResponseController(w)
	if err := flusher.Flush(); err != nil {
		return
	}
	for {
		select {
		case <-r.Context().Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", e.name, e.data); err != nil {
				return
			}
			if err := flusher.Flush(); err != nil {
				return
			}
		}
	}
}
