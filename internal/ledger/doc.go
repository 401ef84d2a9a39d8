// Package ledger is the send-once record: one small hash in Redis for each job
// that remembers how far its message got, whoever ran it.
//
// SMTP has no idempotency key. Between the relay's acceptance of a message and
// our knowing of it lies a gap that cannot be closed (RFC 1047), only made
// small and decided. asynq makes it wide: a job runs again after a lost ack, a
// lost lease, a timeout, a shutdown or a crash. The ledger narrows it back to
// one moment, the final dot of the SMTP exchange.
//
// # States
//
//	          Begin            Commit            Sent
//	(nothing) ─────► started ─────────► sending ──────► sent
//	    ▲               │                  │
//	    └── Release ────┘                  └─ Doubt ──► sending, nobody at work
//	                                            Park ─► parked
//
// Begin takes the job for one attempt and gives it a token; a later Begin takes
// it away again, so that an attempt that was frozen, cut off or timed out finds
// at Commit that it is no longer the one to send. Commit is called when all of
// the body is on the wire and the final dot is not: a job that dies before it
// was certainly not sent, a job that dies after it is in doubt. Sent and parked
// are remembered for [Retention].
//
// # Invariants
//
//   - Commit succeeds for at most one attempt that has not ended: nobody
//     begins a job whose state is sending while its owner lives.
//   - What cannot be written because Redis is away waits in a journal in memory
//     and is retried until it is; Begin in the same process reads the journal
//     first. asynq redelivers no sooner than the lease allows, so the journal
//     wins that race unless the process dies as well.
//   - Begin and Commit fail closed: no answer from Redis means no message.
//
// # Crash attribution
//
// Begin counts starts that never ended. Whatever ends an attempt in this
// process, error or panic, sets the count back; only the death of the process
// leaves it standing. Two such starts make the job a suspect that must run
// alone ([Isolate]), so that the third can be blamed on nobody else; after
// [MaxCrashes] it is [Poison]. Its neighbours lose nothing.
package ledger
