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
	// demoPhone gets text messages: a number that nobody has (555-01xx).
	demoPhone = "+12025550123"
	// emailAfter is how long that email waits: long enough to read the notification
	// first, short enough to watch.
	emailAfter = 10 * time.Second
)

// firstNotification is what Run sends.
func firstNotification() tasks.Notification {
	return tasks.Notification{
		Kind: demoKind, User: demoUser,
		Title:    "Notifications work",
		Body:     "This one went from the queue through the worker into the inbox of the user demo, and from there to both browsers. A webhook went out too.",
		Channels: []tasks.Channel{tasks.ChannelInApp, tasks.ChannelWebhook}, Webhook: demoWebhook,
	}
}

// notifications is the API of the notification page:
//
//	POST /api/notifications   {"title","body"} or {"template","data"}, and {"email":true,"also":["webhook"]}: through the real queue to the demo user
//	GET  /api/arrivals        what came to the receiver of the other channels, the newest first
//	/realtime/                what an app would mount for its users, for the demo user
type notifications struct {
	templates *liveTemplates
	receiver  *receiver
	send      func(context.Context, tasks.Notification, ...tasks.Option) (tasks.Receipt, error)
	realtime  http.Handler
}

func (n *notifications) routes(mux *http.ServeMux) {
	mux.HandleFunc("POST /api/notifications", n.enqueue)
	mux.HandleFunc("GET /api/arrivals", func(rw http.ResponseWriter, _ *http.Request) {
		writeJSON(rw, http.StatusOK, map[string][]arrival{"arrivals": n.receiver.list()})
	})
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
		// Also are webhook, chat and sms, at once.
		Also []tasks.Channel `json:"also"`
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
	note.Plan = []tasks.Step{{Channel: tasks.ChannelInApp}}
	for _, c := range req.Also {
		note.Plan = append(note.Plan, tasks.Step{Channel: c})
		switch c {
		case tasks.ChannelWebhook:
			note.Webhook = demoWebhook
		case tasks.ChannelChat:
			note.Chat = demoChat
		case tasks.ChannelSMS:
			note.Phone = demoPhone
		case tasks.ChannelInApp, tasks.ChannelPush, tasks.ChannelEmail:
			writeError(rw, http.StatusUnprocessableEntity, "also: want webhook, chat or sms")
			return
		}
	}
	if req.Email {
		note.Email = demoEmail
		note.Plan = append(note.Plan, tasks.Step{Channel: tasks.ChannelEmail, After: tasks.Duration(emailAfter), OnlyIf: tasks.OnlyIfUnread})
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
