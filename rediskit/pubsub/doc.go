// Package pubsub sends typed messages between services over Redis' publish and
// subscribe.
//
//	bus, err := pubsub.New(client, pubsub.Config{})
//	updates, err := pubsub.Of[Update](bus, "appointment:updates")
//	err = updates.Publish(ctx, Update{ID: "a-17", Status: "confirmed"})
//	sub, err := updates.Subscribe(ctx, onUpdate, onGap)
//	defer sub.Close()
//
// A message is the JSON of a Go value on the channel service:topic, and nothing
// else, so that a service that publishes with another library takes part.
//
// Redis keeps no message: who does not listen in that moment never gets it.
// This package does not change that (use tasks for work that must be done), but
// it never hides it. Invariants:
//
//   - [Topic.Subscribe] returns when the server has confirmed the subscription:
//     whatever is published afterwards arrives or is reported.
//   - A handler is called for one message at a time, in the order in which Redis
//     got them. Only while a Cluster changes its masters may messages that were
//     published just before and after overtake each other.
//   - Wherever messages may be missing the subscriber is told, in their place
//     in the order, by a [Gap]: after a lost connection, when its buffer was
//     full, and for a message that cannot be decoded. The function for gaps
//     must be given; [IgnoreGaps] is for those who can live with losses.
//   - The gap of a lost connection is told once the subscription works again:
//     state that is read again at that point misses nothing.
//   - Memory is bounded: a full buffer drops the arriving message and counts it.
//   - A connection that went silent (a frozen server, a firewall that forgot it)
//     is found by a PING and replaced, see [Config].DeadAfter.
//   - When [Subscription.Close] has returned, no handler runs.
//
// Each subscription has one connection of its own, outside every pool, and
// messages are published through a pool of their own: neither can starve the
// cache. Subscribe to few topics or to a pattern and distribute in the process;
// do not subscribe once for each user.
//
// In a Cluster every node passes messages on to all others. A node that is cut
// off from the others but not from the subscriber delivers nothing and looks
// healthy until the cluster removes it; no notice can be given of that.
//
// A publish whose answer was lost is tried again by go-redis, so that a message
// can arrive twice.
package pubsub
