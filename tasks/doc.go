// Package tasks is what a service imports to hand work to postroom: the job
// types, their validation, the options of a job and the Producer that puts it
// into Redis. It depends on the standard library, asynq, go-redis and uuid only, so
// that a service which enqueues mail does not compile an SMTP client.
//
// An Email is one message. A Notification is one event, told to one user over the
// channels of its plan; workers make a Delivery of each of its steps, and a
// DigestClose for each digest. Services enqueue emails and notifications, workers the
// other two.
//
// # What a producer can rely on
//
//   - A refused job was refused for a reason the worker would also give: the
//     worker runs the same validation.
//   - A receipt means that Redis has the job. An error which wraps
//     ErrUnconfirmed means that nobody can tell; every other error means that
//     it was not taken.
//   - Two calls with the same idempotency key make one job, also when they run
//     at the same time, when a reply is lost, or when the first caller died
//     half-way. The second gets the receipt of the first, with Duplicate set.
//   - Two calls with the same JobID, or of the same Delivery or DigestClose, make one
//     job as long as Redis has it in that queue.
//   - A job belongs to one recipient. A list is fanned out into one job each,
//     so that a bad address fails alone and nobody sees another recipient.
//
// # Idempotency
//
// The record of a key lives in Redis beside the queues, under
// postroom:idempotency:{…}, and holds the job's id, queue and times. It is
// written before the job and confirmed after it:
//
//	no record ──claim──► unconfirmed ──enqueue, confirm──► confirmed
//	                          │
//	                          └── a later call finds it: it enqueues under the
//	                              same id and in the same queue. "The id is
//	                              taken" means that the first call got through.
//
// A failed enqueue leaves its record as it is. Removing it would let a
// concurrent caller, which has just taken the record over, and a third one,
// which finds nothing, make two jobs. Left in place it costs nothing: the next
// call with the key enqueues under the id in the record.
//
// The record lives for the longer of 24 hours and the job's retention, counted
// from the later of its process time and its deadline. It depends neither on
// asynq's Unique, which ends at its own time and is released on success, nor
// on the task id alone, which is per queue and is forgotten with the task. The
// scope of a key is the namespace, the service and the job type. Only the
// SHA-256 of a key is stored, because keys are often addresses.
//
// # Wire format
//
// A payload is a JSON object with a version v. A worker ignores fields that it
// does not know and refuses a version above its own: a field that an old
// worker may ignore keeps the version, one that it must not ignore raises it.
// Workers are deployed before producers. testdata holds the pinned format.
package tasks
