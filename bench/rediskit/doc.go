// Package rediskit measures what rediskit's packages cost beside the bare
// go-redis calls that a service would write without them, in the same run and
// against the same server.
//
// The two calls of a pair take turns, so that a busy machine slows both, and each
// comes first as often as the other. A round measures every pair once; the table
// shows medians over the rounds, and a pair of two equal calls shows how much of
// a difference is noise.
package rediskit
