// Package endpoint is the registry of where webhooks and chat messages go. Jobs name an
// endpoint by its id: its URL and its keys are secrets that rotate, and stay here.
//
// Invariants:
//
//   - An id names one endpoint of one kind until it is removed.
//   - Every change is one script on one key, by Redis's clock, and refuses to undo
//     what somebody else has changed meanwhile.
//   - An endpoint that is disabled stays registered: what was meant for it can be sent
//     again once it is enabled.
//   - Whoever changes an endpoint sees the change at once, other processes within 5 s.
//   - URL and keys print as <secret>, in JSON too.
//
// In Redis an endpoint is one hash, postroom:endpoint:{namespace:id}, and the set
// postroom:endpoints:namespace has the ids. Both are as secret as what they hold: only
// workers and the operator's commands need them.
package endpoint
