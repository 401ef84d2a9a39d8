package engine

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// A call is what asynq's server asks of Redis with one of its scripts.
type call int

const (
	notScript call = iota
	unknownCall
	fetchCall     // dequeue one job
	forwardCall   // move due delayed jobs into their queue
	doneCall      // a job succeeded and is not kept
	completeCall  // a job succeeded and is kept
	retryCall     // a job failed and waits
	otherAck      // another end of an activation: archive, requeue, one with a uniqueness lock
	heartbeatCall // the server's state
	expiredCall   // list jobs whose lease is over
	reclaimCall   // put stale aggregation sets back
	otherCall     // anything else that is known
)

// calls knows asynq's scripts by the shape of their keys and the number of their
// arguments, rather than by the hash of their text, which changes with every
// comment in it. What a batch does stands or falls with these shapes: contract
// tests compare them with asynq's own.
var calls = map[string]call{
	"pending paused active lease/2":                                         fetchCall,
	"scheduled pending/4":                                                   forwardCall,
	"retry pending/4":                                                       forwardCall,
	"active lease t processed:day processed/3":                              doneCall,
	"active lease t processed:day processed unique/3":                       otherAck,
	"active lease completed t processed:day processed/5":                    completeCall,
	"active lease completed t processed:day processed unique/5":             otherAck,
	"t active lease retry processed:day failed:day processed failed/6":      retryCall,
	"t active lease archived processed:day failed:day processed failed t/7": otherAck,
	"active lease pending t/1":                                              otherAck,
	"completed/3":                                                           otherCall, // delete expired completed jobs
	"lease/2":                                                               expiredCall,
	"aggregation_sets/1":                                                    reclaimCall,
	"servers workers/":                                                      heartbeatCall,
	"servers workers/0":                                                     otherCall, // clear the server's state
}

// recogniser remembers what it has recognised, by the script and the number of its
// arguments: asynq has a dozen of them and calls two of them for every job.
type recogniser struct {
	mu    sync.Mutex
	known atomic.Pointer[map[script]call]
}

type script struct {
	text string // or its hash
	args int
}

// recognise returns which of asynq's calls cmd is, and the shape of one that is
// unknown.
func (r *recogniser) recognise(cmd redis.Cmder) (call, string) {
	args := cmd.Args()
	if name := cmd.Name(); name != "evalsha" && name != "eval" || len(args) < 2 {
		return notScript, ""
	}
	text, _ := args[1].(string)
	key := script{text, len(args)}
	if known := r.known.Load(); known != nil {
		if c, ok := (*known)[key]; ok {
			return c, ""
		}
	}
	c, shape := recognise(cmd)
	if c == unknownCall || c == heartbeatCall { // the heartbeat has any number of arguments
		return c, shape
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	grown := map[script]call{key: c}
	if known := r.known.Load(); known != nil {
		maps.Copy(grown, *known)
	}
	r.known.Store(&grown)
	return c, shape
}

// recognise returns which of asynq's calls cmd is, and its shape.
func recognise(cmd redis.Cmder) (call, string) {
	if name := cmd.Name(); name != "evalsha" && name != "eval" {
		return notScript, ""
	}
	keys, args, ok := parts(cmd)
	if !ok {
		return unknownCall, "?"
	}
	var b strings.Builder
	for i, key := range keys {
		if i > 0 {
			b.WriteByte(' ')
		}
		s, _ := key.(string)
		b.WriteString(role(s))
	}
	b.WriteByte('/')
	if b.String() == "servers workers/" && len(args) >= 2 {
		return heartbeatCall, b.String() // with any number of running jobs
	}
	fmt.Fprint(&b, len(args))
	if c, ok := calls[b.String()]; ok {
		return c, b.String()
	}
	return unknownCall, b.String()
}

// parts splits the arguments of EVAL and EVALSHA into keys and arguments.
func parts(cmd redis.Cmder) (keys, args []any, ok bool) {
	all := cmd.Args()
	if len(all) < 3 {
		return nil, nil, false
	}
	n, isInt := all[2].(int)
	if !isInt || n < 0 || len(all) < 3+n {
		return nil, nil, false
	}
	return all[3 : 3+n], all[3+n:], true
}

// role is what a key is for: "pending" of asynq:{email:bulk}:pending. It holds no
// id, no queue and no date, so that it can be logged.
func role(key string) string {
	rest, ok := strings.CutPrefix(key, "asynq:")
	if !ok {
		return "?"
	}
	if !strings.HasPrefix(rest, "{") {
		kind, _, _ := strings.Cut(rest, ":")
		return kind // servers, workers
	}
	_, rest, ok = strings.Cut(rest, "}:")
	if !ok {
		return "?"
	}
	kind, detail, found := strings.Cut(rest, ":")
	if found && (kind == "processed" || kind == "failed") && detail != "" {
		return kind + ":day"
	}
	return kind
}

// queueOf returns the queue of one of asynq's keys.
func queueOf(key any) string {
	s, _ := key.(string)
	s = strings.TrimPrefix(s, "asynq:{")
	queue, _, _ := strings.Cut(s, "}:")
	return queue
}

func prefixOf(queue string) string { return "asynq:{" + queue + "}:" }
