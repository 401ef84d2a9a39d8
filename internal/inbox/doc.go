// Package inbox keeps what a user has been told in the app: the newest entries, which
// of them are unread, and which notifications have come by. Workers deliver into it;
// package realtime shows it.
//
// Invariants:
//
//   - The stream is the truth, the channel is the bell. Every change publishes an
//     [Event], and what a subscriber misses it finds with [Store.Since].
//   - A change is one script: entry, unread count, record and event come together or
//     not at all. All keys of a user are in one slot of a cluster.
//   - A notification is delivered once. Its record outlives its entry, so that a worker
//     that repeats a delivery changes nothing, and [Store.State] is right after the
//     entry has been trimmed.
//   - Each event of a delivery names the entry before it. Whoever knows another one as
//     the last has missed something, and knows it.
//   - The stream is never empty: an entry is removed only to make room for a new one.
//     Its last entry therefore is the last one that was delivered, unless Redis lost some.
//   - Everything is bounded. An entry goes when there are Config.MaxEntries newer ones,
//     with the first delivery after Config.MaxAge, and at the latest Config.MaxAge after
//     the user's last delivery.
//
// The keys, for a namespace and a user, neither of which can hold a brace:
//
//	postroom:inbox:{ns:user}               stream: n the notification's id, c its content as JSON
//	postroom:inbox:{ns:user}:unread        sorted set: ids of entries, by their milliseconds
//	postroom:inbox:{ns:user}:seen          sorted set: ids of notifications, by the millisecond of
//	                                       their delivery; a half is added when they are read
//	postroom:inbox:{ns:user}:dedupe:…      string: the id of the notification that holds a dedupe key
//	postroom:inbox:{ns:user}:collapse:…    hash: the newest notification of a collapse key, and its entry
//
// Dedupe and collapse keys are stored as their SHA-256, because nobody knows what
// services put into them.
package inbox
