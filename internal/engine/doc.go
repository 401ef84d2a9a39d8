// Package engine is asynq as postroom runs it: the servers, and the go-redis
// hook they run through.
//
// asynq is not forked; everything is done at its seam, the
// redis.UniversalClient handed to asynq.NewServerFromRedisClient.
//
// The parts, by file:
//
//   - scripts: which of asynq's calls a command is, by the shape of its keys. What
//     is not recognised goes through untouched, slower and correct.
//   - pump: the one goroutine that speaks with Redis about jobs. In a round trip it
//     sends the ends that have gathered and takes jobs for the free slots; asynq's
//     fetches are answered from its memory. A job in memory is about to start; one
//     that could not is handed back at shutdown, at no cost.
//   - fetch: what to take: by weight over all queues, as far as slots and gate admit.
//   - finish: one script call for many ends.
//   - forward, watch: delayed jobs move when they are due; an idle worker waits for
//     the markers of package wake, and looks for itself about once a second.
//   - gate: pauses, limits and rates of queues, as operators set and see them.
//   - slots, beats: which jobs hold a slot; the heartbeat of an idle server.
//
// The hook also mends what asynq 0.26 does to a Redis that is away:
//
//   - asynq retries a failed acknowledgement with the context it cancelled a
//     moment before, so go-redis refuses it and the job runs again a minute
//     later although it succeeded. The hook gives such a command a live context.
//   - asynq fetches again at once after an error, thousands of times a second.
//     The hook makes scripts that fail wait, longer each time.
package engine
