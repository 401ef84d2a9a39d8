package tasks

import (
	"bytes"
	"context"
	"encoding/binary"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// The scripts of asynq 0.26 whose work enqueueMany does, by their SHA-1. A script
// that another version of asynq changed has another sum, and is left to asynq.
const (
	asynqEnqueue  = "98d28b42650870a743450ffda9791e9e19c6991b"
	asynqSchedule = "8ce6b38a99b73194585c251eb3c2a89559f37a87"
)

// A shape is what jobs have in common that differ in id, payload, headers and
// time only.
type shape struct {
	typ                jobType
	queue              string
	maxRetry           int
	timeout, retention time.Duration
	delayed            bool
}

// A frame is asynq's message for a shape, without what differs. asynq composes it,
// once for many jobs: for each of them it would take longer than all the rest of
// a call, and Redis stores what asynq stores.
type frame struct {
	rest    []byte // the message's other fields, in protobuf
	taskKey string // what stands before the id in a job's key
}

// maxFrames bounds the frames that a producer keeps. A service has a handful;
// one whose timeouts come out of a calculation could have any number.
const maxFrames = 256

// frame returns the frame of s, or nil if asynq composes or sends jobs in a way
// that is not known here: it has to send these jobs itself.
func (p *Producer) frame(s shape) *frame {
	p.mu.Lock()
	f, known := p.frames[s]
	p.mu.Unlock()
	if known {
		return f
	}
	f = probe(p.composer, s)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.frames) >= maxFrames {
		clear(p.frames)
	}
	p.frames[s] = f
	return f
}

// The parts of a probe. Each is found again in asynq's message with its field
// number before it, so that a message of another layout is noticed.
const (
	probeID      = "postroom-probe-id"
	probePayload = "postroom-probe-payload"
	probeKey     = "postroom-probe-key"
	probeValue   = "postroom-probe-value"
)

// probe lets asynq enqueue a job of shape s, and makes the frame of what it would
// have sent to Redis.
func probe(composer *asynq.Client, s shape) (f *frame) {
	// An asynq that asks Redis for more than a script finds no Redis.
	defer func() {
		if recover() != nil {
			f = nil
		}
	}()
	j := job{typ: s.typ, plan: plan{queue: s.queue, maxRetry: s.maxRetry, timeout: s.timeout, retention: s.retention}}
	j.id, j.payload, j.headers = probeID, []byte(probePayload), []header{{probeKey, probeValue}}
	if s.delayed {
		j.enqueuedAt = time.Now()
		j.processAt = ceilSecond(j.enqueuedAt.Add(time.Hour))
	}
	net := catcher{job: &j}
	task, opts := j.task()
	if _, err := composer.EnqueueContext(context.WithValue(context.Background(), catcherKey{}, &net), task, opts...); err != nil || net.msg == nil {
		return nil
	}
	rest := net.msg
	for _, field := range [][]byte{appendPayload(nil, probePayload), appendID(nil, probeID), appendHeader(nil, header{probeKey, probeValue})} {
		before, after, found := bytes.Cut(rest, field)
		if !found {
			return nil
		}
		rest = append(bytes.Clone(before), after...)
	}
	if bytes.Contains(rest, []byte("postroom-probe")) {
		return nil
	}
	return &frame{rest: rest, taskKey: "asynq:{" + s.queue + "}:t:"}
}

// compose returns asynq's message for j.
func (f *frame) compose(j *job) []byte {
	const tags = 16 // more than the numbers and lengths of a field
	size := len(f.rest) + len(j.payload) + len(j.id) + 2*tags
	for _, h := range j.headers {
		size += len(h.key) + len(h.value) + tags
	}
	msg := append(make([]byte, 0, size), f.rest...)
	msg = appendPayload(msg, j.payload)
	msg = appendID(msg, j.id)
	for _, h := range j.headers {
		msg = appendHeader(msg, h)
	}
	return msg
}

// The fields of asynq's TaskMessage that differ from job to job. Their numbers
// cannot change: messages in Redis outlive an upgrade of asynq.

func appendPayload[T []byte | string](msg []byte, payload T) []byte {
	return appendField(msg, 2, payload)
}

func appendID(msg []byte, id string) []byte { return appendField(msg, 3, id) }

func appendHeader(msg []byte, h header) []byte {
	size := len(h.key) + len(h.value) + 2
	for _, s := range []string{h.key, h.value} {
		for n := len(s); ; n >>= 7 {
			size++
			if n < 0x80 {
				break
			}
		}
	}
	msg = append(msg, 15<<3|2)
	msg = binary.AppendUvarint(msg, uint64(size))
	msg = appendField(msg, 1, h.key)
	return appendField(msg, 2, h.value)
}

// appendField appends a field with a length in protobuf's encoding.
func appendField[T []byte | string](msg []byte, number byte, value T) []byte {
	msg = append(msg, number<<3|2)
	msg = binary.AppendUvarint(msg, uint64(len(value)))
	return append(msg, value...)
}

// A catcher waits for the message of one job.
type catcher struct {
	job *job
	msg []byte
}

type catcherKey struct{}

// composing is the Redis of the asynq client that composes: there is none.
type composing struct{ redis.UniversalClient }

// EvalSha keeps the message, and answers as a Redis that took the job.
func (composing) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	if net, ok := ctx.Value(catcherKey{}).(*catcher); ok {
		net.take(sha, keys, args)
	}
	cmd.SetVal(int64(1))
	return cmd
}

// SAdd takes the announcement of a queue, which the producer makes itself.
func (composing) SAdd(ctx context.Context, _ string, _ ...any) *redis.IntCmd {
	cmd := redis.NewIntCmd(ctx)
	cmd.SetVal(1)
	return cmd
}

// take keeps the message if the call is exactly one of the two that are known.
func (c *catcher) take(sha string, keys []string, args []any) {
	if len(keys) != 2 || len(args) != 3 || keys[0] != "asynq:{"+c.job.queue+"}:t:"+c.job.id {
		return
	}
	msg, _ := args[0].([]byte)
	prefix := "asynq:{" + c.job.queue + "}:"
	switch {
	case !c.job.delayed() && sha == asynqEnqueue && keys[1] == prefix+"pending":
		if _, ok := args[2].(int64); !ok || args[1] != c.job.id {
			return
		}
	case c.job.delayed() && sha == asynqSchedule && keys[1] == prefix+"scheduled":
		if args[1] != c.job.processAt.Unix() || args[2] != c.job.id {
			return
		}
	default:
		return
	}
	c.msg = msg
}
