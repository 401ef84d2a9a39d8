package devbox

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// What the inbox keeps: the newest messages within both bounds. A run of
// `enqueue bulk` can be a million messages, and they live in this process.
const (
	keepMessages = 1000
	keepBytes    = 64 << 20
)

const (
	searchedText = 16 << 10 // bytes of a body that the search looks at
	snippetRunes = 140
)

// envelope is what the sender said outside the message.
type envelope struct {
	From string   `json:"from"`
	To   []string `json:"to"`
}

// summary is a message in the list.
type summary struct {
	ID          uint64    `json:"id,string"`
	Received    time.Time `json:"received"`
	From        []address `json:"from"`
	To          []address `json:"to"`
	Subject     string    `json:"subject"`
	Snippet     string    `json:"snippet"`
	Size        int       `json:"size"`
	Attachments int       `json:"attachments"`
	Problems    int       `json:"problems"`
}

type stored struct {
	summary
	envelope envelope
	raw      []byte
	search   string // lower case
}

// store keeps the messages. Its methods may be called by any number of
// goroutines; what they return is never changed afterwards.
type store struct {
	changed func() // called after every change, without the lock

	mu       sync.Mutex
	messages []*stored // oldest first
	bytes    int
	lastID   uint64
	dropped  int
}

func (s *store) add(env envelope, raw []byte) {
	p := parseMail(raw)
	m := &stored{
		summary: summary{
			Received:    time.Now(),
			From:        orEnvelope(p.From, env.From),
			To:          orEnvelope(p.To, env.To...),
			Subject:     p.Subject,
			Snippet:     snippet(p.Text),
			Size:        len(raw),
			Attachments: len(p.Parts),
			Problems:    len(p.Problems),
		},
		envelope: env,
		raw:      raw,
	}
	var b strings.Builder
	b.WriteString(p.Subject)
	for _, a := range slices.Concat(p.From, p.To, p.Cc) {
		b.WriteString("\n" + a.String())
	}
	b.WriteString("\n" + env.From + "\n" + strings.Join(env.To, "\n") + "\n")
	b.WriteString(p.Text[:min(len(p.Text), searchedText)])
	m.search = strings.ToLower(b.String())

	s.mu.Lock()
	s.lastID++
	m.ID = s.lastID
	s.messages = append(s.messages, m)
	s.bytes += len(raw)
	for len(s.messages) > keepMessages || (s.bytes > keepBytes && len(s.messages) > 1) {
		s.bytes -= len(s.messages[0].raw)
		s.messages[0] = nil // the array behind the slice lives on
		s.messages = s.messages[1:]
		s.dropped++
	}
	s.mu.Unlock()
	s.changed()
}

func orEnvelope(list []address, fallback ...string) []address {
	if len(list) > 0 {
		return list
	}
	list = []address{}
	for _, a := range fallback {
		if a != "" {
			list = append(list, address{Address: a})
		}
	}
	return list
}

// snippet is the beginning of a text on one line.
func snippet(text string) string {
	text = strings.Join(strings.Fields(text[:min(len(text), 8*snippetRunes)]), " ")
	text = strings.ToValidUTF8(text, "")
	if runes := []rune(text); len(runes) > snippetRunes {
		return string(runes[:snippetRunes]) + "…"
	}
	return text
}

// listing is an answer to a search.
type listing struct {
	Messages []summary `json:"messages"` // newest first
	Matched  int       `json:"matched"`  // of all kept messages
	Total    int       `json:"total"`    // kept messages
	Dropped  int       `json:"dropped"`  // older ones dropped since the start or the last clearing

	// The bounds beyond which the oldest are dropped.
	KeepMessages int `json:"keep_messages"`
	KeepBytes    int `json:"keep_bytes"`
}

// list returns the newest limit messages that contain every word of query.
func (s *store) list(query string, limit int) listing {
	words := strings.Fields(strings.ToLower(query))
	s.mu.Lock()
	all := slices.Clone(s.messages)
	out := listing{Messages: []summary{}, Total: len(all), Dropped: s.dropped, KeepMessages: keepMessages, KeepBytes: keepBytes}
	s.mu.Unlock()
	for _, m := range slices.Backward(all) {
		if slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(m.search, w) }) {
			continue
		}
		if out.Matched++; len(out.Messages) < limit {
			out.Messages = append(out.Messages, m.summary)
		}
	}
	return out
}

func (s *store) get(id uint64) (*stored, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, found := slices.BinarySearchFunc(s.messages, id, func(m *stored, id uint64) int {
		switch {
		case m.ID < id:
			return -1
		case m.ID > id:
			return 1
		default:
			return 0
		}
	})
	if !found {
		return nil, false
	}
	return s.messages[i], true
}

// latest returns the newest message.
func (s *store) latest() (*stored, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.messages) == 0 {
		return nil, false
	}
	return s.messages[len(s.messages)-1], true
}

func (s *store) clear() {
	s.mu.Lock()
	s.messages, s.bytes, s.dropped = nil, 0, 0
	s.mu.Unlock()
	s.changed()
}
