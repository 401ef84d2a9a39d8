package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/medicalink/postroom/realtime"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/rediskit/cache"
	"github.com/medicalink/postroom/rediskit/pubsub"
	"github.com/medicalink/postroom/rediskit/ratelimit"
	"github.com/medicalink/postroom/rediskit/session"
	"github.com/medicalink/postroom/tasks"
)

// User is what the gateway shows of an account.
type User struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Update is the news about an appointment, as every service sends it.
type Update struct {
	AppointmentID string    `json:"appointmentId"`
	Status        string    `json:"status"`
	Timestamp     time.Time `json:"timestamp"`
}

// errNoUser is remembered by the cache for a while, like a user who is there.
var errNoUser = fmt.Errorf("user %w", cache.ErrNotFound)

type finder func(ctx context.Context, id string) (User, error)

type gateway struct {
	client  *rediskit.Client
	log     *slog.Logger
	limit   func(http.Handler) http.Handler
	users   *cache.Cache[User]
	find    finder
	updates *pubsub.Topic[Update]
	sub     *pubsub.Subscription
	feed    *feed

	sessions *session.Store[login]
	producer *tasks.Producer
	realtime *realtime.Handler
}

// newGateway sets up what the handlers use. The one subscription of the process
// is distributed to its browsers by the feed.
func newGateway(ctx context.Context, client *rediskit.Client, find finder, log *slog.Logger) (*gateway, error) {
	limiter, err := ratelimit.New(client, ratelimit.Config{
		OnError: ratelimit.FailOpen, // better to serve without a limit than not to serve
	})
	if err != nil {
		return nil, err
	}
	limit, err := ratelimit.Middleware(limiter, ratelimit.Rule{Limit: 100, Window: time.Minute, Key: caller})
	if err != nil {
		return nil, err
	}
	users, err := cache.Of[User](client, "user", cache.Config{
		TTL: time.Hour, Jitter: 0.1, NegativeTTL: time.Minute,
		OnError: cache.Bypass, // the source of the users bears the load alone if it must
	})
	if err != nil {
		return nil, err
	}
	bus, err := pubsub.New(client, pubsub.Config{})
	if err != nil {
		return nil, err
	}
	updates, err := pubsub.Of[Update](bus, "appointment:updates")
	if err != nil {
		return nil, err
	}
	gw := &gateway{client: client, log: log, limit: limit, users: users, find: find, updates: updates, feed: newFeed()}
	if err := gw.newNotifications(); err != nil {
		return nil, err
	}
	// The subscription outlives ctx, so that streams get their news until close.
	gw.sub, err = updates.Subscribe(context.WithoutCancel(ctx), gw.onUpdate, gw.onGap)
	if err != nil {
		return nil, err
	}
	if err := gw.realtime.Start(ctx); err != nil {
		return nil, errors.Join(err, gw.sub.Close())
	}
	return gw, nil
}

// close ends what newGateway began, after the last request.
func (gw *gateway) close(ctx context.Context) error {
	gw.users.Wait()
	return errors.Join(gw.realtime.Close(ctx), gw.sub.Close())
}

func (gw *gateway) routes() http.Handler {
	api := http.NewServeMux()
	api.HandleFunc("GET /users/{id}", gw.user)
	api.HandleFunc("POST /appointments/{id}/status", gw.setStatus)
	api.HandleFunc("GET /appointments/updates", gw.stream)

	mux := http.NewServeMux()
	mux.Handle("/", gw.limit(api))
	mux.HandleFunc("GET /{$}", file("text/html", pageHTML))
	mux.HandleFunc("GET /page.js", file("text/javascript", pageJS))
	mux.HandleFunc("GET /page.css", file("text/css", pageCSS))
	// The handler looks after the origin of its requests itself.
	mux.Handle("/realtime/", http.StripPrefix("/realtime", gw.realtime))
	own := http.NewCrossOriginProtection() // a page elsewhere must not log anybody in or out
	mux.Handle("POST /login", gw.limit(own.Handler(http.HandlerFunc(gw.logIn))))
	mux.Handle("POST /logout", own.Handler(http.HandlerFunc(gw.logOut)))
	mux.Handle("POST /notify-me", gw.limit(own.Handler(http.HandlerFunc(gw.notifyMe))))
	// ?verbose tells more than a stranger needs: the proxy in front of a real
	// gateway does not pass this route on.
	mux.Handle("GET /health/redis", rediskit.HealthHandler(gw.client))
	return mux
}

// caller is whom the rate limit counts: a real gateway takes the authenticated
// user and leaves the address for those who are not logged in.
func caller(r *http.Request) (key string, limited bool) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	return "address:" + host, true
}

func (gw *gateway) user(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	user, err := gw.users.GetOrLoad(r.Context(), id, func(ctx context.Context) (User, error) { return gw.find(ctx, id) })
	switch {
	case errors.Is(err, cache.ErrNotFound):
		http.Error(w, "no such user", http.StatusNotFound)
	case err != nil:
		gw.unavailable(w, "find user", err)
	default:
		writeJSON(w, http.StatusOK, user)
	}
}

func (gw *gateway) setStatus(w http.ResponseWriter, r *http.Request) {
	update := Update{Timestamp: time.Now().UTC()}
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&update)
	if err != nil || update.Status == "" {
		http.Error(w, `want a body such as {"status":"confirmed"}`, http.StatusBadRequest)
		return
	}
	update.AppointmentID = r.PathValue("id")
	// A real service stores the status first: the message only says that it changed.
	if err := gw.updates.Publish(r.Context(), update); err != nil {
		gw.unavailable(w, "publish update", err)
		return
	}
	writeJSON(w, http.StatusAccepted, update)
}

func (gw *gateway) onUpdate(_ context.Context, m pubsub.Message[Update]) {
	data, err := json.Marshal(m.Value)
	if err != nil {
		gw.log.Error("encode update", "error", err)
		return
	}
	gw.feed.send(event{"update", data})
}

// onGap tells the browsers to read the appointments again.
func (gw *gateway) onGap(_ context.Context, gap pubsub.Gap) {
	gw.log.Warn("updates may be missing", "gap", gap.String())
	gw.feed.send(event{"gap", []byte("{}")})
}

func (gw *gateway) unavailable(w http.ResponseWriter, what string, err error) {
	gw.log.Error(what, "error", err)
	http.Error(w, "try again later", http.StatusServiceUnavailable)
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value) // the client has gone
}
