package realtime

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/medicalink/postroom/internal/inbox"
	"github.com/medicalink/postroom/internal/notifier/webpush"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/rediskit/pubsub"
)

// Defaults of the zero fields of [Config].
const (
	DefaultHeartbeat      = 20 * time.Second
	DefaultBuffer         = 64
	DefaultMaxConnections = 20_000
	DefaultMaxPerUser     = 20
)

const (
	// writeTimeout is how long one write may take.
	writeTimeout = 10 * time.Second
	// readTimeout is how long Redis may take for one answer.
	readTimeout = 5 * time.Second
	// catchUps is how many clients are brought up to date at a time: after a lost
	// subscription all of them ask Redis.
	catchUps = 16
	// closeWindow is the time over which Close spreads the ends of connections, so that
	// not all come back in the same moment.
	closeWindow = 5 * time.Second
)

// An Identity is who makes a request.
type Identity struct {
	// User is the id of the user, as in the notifications' User.
	User string
	// Expires is when a connection of this identity ends. The client comes back and is
	// authenticated again. The zero time is never. A session that is revoked earlier
	// keeps its connection until then: let it be a few minutes.
	Expires time.Time
}

// Config holds the settings of a [Handler].
type Config struct {
	// Namespace is QUEUE_NAMESPACE of the workers.
	Namespace string

	// Authenticate says who makes a request, or returns an error, which is answered 401
	// without a word of it. An EventSource sends cookies but no header of one's own:
	// use a session cookie, or a ticket in the query that is good for one request.
	// Required.
	Authenticate func(*http.Request) (Identity, error)

	// Heartbeat is the longest silence on a connection. It must be shorter than what
	// proxies allow. Default 20 s; at least 10 ms.
	Heartbeat time.Duration

	// Buffer is how many events may wait for one client before it is cut. Default 64.
	Buffer int

	// MaxConnections bounds the clients of /events and /ws together. One of /events
	// takes about 13 kB of memory, its goroutine included, and 28 kB with what net/http
	// and the kernel's file take. Further ones are answered 503. Default 20,000.
	MaxConnections int

	// MaxPerUser is that for one user, and answered 429. Each open tab of a browser is
	// one. Default 20.
	MaxPerUser int

	// AllowedOrigins are the origins whose pages may use the handler besides those of
	// its own, such as https://app.example.org. They get CORS headers that allow
	// cookies. Default none.
	AllowedOrigins []string

	// PushPublicKey is the public part of the workers' VAPID_PRIVATE_KEY, as worker
	// push-key shows it: 87 characters of base64url. With it there is /push, without it
	// there is not.
	PushPublicKey string
}

func (c *Config) complete() error {
	var errs []error
	if c.Authenticate == nil {
		errs = append(errs, errors.New("realtime config: Authenticate is missing: it says who makes a request"))
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = DefaultHeartbeat
	}
	if c.Heartbeat < 10*time.Millisecond {
		errs = append(errs, fmt.Errorf("realtime config: Heartbeat is %s: it must be at least 10ms", c.Heartbeat))
	}
	for _, field := range []struct {
		name  string
		value *int
		zero  int
	}{
		{"Buffer", &c.Buffer, DefaultBuffer},
		{"MaxConnections", &c.MaxConnections, DefaultMaxConnections},
		{"MaxPerUser", &c.MaxPerUser, DefaultMaxPerUser},
	} {
		if *field.value == 0 {
			*field.value = field.zero
		}
		if *field.value < 1 {
			errs = append(errs, fmt.Errorf("realtime config: %s is %d: it must be at least 1", field.name, *field.value))
		}
	}
	if c.PushPublicKey != "" {
		errs = append(errs, checkPushKey(c.PushPublicKey))
	}
	return errors.Join(errs...)
}

// A Handler serves the routes of the package. It is safe for concurrent use.
type Handler struct {
	cfg    Config
	store  *inbox.Store
	push   *webpush.Subscriptions
	topic  *pubsub.Topic[inbox.Event]
	mux    *http.ServeMux
	origin *http.CrossOriginProtection
	hub    *hub
	slots  chan struct{} // one for each client that is being brought up to date

	mu  sync.Mutex // owns sub
	sub *pubsub.Subscription

	closeOnce sync.Once
	closing   chan struct{} // closed when Close begins
	window    time.Duration // of Close; set before closing is closed
	killed    chan struct{} // closed when Close waits no longer

	replayed, resets, gaps, failures atomic.Uint64
}

// New returns a handler of the inboxes in client's Redis, which must be that of the
// workers. It fails if cfg makes no sense.
func New(client *rediskit.Client, cfg Config) (*Handler, error) {
	if client == nil {
		return nil, errors.New("make realtime handler: no client")
	}
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	store, err := inbox.New(client, inbox.Config{Namespace: cfg.Namespace})
	if err != nil {
		return nil, fmt.Errorf("make realtime handler: %w", err)
	}
	push, err := webpush.NewSubscriptions(client, cfg.Namespace)
	if err != nil {
		return nil, fmt.Errorf("make realtime handler: %w", err)
	}
	// The subscription is for all users: it has to bridge the moments in which Go
	// collects garbage.
	bus, err := pubsub.New(client, pubsub.Config{Buffer: 4096, BufferBytes: 32 << 20})
	if err != nil {
		return nil, fmt.Errorf("make realtime handler: %w", err)
	}
	topic, err := pubsub.Of[inbox.Event](bus.Service(inbox.ChannelService), inbox.Topic(cfg.Namespace))
	if err != nil {
		return nil, fmt.Errorf("make realtime handler: %w", err)
	}
	h := &Handler{
		cfg: cfg, store: store, push: push, topic: topic,
		mux:     http.NewServeMux(),
		origin:  http.NewCrossOriginProtection(),
		hub:     newHub(cfg.MaxConnections, cfg.MaxPerUser),
		slots:   make(chan struct{}, catchUps),
		closing: make(chan struct{}),
		killed:  make(chan struct{}),
	}
	for _, origin := range cfg.AllowedOrigins {
		if err := h.origin.AddTrustedOrigin(origin); err != nil {
			return nil, fmt.Errorf("realtime config: AllowedOrigins has %q: want a scheme and a host, such as https://app.example.org", origin)
		}
	}
	h.routes()
	return h, nil
}

// Start subscribes to the changes of the inboxes, until [Handler.Close]. It returns when
// Redis has confirmed that, or an error if it does not within the client's timeouts.
// Until then /events and /ws answer 503. A second call does nothing.
func (h *Handler) Start(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.closing:
		return errors.New("start realtime handler: it has been closed")
	default:
	}
	if h.sub != nil {
		return nil
	}
	sub, err := h.topic.Subscribe(context.WithoutCancel(ctx), h.onChange, h.onGap)
	if err != nil {
		return fmt.Errorf("start realtime handler: %w", err)
	}
	h.sub = sub
	return nil
}

// onChange sends one change to who is connected here.
func (h *Handler) onChange(_ context.Context, m pubsub.Message[inbox.Event]) {
	if !h.hub.has(m.Value.User) {
		return
	}
	e, err := live(&m.Value)
	if err != nil {
		// Of a newer version, perhaps: the page gets what the stream can tell.
		h.failures.Add(1)
		e = &event{resync: true}
	}
	h.hub.send(m.Value.User, e)
}

// onGap has everybody brought up to date. Its place in the order is kept: what was
// queued before is sent before.
func (h *Handler) onGap(context.Context, pubsub.Gap) {
	h.gaps.Add(1)
	h.hub.sendAll(&event{resync: true})
}

// connected reports whether changes arrive.
func (h *Handler) connected() bool {
	sub := h.subscription()
	return sub != nil && sub.Stats().Connected
}

func (h *Handler) subscription() *pubsub.Subscription {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sub
}

// Close ends the connections, each at a random moment within five seconds or half of
// the time that ctx leaves, whichever is shorter, and tells their clients to come back:
// to another process by then. Call it before or beside [http.Server.Shutdown], which
// waits for the connections but does not end them. It returns an error if some were
// still there when ctx ended. A second call waits too.
func (h *Handler) Close(ctx context.Context) error {
	h.closeOnce.Do(func() {
		h.hub.close()
		h.window = closeWindow
		if deadline, ok := ctx.Deadline(); ok {
			h.window = min(h.window, max(time.Until(deadline)/2, 1))
		}
		close(h.closing)
	})
	served := make(chan struct{})
	go func() {
		h.hub.serving.Wait()
		close(served)
	}()
	var err error
	select {
	case <-served:
	case <-ctx.Done():
		clients, _ := h.hub.count()
		err = fmt.Errorf("close realtime handler: %d clients are still connected: %w", clients, ctx.Err())
		h.kill() // those whose write hangs follow when its time is over
	}
	if sub := h.subscription(); sub != nil {
		err = errors.Join(err, sub.Close())
	}
	return err
}

// kill ends every connection now.
func (h *Handler) kill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.killed:
	default:
		close(h.killed)
	}
}

// Ready returns nil if what happens reaches the clients, or why it does not.
func (h *Handler) Ready() error {
	select {
	case <-h.closing:
		return errors.New("realtime: the handler is being closed")
	default:
	}
	sub := h.subscription()
	switch {
	case sub == nil:
		return errors.New("realtime: the handler has not been started")
	case !sub.Stats().Connected:
		return errors.New("realtime: the subscription to Redis is interrupted")
	}
	return nil
}

// Stats counts what a handler has seen since it was made.
type Stats struct {
	Clients  int    // connections of /events and /ws now
	Cut      uint64 // clients that did not read
	Replayed uint64 // notifications that were sent from the stream
	Resets   uint64 // clients that were told to load the inbox again
	Gaps     uint64 // interruptions of the subscription, after which all clients caught up
	Failures uint64 // answers that Redis did not give, or that could not be understood
}

// Stats returns the counters.
func (h *Handler) Stats() Stats {
	clients, cut := h.hub.count()
	return Stats{
		Clients: clients, Cut: cut, Replayed: h.replayed.Load(), Resets: h.resets.Load(),
		Gaps: h.gaps.Load(), Failures: h.failures.Load(),
	}
}
