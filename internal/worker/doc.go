// Package worker runs the jobs: it wires the engine, the ledger, the templates
// and the mailer into one process that consumes the queues.
//
// # What happens to a job
//
// A handler is a function from a job to nil or an error. Around every handler
// stands the same shell ([Worker.shell]): it contains panics, bounds the real
// number of handlers (asynq frees a slot when a job times out, though the
// handler may still run), asks the ledger for the right to run, writes one log
// line, and hands asynq an error text that holds no address and no payload.
//
// Errors have classes, a closed set ([Outcome]):
//
//	sent       accepted by the relay or the other side, now or by an earlier attempt
//	skipped    not called for any more: read, switched off, replaced by a newer one
//	expired    past its deadline: dropped and counted, never sent
//	retry      temporary: tried again after the class's schedule, costs an attempt
//	deferred   not the job's fault (provider, Redis, shutdown): tried again, costs none
//	rejected   permanent: archived at once with the reason
//	unknown    nobody can say whether it was sent, and the class forbids a second
//	           copy: archived; running it from there sends it
//	poison     killed its process three times: archived
//
// # Stopping a handler
//
// A handler's context ends at its timeout, when its lease is lost or at
// shutdown, and everything in it honours that, until [ledger.Attempt.Commit]:
// between the final dot and the relay's answer it waits for the answer, because
// to stop there only makes a doubt out of a fact. The mailer bounds that wait.
//
// # Crashes
//
// Each process keeps a key alive in Redis. When it disappears, another process
// hands that process's jobs back to their queues ([rescuer]), in seconds instead of
// the minute or two that asynq's leases take, and at no cost in attempts.
package worker
