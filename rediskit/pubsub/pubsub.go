package pubsub

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/rediskit"
)

// Defaults of the zero fields of [Config].
const (
	DefaultBuffer      = 256
	DefaultBufferBytes = 8 << 20
	DefaultDeadAfter   = 10 * time.Second
)

// Config holds the limits of every subscription made from one [Bus].
type Config struct {
	// Buffer is how many messages may wait for a subscription's handler; further
	// ones are dropped and reported as a [Gap]. Default 256. A larger one bridges
	// longer pauses of the handler and makes what it then handles older.
	Buffer int

	// BufferBytes is how many bytes of undecoded messages may wait, however few
	// they are; one message is always accepted. Default 8 MiB.
	BufferBytes int

	// DeadAfter is how long a connection may be silent, a PING in between
	// unanswered, before it is replaced: the longest time for which a subscriber
	// does not know that it is cut off. Default 10 s; at least 10 ms.
	DeadAfter time.Duration
}

// Bus makes topics. It is safe for concurrent use; a program needs one.
type Bus struct {
	client  *rediskit.Client
	publish redis.UniversalClient
	cfg     Config
	service string // of the topics' names
	err     error  // why service cannot be used
}

// New returns a bus on client, with a connection pool of its own for
// publishing. Closing client ends its subscriptions. It fails if cfg makes no
// sense.
func New(client *rediskit.Client, cfg Config) (*Bus, error) {
	if client == nil {
		return nil, errors.New("make pubsub bus: no client")
	}
	if cfg.Buffer == 0 {
		cfg.Buffer = DefaultBuffer
	}
	if cfg.BufferBytes == 0 {
		cfg.BufferBytes = DefaultBufferBytes
	}
	if cfg.DeadAfter == 0 {
		cfg.DeadAfter = DefaultDeadAfter
	}
	var errs []error
	if cfg.Buffer < 0 {
		errs = append(errs, fmt.Errorf("pubsub config: Buffer is %d: it must be at least 1", cfg.Buffer))
	}
	if cfg.BufferBytes < 0 {
		errs = append(errs, fmt.Errorf("pubsub config: BufferBytes is %d: it must be at least 1", cfg.BufferBytes))
	}
	if cfg.DeadAfter < 10*time.Millisecond {
		errs = append(errs, fmt.Errorf("pubsub config: DeadAfter is %s: it must be at least 10ms", cfg.DeadAfter))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &Bus{client: client, publish: client.Dedicated("publish"), cfg: cfg, service: client.Service()}, nil
}

// Service returns the same bus for the topics of another service. A name that
// no service can have is reported by [Of] and [Matching].
func (b *Bus) Service(name string) *Bus {
	other := *b
	other.service = name
	other.err = nil
	if name == "" || strings.ContainsAny(name, ":*?[]\\^ \t\r\n") {
		other.err = fmt.Errorf("pubsub: %q is not the name of a service", name)
	}
	return &other
}

// channel returns the name of a topic's channel, as [rediskit.Client.Key] makes
// it for the own service.
func channel(service, name string) string {
	if service == "" {
		return name
	}
	return service + ":" + name
}

// send publishes to a channel. In a Cluster go-redis would take any node, so
// that two messages reach a subscriber on different ways and the later one
// first: here all take the master of the channel's slot, where go-redis
// subscribes too.
func (b *Bus) send(ctx context.Context, channel string, payload []byte) error {
	cluster, ok := b.publish.(*redis.ClusterClient)
	if !ok {
		return b.publish.Publish(ctx, channel, payload).Err()
	}
	retries := cmp.Or(b.client.Config().MaxRetries, rediskit.DefaultMaxRetries)
	for pause := minPause; ; pause *= 2 {
		node, err := cluster.MasterForKey(ctx, channel)
		if err == nil {
			err = node.Publish(ctx, channel, payload).Err()
		}
		_, refused := errors.AsType[redis.Error](err)
		if err == nil || refused || errors.Is(err, redis.ErrClosed) || retries <= 0 {
			return err
		}
		retries--
		cluster.ReloadState(ctx) // another node may be the master now
		select {
		case <-time.After(jitter(pause)):
		case <-ctx.Done():
			return err
		}
	}
}

// Topic is a channel on which every message is the JSON of a T. It is safe for
// concurrent use.
type Topic[T any] struct {
	bus     *Bus
	name    string
	channel string
}

// Of returns the topic name of the bus's service: "appointment:updates" of the
// service api-gateway is the channel api-gateway:appointment:updates. name must
// not be empty; the channel's name shows in Redis' monitoring, so it should hold
// no personal data.
func Of[T any](bus *Bus, name string) (*Topic[T], error) {
	if bus.err != nil {
		return nil, bus.err
	}
	if name == "" {
		return nil, errors.New("make topic: no name")
	}
	return &Topic[T]{bus: bus, name: name, channel: channel(bus.service, name)}, nil
}

// Name returns the topic's name without that of its service.
func (t *Topic[T]) Name() string { return t.name }

// Publish sends value to all who are subscribed now. Without an error Redis
// has passed it on; whether anybody listened is not known. With an error the
// message may have been passed on nevertheless.
func (t *Topic[T]) Publish(ctx context.Context, value T) error {
	payload, err := json.Marshal(value)
	if err != nil {
		// The cause can quote the value, so it is not wrapped.
		return fmt.Errorf("encode message of topic %s: a %T cannot be written as JSON", t.name, value)
	}
	if err := t.bus.send(ctx, t.channel, payload); err != nil {
		return fmt.Errorf("publish to topic %s: %w", t.name, err)
	}
	return nil
}

// Subscribe calls onMessage for every message and onGap wherever messages may
// be missing, one call at a time, until ctx ends, [Subscription.Close] is called
// or the Redis client is closed. Their context ends with the subscription.
//
// It waits until the server has confirmed the subscription, for at most the
// client's dial and read timeouts together, and returns an error if it did not.
func (t *Topic[T]) Subscribe(
	ctx context.Context, onMessage func(context.Context, Message[T]), onGap func(context.Context, Gap),
) (*Subscription, error) {
	return subscribe(ctx, t.bus, source{name: t.name, channel: t.channel}, onMessage, onGap)
}

// Pattern is all topics whose name matches a pattern. It can only be subscribed
// to.
type Pattern[T any] struct {
	bus *Bus
	src source
}

// Matching returns the topics of the bus's service that match pattern, in which
// * stands for any text, ? for one byte, [ab] for one of these bytes, and a
// backslash takes the special meaning from the next byte. Redis compares every
// published message with every pattern on the server, so use few.
func Matching[T any](bus *Bus, pattern string) (*Pattern[T], error) {
	if bus.err != nil {
		return nil, bus.err
	}
	if pattern == "" {
		return nil, errors.New("make pattern of topics: no pattern")
	}
	// The service's name holds no special byte (rediskit and Service see to that),
	// so that a pattern never reaches other services.
	return &Pattern[T]{bus: bus, src: source{name: pattern, channel: channel(bus.service, pattern), pattern: true}}, nil
}

// Subscribe is like [Topic.Subscribe] for every topic that matches.
func (p *Pattern[T]) Subscribe(
	ctx context.Context, onMessage func(context.Context, Message[T]), onGap func(context.Context, Gap),
) (*Subscription, error) {
	return subscribe(ctx, p.bus, p.src, onMessage, onGap)
}

// Message is one message as a handler gets it.
type Message[T any] struct {
	Topic string // without the service's name
	Value T
}

// Gap says that messages are missing, or may be, between the calls of the
// handlers before and after it. A subscriber that keeps state reads it again.
type Gap struct {
	// Dropped is how many messages arrived while the buffer was full.
	Dropped int
	// Undecodable is how many messages were not the JSON of the topic's type.
	Undecodable int
	// Disconnects is how often the connection was lost; how many messages were
	// published meanwhile, if any, cannot be known.
	Disconnects int
	// From and To are the local times between which it happened. For a lost
	// connection they reach from its last sign of life to the moment when the
	// server had confirmed the new subscription.
	From, To time.Time
	// Err is why, for the last of the events: nil if messages were only dropped.
	// It never holds a message's content.
	Err error
}

// String describes g for a log.
func (g Gap) String() string {
	var parts []string
	if g.Disconnects > 0 {
		parts = append(parts, fmt.Sprintf("connection lost %d times", g.Disconnects))
	}
	if g.Dropped > 0 {
		parts = append(parts, fmt.Sprintf("%d messages dropped by a full buffer", g.Dropped))
	}
	if g.Undecodable > 0 {
		parts = append(parts, fmt.Sprintf("%d messages undecodable", g.Undecodable))
	}
	return strings.Join(parts, ", ") + " within " + g.To.Sub(g.From).Round(time.Millisecond).String()
}

// merge adds what happened later, with no message in between.
func (g Gap) merge(later Gap) Gap {
	g.Dropped += later.Dropped
	g.Undecodable += later.Undecodable
	g.Disconnects += later.Disconnects
	if later.From.Before(g.From) {
		g.From = later.From
	}
	if later.To.After(g.To) {
		g.To = later.To
	}
	if later.Err != nil {
		g.Err = later.Err
	}
	return g
}

// IgnoreGaps is the gap function of a subscriber for whom a lost message does
// not matter, such as a display that the next message refreshes anyway. Gaps
// are still counted in [Subscription.Stats].
func IgnoreGaps(context.Context, Gap) {}

// decode turns a payload into a value; its error tells what is wrong without
// quoting the payload.
func decode[T any](payload string) (T, error) {
	var value T
	err := json.Unmarshal([]byte(payload), &value)
	if err == nil {
		return value, nil
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return value, fmt.Errorf("decode message: not JSON at byte %d of %d", syntax.Offset, len(payload))
	}
	if mismatch, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return value, fmt.Errorf("decode message: a %s is wanted at byte %d of %d", mismatch.Type, mismatch.Offset, len(payload))
	}
	return value, fmt.Errorf("decode message: not the JSON of a %T", value)
}
