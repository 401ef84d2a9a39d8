// Package testenv starts real servers for tests: redis-server children on free
// loopback ports (one server, a Sentinel set or a Cluster), and an SMTP server
// in the test's process that misbehaves on demand. Each test has its own, and
// t.Cleanup stops it; what [EachRedis] shares ends with the test binary.
package testenv
