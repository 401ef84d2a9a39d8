// Package sms delivers notifications as text messages, through the HTTP interface of a
// provider: Twilio's Messages API, 2010-04-01.
//
// Invariants:
//
//   - A message costs at most [MaxSegments] times the price of a text message: what is
//     longer is cut, but never the link.
//   - The provider has no key to tell a second copy by. If its answer is lost, nobody can
//     say whether the message went out, and the error says so.
//   - No error holds a word of what the provider says: it repeats the number.
package sms
