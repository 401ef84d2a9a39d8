// Package mailer builds email messages and hands them to SMTP providers.
//
// A message is rendered completely to bytes by [Mailer.Build] before a
// connection is touched, because a message that fails half-way through DATA
// can be taken by the server as a complete one. [Mailer.Send] then moves the
// bytes over a pooled connection.
//
// # Outcomes
//
// Every failure is an [*Error] that knows the phase it happened in, and so
// whether the message was sent:
//
//   - A reply code, or any failure before the final dot, is definite: the
//     server does not have the message.
//   - A failure after the final dot and before its reply is unknown
//     ([Error.Unknown]): RFC 1047 describes this gap, and SMTP has no means to
//     close it. Such a message is never offered to another provider.
//   - A 2xx reply to the final dot is success, whatever follows it.
//
// # Invariants
//
//   - The final dot is written only when the whole body is on the wire,
//     [Options.Commit] has agreed and the context is still alive.
//   - After a failure past the 354 reply the socket is closed, never reused
//     and never sent a QUIT: closing is the only way to say "forget this".
//   - A connection returns to the pool only in a known state.
//   - No error text holds an address, a subject or a byte the server sent.
package mailer
