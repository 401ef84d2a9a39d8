// Package monitor serves health and the dashboard:
//
//	GET /livez          the process runs
//	GET /readyz         it can work: Redis answers and every Check passes
//	GET /health/redis   Redis answers
//	GET /monitor/       asynqmon, read-only
//
// Invariants of the dashboard:
//
//   - Nothing can be changed with it, and no value of a job is shown: of a
//     payload only type, template, class and sizes, of a result only its size.
//     Whatever looks like an email address is removed from error texts.
//   - The browser sends nothing to third parties: the page's links to web fonts
//     are removed, and a Content-Security-Policy forbids others.
//   - It has no login yet. So it is served on loopback only ([CheckAddr]), and
//     only to requests for a loopback host name: a web site whose DNS name is
//     rebound to 127.0.0.1 gets nothing.
//   - Its Redis clients are its own; closing it never closes the worker's.
package monitor
