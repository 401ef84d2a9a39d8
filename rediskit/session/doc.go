// Package session keeps login sessions in Redis.
//
// Invariants:
//
//   - A token is made here, never chosen by a client: 256 random bits, and the
//     first 128 bits of a SHA-256 of service and user, which lead to the user's
//     key. These are the same in every token of a user and are no secret. Redis
//     holds only the SHA-256 of a token, so whoever reads Redis cannot log in
//     with what is there.
//   - All sessions of a user are one hash, {service}:session:{…}, of which every
//     operation touches one key in one atomic step: revoking all sessions of a
//     user is one DEL, a revoked session cannot be renewed by a request that was
//     under way, and a cluster needs no more than its usual slots.
//   - A session ends when it was not renewed for [Config.Idle], and at the latest
//     [Config.Absolute] after it was created, by the clock of Redis. Dead ones
//     are swept when the user logs in or is listed; a key disappears with its
//     last session.
//   - The data of a session never changes under its token: [Store.Rotate] sets
//     new data and a new token together. Use it after every login step and every
//     change of rights, so that a token an attacker planted or saw before gains
//     nothing (session fixation).
//   - An unknown token costs one lookup in one hash, as a known one does, and
//     what cannot be a token is refused without asking Redis.
//
// [ErrNotFound] means "log in again" (401). Every other error means that Redis
// did not answer (503), and whether to let the request pass is the caller's
// choice. A failover to a replica that lags can lose the last writes, a
// revocation among them: set min-replicas-to-write on the server if that
// matters more than being able to write. A server that evicts keys
// (maxmemory-policy other than noeviction) logs people out.
package session
