// Package cache keeps values of one type as JSON in Redis, each for a limited
// time: api-gateway:user:123 is the value "123" of the cache "user" of the
// service "api-gateway".
//
// Invariants:
//
//   - Nothing is kept without a time to live.
//   - A miss is not an error, and a value that cannot be decoded (a type that
//     changed) is a miss, counted in [Stats].
//   - [Cache.GetOrLoad] runs the loader once for all callers that want a key at
//     the same time, in one process and across processes. The lock across
//     processes is the key itself, holding a token in place of the value, so one
//     key is all that a script touches and any key works in a cluster.
//   - A load that began before a [Cache.Set] or [Cache.Delete] of its key never
//     overwrites it: both take the lock away, and without the lock a loaded value
//     is given to its callers and not kept.
//   - No caller waits for a process that died: its lock expires after
//     [Config.LockTTL], and no lock is waited for longer than
//     [Config.LoadTimeout].
//   - What happens while Redis is down is the choice of [Config.OnError], which
//     has no default.
//   - No key and no value appears in an error.
package cache
