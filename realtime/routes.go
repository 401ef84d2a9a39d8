package realtime

import (
	"context"
	"encoding/json"
	"errors"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/medicalink/postroom/internal/inbox"
)

// maxBody bounds the body of a request and a message of a WebSocket: 1,000 ids.
const maxBody = 32 << 10

type route struct {
	method, path string
	serve        func(http.ResponseWriter, *http.Request, Identity)
}

func (h *Handler) routes() {
	routes := []route{
		{http.MethodGet, "/events", h.events},
		{http.MethodGet, "/ws", h.socket},
		{http.MethodGet, "/notifications", h.list},
		{http.MethodGet, "/unread", h.unread},
		{http.MethodPost, "/read", h.read},
		{http.MethodPost, "/read-all", h.readAll},
	}
	if h.cfg.PushPublicKey != "" {
		routes = append(routes,
			route{http.MethodGet, "/push", h.pushInfo},
			route{http.MethodPost, "/push", h.subscribe},
			route{http.MethodDelete, "/push", h.unsubscribe})
	}
	methods := make(map[string][]string) // by path
	for _, route := range routes {
		methods[route.path] = append(methods[route.path], route.method)
		h.mux.HandleFunc(route.method+" "+route.path, func(w http.ResponseWriter, r *http.Request) {
			if !h.permit(w, r) {
				return
			}
			id, err := h.cfg.Authenticate(r)
			if err != nil || !inbox.ValidUser(id.User) || !id.Expires.IsZero() && !time.Now().Before(id.Expires) {
				http.Error(w, http.StatusText(http.StatusUnauthorized), http.StatusUnauthorized)
				return
			}
			route.serve(w, r, id)
		})
	}
	if len(h.cfg.AllowedOrigins) == 0 {
		return
	}
	for path, allowed := range methods {
		h.mux.HandleFunc("OPTIONS "+path, func(w http.ResponseWriter, r *http.Request) {
			if !h.permit(w, r) {
				return
			}
			w.Header().Set("Access-Control-Allow-Methods", strings.Join(allowed, ", "))
			w.Header().Set("Access-Control-Allow-Headers", "Content-Type, Authorization")
			w.Header().Set("Access-Control-Max-Age", "600")
			w.WriteHeader(http.StatusNoContent)
		})
	}
}

// ServeHTTP serves the routes, relative to where the handler is mounted:
//
//	mux.Handle("/realtime/", http.StripPrefix("/realtime", handler))
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	h.mux.ServeHTTP(w, r)
}

// permit refuses requests from pages of other origins, and lets those of the allowed
// ones see the answer.
func (h *Handler) permit(w http.ResponseWriter, r *http.Request) bool {
	// CrossOriginProtection lets reading requests pass, because they change nothing. Here
	// they do: each of /events and /ws takes one of the user's connections.
	asPost := *r
	asPost.Method = http.MethodPost
	if err := h.origin.Check(&asPost); err != nil {
		http.Error(w, http.StatusText(http.StatusForbidden), http.StatusForbidden)
		return false
	}
	if len(h.cfg.AllowedOrigins) > 0 {
		w.Header().Add("Vary", "Origin")
		if origin := r.Header.Get("Origin"); slices.Contains(h.cfg.AllowedOrigins, origin) {
			w.Header().Set("Access-Control-Allow-Origin", origin)
			w.Header().Set("Access-Control-Allow-Credentials", "true")
		}
	}
	return true
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // the client is gone if it fails
}

// answerUnread answers with the number of unread entries, or with what err means.
func (h *Handler) answerUnread(w http.ResponseWriter, n int, err error) {
	switch {
	case errors.Is(err, inbox.ErrPosition):
		http.Error(w, err.Error(), http.StatusBadRequest)
	case err != nil:
		h.unavailable(w, err)
	default:
		answer(w, struct {
			Unread int `json:"unread"`
		}{n})
	}
}

func (h *Handler) unavailable(w http.ResponseWriter, err error) {
	_ = h.note(err) // counted
	w.Header().Set("Retry-After", "1")
	http.Error(w, "notifications cannot be reached at the moment", http.StatusServiceUnavailable)
}

func (h *Handler) list(w http.ResponseWriter, r *http.Request, id Identity) {
	limit := inbox.MaxEntries
	if text := r.URL.Query().Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > inbox.MaxEntries {
			http.Error(w, "limit must be between 1 and "+strconv.Itoa(inbox.MaxEntries), http.StatusBadRequest)
			return
		}
		limit = n
	}
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	page, err := h.store.List(ctx, id.User, limit)
	if err != nil {
		h.unavailable(w, err)
		return
	}
	list := struct {
		Notifications []notification `json:"notifications"`
		Unread        int            `json:"unread"`
		LastID        string         `json:"last_id"`
	}{make([]notification, 0, len(page.Items)), page.Unread, page.Last}
	for _, item := range page.Items {
		list.Notifications = append(list.Notifications, notificationOf(item))
	}
	answer(w, list)
}

func (h *Handler) unread(w http.ResponseWriter, r *http.Request, id Identity) {
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	n, err := h.store.Unread(ctx, id.User)
	h.answerUnread(w, n, err)
}

func (h *Handler) read(w http.ResponseWriter, r *http.Request, id Identity) {
	var body readIDs
	if !decode(w, r, &body) {
		return
	}
	if len(body.IDs) == 0 {
		http.Error(w, `want {"ids":["…"]}`, http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	n, err := h.store.Read(ctx, id.User, body.IDs...)
	h.answerUnread(w, n, err)
}

func (h *Handler) readAll(w http.ResponseWriter, r *http.Request, id Identity) {
	var body readIDs
	if !decode(w, r, &body) {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	n, err := h.store.ReadAll(ctx, id.User, body.UpTo)
	h.answerUnread(w, n, err)
}

// decode reads a body of JSON. Its type must say so: a form of another page can send
// any text, but not with that type.
func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		http.Error(w, "want application/json", http.StatusUnsupportedMediaType)
		return false
	}
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(into)
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		http.Error(w, "the body is too large", http.StatusRequestEntityTooLarge)
		return false
	}
	if err != nil {
		http.Error(w, "the body is not the JSON that is expected", http.StatusBadRequest)
		return false
	}
	return true
}
