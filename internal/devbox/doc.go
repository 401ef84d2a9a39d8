// Package devbox is `worker dev`: the whole of postroom in one process, with
// nothing to install and nothing that leaves the machine.
//
// It starts, in this order, and stops in the reverse order:
//
//	Redis      a redis-server child on a free loopback port, or an in-process one
//	catcher    an SMTP server that keeps what it is given in memory
//	receiver   an endpoint for webhooks, a chat and an SMS gateway that keep what they get
//	worker     the real one, over the real mailer, with that Redis and that catcher
//	pages      inbox, notifications, template preview, dashboard and health on one loopback port
//
// It takes no Redis, no SMTP server and no account of an SMS gateway from outside,
// whatever the environment says, and calls no endpoint but its own: a developer's first
// try must not reach a patient.
//
// The pages show addresses and contents, because that is what a development
// inbox is for. Hence loopback only, a check of the Host header (a page of
// another site cannot reach them by DNS rebinding), no request of another origin
// that changes anything, and a Content-Security-Policy under which neither a
// page nor a message in it can load from elsewhere or run a script of its own.
package devbox
