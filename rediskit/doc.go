// Package rediskit is the one way to reach Redis: every client of the worker,
// the tools and the services is made here, from one [Config].
//
// Invariants:
//
//   - The user name of an ACL user, the database and the TLS settings are never
//     dropped, whatever the topology (single server, Sentinel, Cluster, Unix
//     socket).
//   - Every client honours the deadline of the context it is given: without
//     that a hung server holds a caller for the whole read timeout.
//   - Passwords do not appear in an error, a log line or a printed value.
//   - [Open] either returns a client that answered a PING or an error that says
//     what was tried, why it failed and which setting to look at.
//   - Every key and channel of a service begins with its name: [Client.Key].
//   - Commands, publishing and subscribing have pools of their own.
//   - A dead or silent master is left for its successor as soon as the sentinels
//     or the cluster have chosen one. Until then callers get errors, after the
//     retries of [Config]; nothing waits longer than retries and timeouts allow.
//   - A server that would delete queued jobs is refused: [Client.Preflight].
//   - Asynq and asynqmon get clients of their own ([Client.Dedicated],
//     [Client.ConnOpt]) and can never close the shared one.
package rediskit
