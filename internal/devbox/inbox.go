package devbox

import (
	"bytes"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	defaultListed = 200
	maxListed     = keepMessages
)

// mails is the JSON API of the caught messages:
//
//	GET    /api/messages?q=words&limit=200     newest first; every word must occur
//	DELETE /api/messages                       forget all
//	GET    /api/messages/{id}                  one message, taken apart; {id} "latest" is the newest
//	GET    /api/messages/{id}/raw              the bytes as they came (?download=1 to save them)
//	GET    /api/messages/{id}/html             its HTML, for a frame
//	GET    /api/messages/{id}/parts/{n}        one attachment, from 0
type mails struct{ store *store }

func (b *mails) routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/messages", b.list)
	mux.HandleFunc("DELETE /api/messages", b.clear)
	mux.HandleFunc("GET /api/messages/{id}", b.message(b.show))
	mux.HandleFunc("GET /api/messages/{id}/raw", b.message(b.raw))
	mux.HandleFunc("GET /api/messages/{id}/html", b.message(b.html))
	mux.HandleFunc("GET /api/messages/{id}/parts/{n}", b.message(b.part))
}

func (b *mails) list(rw http.ResponseWriter, r *http.Request) {
	limit := defaultListed
	if s := r.FormValue("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > maxListed {
			writeError(rw, http.StatusBadRequest, "limit must be a number from 1 to "+strconv.Itoa(maxListed))
			return
		}
		limit = n
	}
	writeJSON(rw, http.StatusOK, b.store.list(r.FormValue("q"), limit))
}

func (b *mails) clear(rw http.ResponseWriter, _ *http.Request) {
	b.store.clear()
	rw.WriteHeader(http.StatusNoContent)
}

// message finds the message a path names.
func (b *mails) message(serve func(http.ResponseWriter, *http.Request, *stored)) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		var m *stored
		var found bool
		if name := r.PathValue("id"); name == "latest" {
			m, found = b.store.latest()
		} else if id, err := strconv.ParseUint(name, 10, 64); err == nil {
			m, found = b.store.get(id)
		}
		if !found {
			writeError(rw, http.StatusNotFound, "no such message: it was deleted, or dropped to make room")
			return
		}
		serve(rw, r, m)
	}
}

// messageView is one message for the API.
type messageView struct {
	ID          uint64        `json:"id,string"`
	Received    time.Time     `json:"received"`
	Envelope    envelope      `json:"envelope"`
	From        []address     `json:"from"`
	To          []address     `json:"to"`
	Cc          []address     `json:"cc"`
	ReplyTo     []address     `json:"reply_to"`
	Subject     string        `json:"subject"`
	Date        *time.Time    `json:"date,omitempty"`
	Size        int           `json:"size"`
	HasText     bool          `json:"has_text"`
	Text        string        `json:"text"`
	HasHTML     bool          `json:"has_html"`
	Remote      int           `json:"remote"` // things the HTML would load from elsewhere
	Headers     []headerField `json:"headers"`
	Attachments []partView    `json:"attachments"`
	Problems    []string      `json:"problems"`
}

type partView struct {
	Name   string `json:"name"`
	Type   string `json:"type"`
	Size   int    `json:"size"`
	Inline bool   `json:"inline"`
}

func (b *mails) show(rw http.ResponseWriter, _ *http.Request, m *stored) {
	p := parseMail(m.raw)
	view := messageView{
		ID: m.ID, Received: m.Received, Envelope: m.envelope, From: m.From, To: m.To,
		Cc: orEnvelope(p.Cc), ReplyTo: orEnvelope(p.ReplyTo), Subject: p.Subject, Size: m.Size,
		HasText: p.HasText, Text: p.Text, HasHTML: p.HasHTML,
		Headers: append([]headerField{}, p.Headers...), Attachments: []partView{}, Problems: append([]string{}, p.Problems...),
	}
	if !p.Date.IsZero() {
		view.Date = &p.Date
	}
	if p.HasHTML {
		_, view.Remote = frame(p.HTML, p.Parts)
	}
	for _, a := range p.Parts {
		view.Attachments = append(view.Attachments, partView{Name: a.Name, Type: a.Type, Size: len(a.Body), Inline: a.Inline})
	}
	writeJSON(rw, http.StatusOK, view)
}

func (b *mails) raw(rw http.ResponseWriter, r *http.Request, m *stored) {
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if r.FormValue("download") != "" {
		rw.Header().Set("Content-Type", "message/rfc822")
		rw.Header().Set("Content-Disposition", mime.FormatMediaType("attachment",
			map[string]string{"filename": "message-" + strconv.FormatUint(m.ID, 10) + ".eml"}))
	}
	http.ServeContent(rw, r, "", m.Received, bytes.NewReader(m.raw))
}

func (b *mails) html(rw http.ResponseWriter, _ *http.Request, m *stored) {
	p := parseMail(m.raw)
	if !p.HasHTML {
		writeError(rw, http.StatusNotFound, "this message has no HTML part")
		return
	}
	doc, _ := frame(p.HTML, p.Parts)
	writeFrame(rw, doc)
}

func writeFrame(rw http.ResponseWriter, doc []byte) {
	rw.Header().Set("Content-Security-Policy", framePolicy)
	rw.Header().Set("Content-Type", "text/html; charset=utf-8")
	rw.Header().Set("X-DNS-Prefetch-Control", "off")
	_, _ = rw.Write(doc) // an error is the browser's going away
}

func (b *mails) part(rw http.ResponseWriter, r *http.Request, m *stored) {
	parts := parseMail(m.raw).Parts
	n, err := strconv.Atoi(r.PathValue("n"))
	if err != nil || n < 0 || n >= len(parts) {
		writeError(rw, http.StatusNotFound, "no such attachment")
		return
	}
	// Always saved, never shown: an HTML or SVG attachment would run in our origin.
	rw.Header().Set("Content-Security-Policy", "sandbox; default-src 'none'")
	rw.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": parts[n].Name}))
	contentType := parts[n].Type
	if strings.HasPrefix(contentType, "text/") {
		contentType += "; charset=utf-8" // go-message has converted it
	}
	rw.Header().Set("Content-Type", contentType)
	_, _ = rw.Write(parts[n].Body) // an error is the browser's going away
}
