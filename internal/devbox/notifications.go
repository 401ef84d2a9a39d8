package devbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/medicalink/postroom/realtime"
	"github.com/medicalink/postroom/tasks"
)

const (
	// demoUser is whose notifications the page shows.
	demoUser = "demo"
	// demoKind is the kind of what the page sends.
	demoKind = "demo.message"
	// demoEmail gets the email that follows an unread notification.
	demoEmail = "Demo <demo@example.com>"
	// emailAfter is how long that email waits: long enough to read the notification
	// first, short enough to watch.
	emailAfter = 10 * time.Second
)

// firstNotification is what Run sends.
func firstNotification() tasks.Notification {
	return tasks.Notification{
		Kind: demoKind, User: demoUser,
		Title: "Notifications work",
		Body:  "This one went from the queue through the worker into the inbox of the user demo, and from there to both browsers.",
	}
}

// notifications is the API of the notification page:
//
//	POST /api/notifications   {"title","body"} or {"template","data"}, and {"email":true}: through the real queue to the demo user
//	/realtime/                what an app would mount for its users, for the demo user
type notifications struct {
	templates *liveTemplates
	send      func(context.Context, tasks.Notification, ...tasks.Option) (tasks.Receipt, error)
	realtime  http.Handler
}

func (n *notifications) routes(mux *http.ServeMux) {
	mux.HandleFunc("POST /api/notifications", n.enqueue)
	mux.Handle("/realtime/", http.StripPrefix("/realtime", n.realtime))
}

// asDemoUser takes everybody for the demo user: only this machine reaches the pages.
func asDemoUser(*http.Request) (realtime.Identity, error) {
	return realtime.Identity{User: demoUser}, nil
}

func (n *notifications) enqueue(rw http.ResponseWriter, r *http.Request) {
	var req struct {
		Title    string         `json:"title"`
		Body     string         `json:"body"`
		Template string         `json:"template"`
		Data     map[string]any `json:"data"`
		Email    bool           `json:"email"` // follow with an email if it stays unread
	}
	if err := json.NewDecoder(http.MaxBytesReader(rw, r.Body, maxBody)).Decode(&req); err != nil {
		writeError(rw, http.StatusBadRequest, "the notification must be a JSON object: "+err.Error())
		return
	}
	if req.Template != "" {
		set, _ := n.templates.current()
		if err := set.CheckNotification(req.Template, req.Data); err != nil {
			writeRenderError(rw, err)
			return
		}
	}
	note := tasks.Notification{Kind: demoKind, User: demoUser, Title: req.Title, Body: req.Body, Template: req.Template, Data: req.Data}
	if req.Email {
		note.Email = demoEmail
		note.Plan = []tasks.Step{
			{Channel: tasks.ChannelInApp},
			{Channel: tasks.ChannelEmail, After: tasks.Duration(emailAfter), OnlyIf: tasks.OnlyIfUnread},
		}
	}
	receipt, err := n.send(r.Context(), note)
	switch _, invalid := errors.AsType[*tasks.ValidationError](err); {
	case invalid:
		writeError(rw, http.StatusUnprocessableEntity, err.Error())
	case err != nil:
		writeError(rw, http.StatusInternalServerError, fmt.Sprintf("enqueue the notification: %v", err))
	default:
		writeJSON(rw, http.StatusAccepted, receipt)
	}
}
