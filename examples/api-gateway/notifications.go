package main

import (
	_ "embed"
	"errors"
	"net/http"
	"time"

	"github.com/medicalink/postroom/realtime"
	"github.com/medicalink/postroom/rediskit/session"
	"github.com/medicalink/postroom/tasks"
)

var (
	//go:embed page.html
	pageHTML []byte
	//go:embed page.js
	pageJS []byte
	//go:embed page.css
	pageCSS []byte
)

const (
	// pagePolicy is the Content-Security-Policy of the page: its own files, and nothing else.
	pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; " +
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
	// cookieName has no __Host- prefix, which needs Secure: the example is served over HTTP.
	cookieName = "session"
	// identityFor is how long a stream goes on after a session has been revoked.
	identityFor = 5 * time.Minute
)

// login is what a session knows beside its user.
type login struct{}

// newNotifications sets up what the page needs.
func (gw *gateway) newNotifications() (err error) {
	gw.sessions, err = session.New[login](gw.client, session.Config{Idle: time.Hour, Absolute: 12 * time.Hour})
	if err != nil {
		return err
	}
	gw.producer, err = tasks.NewProducer(gw.client, tasks.FromService(gw.client.Service()))
	if err != nil {
		return err
	}
	gw.realtime, err = realtime.New(gw.client, realtime.Config{Authenticate: gw.authenticate})
	return err
}

// authenticate says who makes a request. A page that is open must not keep a session
// alive by itself, so it reads and does not renew.
func (gw *gateway) authenticate(r *http.Request) (realtime.Identity, error) {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return realtime.Identity{}, err
	}
	s, err := gw.sessions.Read(r.Context(), cookie.Value)
	if err != nil {
		return realtime.Identity{}, err
	}
	expires := time.Now().Add(identityFor)
	if s.IdleEnds.Before(expires) {
		expires = s.IdleEnds
	}
	return realtime.Identity{User: s.User, Expires: expires}, nil
}

// file serves a part of the page, which is the same for everybody: what it shows it
// asks for.
func file(kind string, content []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Security-Policy", pagePolicy)
		w.Header().Set("Content-Type", kind+"; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write(content) // the client has gone
	}
}

// logIn lets everybody in who is known, without a password: it is the demonstration's.
func (gw *gateway) logIn(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<10)
	user, err := gw.find(r.Context(), r.PostFormValue("user"))
	if errors.Is(err, errNoUser) {
		http.Error(w, "no such user", http.StatusForbidden)
		return
	}
	if err != nil {
		gw.unavailable(w, "find user", err)
		return
	}
	token, err := gw.sessions.Create(r.Context(), user.ID, login{})
	if err != nil {
		gw.unavailable(w, "begin session", err)
		return
	}
	//nolint:gosec // Secure is for HTTPS; this example listens on loopback without it
	http.SetCookie(w, &http.Cookie{Name: cookieName, Value: token, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (gw *gateway) logOut(w http.ResponseWriter, r *http.Request) {
	if cookie, err := r.Cookie(cookieName); err == nil {
		if err := gw.sessions.Revoke(r.Context(), cookie.Value); err != nil {
			gw.unavailable(w, "end session", err)
			return
		}
	}
	//nolint:gosec // as in logIn
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// notifyMe hands in a notification to the user who asks.
func (gw *gateway) notifyMe(w http.ResponseWriter, r *http.Request) {
	id, err := gw.authenticate(r)
	if errors.Is(err, session.ErrNotFound) || errors.Is(err, http.ErrNoCookie) {
		http.Error(w, "log in first", http.StatusUnauthorized)
		return
	}
	if err != nil {
		gw.unavailable(w, "read session", err)
		return
	}
	receipt, err := gw.producer.SendNotification(r.Context(), tasks.Notification{
		Kind: "lab.result.ready", User: id.User,
		Title: "Your laboratory result is ready", Body: "Dr Hopper has released it at " + time.Now().Format(time.TimeOnly) + ".",
		Action: "/?opened=result",
	})
	if err != nil {
		gw.unavailable(w, "send notification", err)
		return
	}
	writeJSON(w, http.StatusAccepted, map[string]string{"id": receipt.ID})
}
