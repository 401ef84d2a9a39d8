// Package webpush delivers notifications to browsers that users subscribed with, through
// the push service that each browser chose: RFC 8030 (the request), RFC 8291 on RFC 8188
// (encryption) and RFC 8292 (VAPID, who is asking).
//
// Invariants:
//
//   - Text is encrypted for the one browser, and padded, so that the push service learns
//     neither what was said nor how long it was. What it sees besides: our origin's
//     public key, the urgency, how long to keep the message, and a topic that is a keyed
//     hash.
//   - An endpoint is a URL that a user handed in. It is only called through the client
//     that was given, which has to refuse the inside of our network, and no redirect is
//     followed.
//   - An endpoint belongs to the user who was last added with it. A browser in a ward
//     that many log in to has one endpoint, and shows only what is for the last of them.
//   - An endpoint and its keys let anybody disturb its user. No error and no format verb
//     shows them.
//   - A message always fits: its text is cut at a rune to 3,993 bytes of JSON.
package webpush
