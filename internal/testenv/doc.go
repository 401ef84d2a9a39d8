// Package testenv starts real servers for tests: a redis-server child on a free
// loopback port, and an SMTP server in the test's process that misbehaves on
// demand. Each test has its own, and t.Cleanup stops it.
package testenv
