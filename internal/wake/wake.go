// Package wake is how whoever puts a job into Redis tells an idle worker of it.
//
// A queue has a marker: a list that holds at most one element, which says that
// the queue may have work. Whoever adds a job sets the marker, in the same script;
// an idle worker waits for it with BLPOP, so that one marker wakes one worker and
// not the fleet. A worker that was woken and leaves jobs behind sets the marker
// again for the next. A marker that is lost, with a worker that died or a
// connection that broke, costs the wait for the worker's next look, about a
// second; a marker too many costs one look.
//
// Delayed jobs have a marker of their own, for those due within Horizon: later
// ones are found by the workers' regular look. asynq keeps due times in whole
// seconds, rounded up by us so that no other worker is early; the true time, in
// milliseconds, is in a sorted set beside.
package wake

import "time"

// Horizon is how far ahead of its time a delayed job is announced to a worker at
// once. It is twice the interval of the workers' own look.
const Horizon = 2 * time.Second

// Key returns the marker of queue. It shares asynq's hash tag, so that a script
// can set it beside asynq's keys on a cluster.
func Key(queue string) string { return "postroom:wake:{" + queue + "}" }

// DelayedKey returns the marker of queue's delayed jobs.
func DelayedKey(queue string) string { return "postroom:wake:{" + queue + "}:delayed" }

// DueKey returns the sorted set of queue's delayed jobs whose time is not a whole
// second: ids, scored by Unix time in milliseconds.
func DueKey(queue string) string { return "postroom:due:{" + queue + "}" }

// Lua declares the function wake(key), which sets a marker.
const Lua = `
local function wake(key)
	if redis.call("EXISTS", key) == 0 then redis.call("RPUSH", key, 1) end
end
`
