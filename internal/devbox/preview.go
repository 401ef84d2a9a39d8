package devbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/medicalink/postroom/tasks"
	"github.com/medicalink/postroom/templates"
)

// previewRecipient gets what "Send to inbox" sends.
const previewRecipient = "Preview <preview@example.com>"

// preview is the API of the template page:
//
//	GET  /api/templates                   templates, locales, sample data, load errors
//	POST /api/templates/{name}/render     {"locale","data"} → the email and the notification, of what the template has
//	POST /api/templates/{name}/send       the same input, through the real queue into the inbox
//	GET  /api/frames/{hash}               rendered HTML, for a frame
type preview struct {
	templates *liveTemplates
	send      func(context.Context, tasks.Email, ...tasks.Option) (tasks.Receipt, error)
	frames    frameCache
}

func (p *preview) routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/templates", p.list)
	mux.HandleFunc("POST /api/templates/{name}/render", p.render)
	mux.HandleFunc("POST /api/templates/{name}/send", p.enqueue)
	mux.HandleFunc("GET /api/frames/{hash}", p.frame)
}

type templateView struct {
	Name         string         `json:"name"`
	Email        bool           `json:"email"`
	Notification bool           `json:"notification"`
	Locales      []string       `json:"locales"`
	Sample       map[string]any `json:"sample"`
}

func (p *preview) list(rw http.ResponseWriter, _ *http.Request) {
	set, err := p.templates.current()
	view := struct {
		Dir       string         `json:"dir"` // watched; empty for the built-in templates alone
		Errors    []string       `json:"errors"`
		Templates []templateView `json:"templates"`
	}{p.templates.dir, problemLines(err), []templateView{}}
	for _, info := range set.List() {
		view.Templates = append(view.Templates, templateView(info))
	}
	writeJSON(rw, http.StatusOK, view)
}

// problemLines are the problems joined in err, one each, without the heading
// that says what was being done.
func problemLines(err error) []string {
	lines := []string{}
	if err == nil {
		return lines
	}
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if len(lines) > 1 && strings.HasSuffix(lines[0], ":") {
		lines = lines[1:]
	}
	return lines
}

type renderRequest struct {
	Locale string         `json:"locale"`
	Data   map[string]any `json:"data"`
}

func decodeRender(rw http.ResponseWriter, r *http.Request) (renderRequest, bool) {
	var req renderRequest
	err := json.NewDecoder(http.MaxBytesReader(rw, r.Body, maxBody)).Decode(&req)
	if _, tooBig := errors.AsType[*http.MaxBytesError](err); tooBig {
		writeError(rw, http.StatusRequestEntityTooLarge, fmt.Sprintf("the data must be smaller than %d bytes", maxBody))
		return req, false
	}
	if err != nil {
		writeError(rw, http.StatusBadRequest, "the data must be a JSON object: "+err.Error())
		return req, false
	}
	return req, true
}

func (p *preview) render(rw http.ResponseWriter, r *http.Request) {
	req, ok := decodeRender(rw, r)
	if !ok {
		return
	}
	name := r.PathValue("name")
	set, _ := p.templates.current()
	email, notification := set.Kinds(name)
	view := struct {
		Email        *emailView `json:"email,omitempty"`
		Notification []noteView `json:"notification,omitempty"`
	}{}
	if email || !notification { // of an unknown name Render says so
		m, err := set.Render(name, req.Locale, req.Data)
		if err != nil {
			writeRenderError(rw, err)
			return
		}
		doc, remote := frame(m.HTML, nil)
		view.Email = &emailView{m.Subject, m.Text, m.Locale, m.HTML, "/api/frames/" + p.frames.put(doc), remote, len(m.HTML)}
	}
	if notification {
		n, err := set.RenderNotification(name, req.Locale, req.Data)
		if err != nil {
			writeRenderError(rw, err)
			return
		}
		view.Notification = notificationParts(n)
	}
	writeJSON(rw, http.StatusOK, view)
}

// emailView is a rendered email; its HTML has a path for a frame.
type emailView struct {
	Subject string `json:"subject"`
	Text    string `json:"text"`
	Locale  string `json:"locale"`
	Source  string `json:"source"`
	Frame   string `json:"frame"`
	Remote  int    `json:"remote"`
	Size    int    `json:"size"`
}

// noteView is one text of a notification. It is empty where the generic one is shown.
type noteView struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

func notificationParts(n templates.Notification) []noteView {
	parts := []noteView{
		{"Title in the app", n.Title},
		{"Message in the app", n.Body},
		{"Push", strings.TrimSpace(n.Push.Title + "\n" + n.Push.Body)},
		{"Chat", n.Chat.Body},
		{"SMS", n.SMS.Body},
	}
	if n.Webhook != nil {
		var b bytes.Buffer
		_ = json.Indent(&b, n.Webhook, "", "  ") // it is valid JSON
		parts = append(parts, noteView{"Webhook data", b.String()})
	}
	return parts
}

func writeRenderError(rw http.ResponseWriter, err error) {
	status := http.StatusUnprocessableEntity
	if errors.Is(err, templates.ErrUnknownTemplate) {
		status = http.StatusNotFound
	}
	writeError(rw, status, err.Error())
}

func (p *preview) enqueue(rw http.ResponseWriter, r *http.Request) {
	req, ok := decodeRender(rw, r)
	if !ok {
		return
	}
	name := r.PathValue("name")
	set, _ := p.templates.current()
	if err := set.Check(name, req.Data); err != nil {
		writeRenderError(rw, err)
		return
	}
	receipt, err := p.send(r.Context(), tasks.Email{To: previewRecipient, Template: name, Locale: req.Locale, Data: req.Data})
	if err != nil {
		writeError(rw, http.StatusInternalServerError, err.Error())
		return
	}
	writeJSON(rw, http.StatusAccepted, receipt)
}

func (p *preview) frame(rw http.ResponseWriter, r *http.Request) {
	doc, ok := p.frames.get(r.PathValue("hash"))
	if !ok {
		writeError(rw, http.StatusNotFound, "this rendering is gone: render it again")
		return
	}
	writeFrame(rw, doc)
}

// keepFrames is how many renderings are kept: those of a few open pages.
const keepFrames = 64

// frameCache keeps rendered documents by their hash. They need an address of
// their own: a frame filled in by the page itself would inherit the page's
// policy, under which no mail has a style.
type frameCache struct {
	mu    sync.Mutex
	order []string // oldest first
	docs  map[string][]byte
}

func (c *frameCache) put(doc []byte) string {
	sum := sha256.Sum256(doc)
	hash := hex.EncodeToString(sum[:])
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.docs == nil {
		c.docs = make(map[string][]byte)
	}
	if _, known := c.docs[hash]; !known {
		c.docs[hash] = doc
		c.order = append(c.order, hash)
	}
	if len(c.order) > keepFrames {
		delete(c.docs, c.order[0])
		c.order = c.order[1:]
	}
	return hash
}

func (c *frameCache) get(hash string) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	doc, ok := c.docs[hash]
	return doc, ok
}
