package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/mail"
	"strings"
	"time"
	"unicode"

	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/rediskit/cache"
	"github.com/medicalink/postroom/rediskit/ratelimit"
	"github.com/medicalink/postroom/rediskit/session"
	"github.com/medicalink/postroom/tasks"
)

// User is what the service shows of an account.
type User struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Email string `json:"email"`
}

// Login is what a session remembers.
type Login struct {
	Device string `json:"device"`
}

// sessionCookie has the prefix that makes browsers insist on Secure, on Path=/
// and on no Domain, so that no other host can plant a session.
const sessionCookie = "__Host-session"

type accounts struct {
	client   *rediskit.Client
	log      *slog.Logger
	store    *store
	users    *cache.Cache[User]
	sessions *session.Store[Login]
	attempts *ratelimit.Limiter
	emails   *tasks.Producer
}

func newAccounts(client *rediskit.Client, store *store, log *slog.Logger) (*accounts, error) {
	users, err := cache.Of[User](client, "user", cache.Config{TTL: 10 * time.Minute, NegativeTTL: time.Minute, OnError: cache.Bypass})
	if err != nil {
		return nil, err
	}
	sessions, err := session.New[Login](client, session.Config{Idle: 30 * time.Minute, Absolute: 12 * time.Hour})
	if err != nil {
		return nil, err
	}
	attempts, err := ratelimit.New(client, ratelimit.Config{
		OnError: ratelimit.FailClosed, // passwords must never be guessed without a limit
	})
	if err != nil {
		return nil, err
	}
	emails, err := tasks.NewProducer(client, tasks.FromService(client.Service()))
	if err != nil {
		return nil, err
	}
	return &accounts{client, log, store, users, sessions, attempts, emails}, nil
}

func (a *accounts) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /accounts", a.register)
	mux.HandleFunc("POST /login", a.login)
	mux.HandleFunc("GET /me", a.loggedIn(a.me))
	mux.HandleFunc("PATCH /me", a.loggedIn(a.rename))
	mux.HandleFunc("POST /logout", a.logout)
	mux.HandleFunc("POST /logout-everywhere", a.loggedIn(a.logoutEverywhere))
	mux.Handle("GET /health/redis", rediskit.HealthHandler(a.client))
	return http.NewCrossOriginProtection().Handler(mux) // other sites cannot use the cookie
}

type credentials struct {
	Email    string `json:"email"`
	Password string `json:"password"`
	Name     string `json:"name"` // to register
}

func (a *accounts) register(w http.ResponseWriter, r *http.Request) {
	in, ok := read[credentials](w, r)
	if !ok {
		return
	}
	in.Email = strings.ToLower(in.Email)
	address, err := mail.ParseAddress(in.Email)
	if err != nil || address.Address != in.Email || !validName(in.Name) || len(in.Password) < 12 {
		http.Error(w, "want an email address, a name and a password of 12 letters or more", http.StatusBadRequest)
		return
	}
	user, added, err := a.store.add(in.Email, in.Name, in.Password)
	switch {
	case err != nil:
		a.unavailable(w, "add account", err)
		return
	case !added:
		http.Error(w, "this address has an account", http.StatusConflict)
		return
	}
	if err := a.sendWelcome(r.Context(), user); err != nil {
		// With a database: write the email into an outbox in the transaction that
		// adds the account. Here, whoever tries again starts anew.
		a.store.remove(user)
		if _, refused := errors.AsType[*tasks.ValidationError](err); refused {
			http.Error(w, "no email can be sent to this address", http.StatusBadRequest)
			return
		}
		a.unavailable(w, "send welcome email", err)
		return
	}
	writeJSON(w, http.StatusCreated, user)
}

// sendWelcome hands the email to the workers. The key names the event, so that
// calling again after an error can never send a second one.
func (a *accounts) sendWelcome(ctx context.Context, user User) error {
	_, err := a.emails.SendEmail(ctx, tasks.Email{
		To:       (&mail.Address{Name: user.Name, Address: user.Email}).String(),
		Template: "welcome",
		Data:     map[string]any{"name": user.Name},
	}, tasks.IdempotencyKey("welcome-"+user.Email))
	return err
}

func (a *accounts) login(w http.ResponseWriter, r *http.Request) {
	in, ok := read[credentials](w, r)
	if !ok {
		return
	}
	in.Email = strings.ToLower(in.Email)
	// Limited by account, whatever address the attempts come from. Its hash,
	// because keys show up in monitoring.
	key := fmt.Sprintf("login:%x", sha256.Sum256([]byte(in.Email)))
	attempt, err := a.attempts.Allow(r.Context(), key, 5, time.Minute)
	switch {
	case err != nil:
		a.unavailable(w, "limit attempts", err)
		return
	case !attempt.Allowed:
		w.Header().Set("Retry-After", fmt.Sprint(int(attempt.RetryAfter.Seconds())+1))
		http.Error(w, "too many attempts", http.StatusTooManyRequests)
		return
	}
	id, ok, err := a.store.login(in.Email, in.Password)
	switch {
	case err != nil:
		a.unavailable(w, "check password", err)
		return
	case !ok:
		http.Error(w, "wrong email address or password", http.StatusUnauthorized)
		return
	}
	// A new login is a new token. The old one of this browser ends.
	if err := a.sessions.Revoke(r.Context(), tokenOf(r)); err != nil {
		a.unavailable(w, "end old session", err)
		return
	}
	token, err := a.sessions.Create(r.Context(), id, Login{Device: r.UserAgent()})
	if err != nil {
		a.unavailable(w, "create session", err)
		return
	}
	setCookie(w, token, 0)
	w.WriteHeader(http.StatusNoContent)
}

// loggedIn lets a request pass with its session, or answers 401.
func (a *accounts) loggedIn(next func(http.ResponseWriter, *http.Request, session.Session[Login])) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s, err := a.sessions.Renew(r.Context(), tokenOf(r))
		switch {
		case errors.Is(err, session.ErrNotFound):
			http.Error(w, "log in first", http.StatusUnauthorized)
		case err != nil: // nobody knows who this is
			a.unavailable(w, "read session", err)
		default:
			next(w, r, s)
		}
	}
}

func (a *accounts) me(w http.ResponseWriter, r *http.Request, s session.Session[Login]) {
	user, err := a.users.GetOrLoad(r.Context(), s.User, func(ctx context.Context) (User, error) { return a.store.find(ctx, s.User) })
	switch {
	case errors.Is(err, cache.ErrNotFound):
		http.Error(w, "this account is gone", http.StatusNotFound)
	case err != nil:
		a.unavailable(w, "find user", err)
	default:
		writeJSON(w, http.StatusOK, user)
	}
}

func (a *accounts) rename(w http.ResponseWriter, r *http.Request, s session.Session[Login]) {
	in, ok := read[struct{ Name string }](w, r)
	if !ok {
		return
	}
	if !validName(in.Name) {
		http.Error(w, "want a name", http.StatusBadRequest)
		return
	}
	if err := a.store.rename(s.User, in.Name); err != nil {
		a.unavailable(w, "rename user", err)
		return
	}
	// After the change, so that no lookup under way brings the old name back.
	if err := a.users.Delete(r.Context(), s.User); err != nil {
		a.log.Warn("the old name is shown until it expires", "error", err)
	}
	w.WriteHeader(http.StatusNoContent)
}

// logout works without a session too: the caller has what it wanted.
func (a *accounts) logout(w http.ResponseWriter, r *http.Request) {
	if err := a.sessions.Revoke(r.Context(), tokenOf(r)); err != nil {
		a.unavailable(w, "end session", err) // do not say "logged out" while the token is good
		return
	}
	setCookie(w, "", -1)
	w.WriteHeader(http.StatusNoContent)
}

func (a *accounts) logoutEverywhere(w http.ResponseWriter, r *http.Request, s session.Session[Login]) {
	if err := a.sessions.RevokeAll(r.Context(), s.User); err != nil {
		a.unavailable(w, "end sessions", err)
		return
	}
	setCookie(w, "", -1)
	w.WriteHeader(http.StatusNoContent)
}

func validName(name string) bool {
	return strings.TrimSpace(name) != "" && len(name) <= 200 && !strings.ContainsFunc(name, unicode.IsControl)
}

func tokenOf(r *http.Request) string {
	cookie, err := r.Cookie(sessionCookie)
	if err != nil {
		return "" // no session has it
	}
	return cookie.Value
}

// setCookie lasts until the browser ends: how long the session lives is not
// left to the browser.
func setCookie(w http.ResponseWriter, token string, maxAge int) {
	http.SetCookie(w, &http.Cookie{
		Name: sessionCookie, Value: token, Path: "/", MaxAge: maxAge,
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

// unavailable keeps the reason for the log.
func (a *accounts) unavailable(w http.ResponseWriter, what string, err error) {
	a.log.Error(what, "error", err)
	http.Error(w, "try again later", http.StatusServiceUnavailable)
}

// read decodes the body, or answers 400.
func read[T any](w http.ResponseWriter, r *http.Request) (value T, ok bool) {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<12)).Decode(&value); err != nil {
		http.Error(w, "the body is not the JSON that is wanted", http.StatusBadRequest)
		return value, false
	}
	return value, true
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value) // the client has gone
}
