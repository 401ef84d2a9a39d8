// Package webhook delivers notifications to registered endpoints as Standard Webhooks
// 1.0 has it (github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md).
//
//	POST /hooks HTTP/1.1
//	Content-Type: application/json
//	Webhook-Id: 0199b2c0-…            the notification's id: the same at every try and replay
//	Webhook-Timestamp: 1674087231     when this try was made, in seconds
//	Webhook-Signature: v1,K5oZ… v1a,hnO3…
//
// Invariants:
//
//   - The body is the message's payload, byte for byte, at every try.
//   - Every key that has not retired signs, so that a receiver can change to a new key
//     whenever it likes within the grace.
//   - 2xx is delivered. Everything else is not, and is tried again by [Schedule]; no
//     redirect is followed. 410 disables the endpoint at once, 5 days without a
//     delivery do so too.
//   - A receiver that is overloaded or away is left alone: by its own Retry-After, and
//     by a breaker that opens after 5 faults in a row. Messages that come meanwhile are
//     held at no cost.
//   - What a receiver answers is read up to 1 kB and thrown away: it can hold what was
//     sent to it.
//
// A receiver may get a message twice, and in any order: it knows it by its id. [Verify]
// is what a receiver does first.
//
// The breaker and the limit of concurrent messages are each process's own. Sharing them
// would cost every message another round trip to Redis, and what it saves is a few
// requests: a fleet of n processes tries a dead endpoint 5·n times instead of 5, and
// probes it n times in each pause. That an endpoint has been failing for days is known
// to the fleet, in the registry.
package webhook
