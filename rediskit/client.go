package rediskit

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// pingTimeout bounds Open and Health when the caller's context has no deadline.
const pingTimeout = 10 * time.Second

// Client is a pool of connections for commands, and the maker of further
// clients with the same settings. It is safe for concurrent use.
type Client struct {
	redis.UniversalClient

	cfg    Config
	tlsCfg *tls.Config

	publisher  func() redis.UniversalClient
	subscriber func() redis.UniversalClient

	mu        sync.Mutex // owns dedicated and closed
	dedicated []redis.UniversalClient
	closed    bool
}

// Open connects to Redis and waits for the answer to a PING, at most until ctx
// ends or 10 s. Its error is a *[ConnError] once a connection was tried. It
// also ends go-redis's habit of printing to standard error: see [LogTo].
func Open(ctx context.Context, cfg Config) (*Client, error) {
	quiet()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	tlsCfg, err := cfg.tlsConfig()
	if err != nil {
		return nil, fmt.Errorf("open redis: %w", err)
	}
	c := &Client{cfg: cfg, tlsCfg: tlsCfg}
	c.publisher = sync.OnceValue(func() redis.UniversalClient { return c.Dedicated("publish") })
	c.subscriber = sync.OnceValue(func() redis.UniversalClient { return c.Dedicated("subscribe") })
	c.UniversalClient = cfg.newClient(tlsCfg)
	if err := c.Health(ctx); err != nil {
		_ = c.Close() // the PING's error says more
		return nil, err
	}
	for _, warning := range cfg.Warnings() {
		warn("redis " + cfg.String() + ": " + warning)
	}
	return c, nil
}

// Config returns the settings c was opened with.
func (c *Client) Config() Config { return c.cfg }

// Service returns the name in front of c's keys; "" if c has none.
func (c *Client) Service() string { return c.cfg.Service }

// Key returns the key of one of the service's values: the service's name and
// the parts, joined by colons, such as api-gateway:user:123. Channels are named
// in the same way. It is no more than that: a part that holds a colon looks
// like two parts, so a part that comes from outside goes last, and keys that a
// script or a command uses together carry a hash tag in a part ("{user-123}"),
// so that a cluster keeps them in one slot. Without a service the key is the
// parts alone.
func (c *Client) Key(parts ...string) string {
	key := strings.Join(parts, ":")
	if c.cfg.Service == "" {
		return key
	}
	return c.cfg.Service + ":" + key
}

// Dedicated returns a further client with the same settings but its own
// connections and hooks, so that a blocked subscriber or a busy fetch loop
// never starves the others. name is shown by CLIENT LIST after the configured
// client name. change, if any, may give it another PoolSize, MaxRetries or other
// timeouts. [Client.Close] closes it; closing it earlier is allowed.
func (c *Client) Dedicated(name string, change ...func(*Config)) redis.UniversalClient {
	cfg := c.cfg
	for _, f := range change {
		f(&cfg)
	}
	if name != "" {
		if owner := cmp.Or(cfg.ClientName, cfg.Service); owner != "" {
			name = owner + ":" + name
		}
		cfg.ClientName = name
	}
	further := cfg.newClient(c.tlsCfg)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = further.Close() // its commands then say that the client is closed
	} else {
		c.dedicated = append(c.dedicated, further)
	}
	return further
}

// Publisher returns the client to publish with: one for the life of c, made at
// the first call, with connections of its own so that a burst of messages does
// not keep the cache waiting.
func (c *Client) Publisher() redis.UniversalClient { return c.publisher() }

// Subscriber returns the client to subscribe with: one for the life of c, made
// at the first call. Each subscription has a connection for itself.
func (c *Client) Subscriber() redis.UniversalClient { return c.subscriber() }

// ConnOpt satisfies the RedisConnOpt interface of asynq and asynqmon, which
// close the clients they ask for: each call of MakeRedisClient returns a new
// [Client.Dedicated] client, so that they never close a shared one.
type ConnOpt struct {
	client *Client
	name   string
}

// ConnOpt returns an option whose clients carry name.
func (c *Client) ConnOpt(name string) ConnOpt { return ConnOpt{client: c, name: name} }

// MakeRedisClient returns a new redis.UniversalClient.
func (o ConnOpt) MakeRedisClient() any { return o.client.Dedicated(o.name) }

// Health asks for a PING, for at most 10 s or until ctx ends. In a cluster the
// answer of one node is enough: the slots of another may have no master at that
// moment. Its error is a *[ConnError].
func (c *Client) Health(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, pingTimeout)
		defer cancel()
	}
	if err := c.Ping(ctx).Err(); err != nil {
		return c.cfg.explain(err)
	}
	return nil
}

// Close closes c and every dedicated client. A second call does nothing.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	var errs []error
	for _, d := range append(c.dedicated, c.UniversalClient) {
		if err := d.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
			errs = append(errs, fmt.Errorf("close redis client: %w", err))
		}
	}
	c.dedicated = nil
	return errors.Join(errs...)
}

// Format prints the target without secrets for every verb.
func (c *Client) Format(w fmt.State, _ rune) { _, _ = io.WriteString(w, "redis "+c.cfg.String()) }
