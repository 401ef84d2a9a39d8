package tasks

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// The asynq that is compiled in composes and sends jobs as enqueueMany knows it.
// If this fails after an upgrade, jobs still arrive, one by one and slowly, until
// frame.go and the script follow asynq's internal/rdb.
func TestProbe_KnowsAsynq(t *testing.T) {
	t.Parallel()
	for _, delayed := range []bool{false, true} {
		s := shape{queue: "email:default", maxRetry: 12, timeout: 2 * time.Minute, retention: 24 * time.Hour, delayed: delayed}
		if probe(asynq.NewClientFromRedisClient(composing{}), s) == nil {
			t.Errorf("asynq has changed how it enqueues (delayed: %v): compare its internal/rdb and internal/proto with frame.go and store.go", delayed)
		}
	}
}

// otherAsynq stands for versions of asynq that do something else.
type otherAsynq struct {
	composing

	change func(sha *string, keys *[]string, args *[]any)
}

func (c otherAsynq) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	c.change(&sha, &keys, &args)
	return c.composing.EvalSha(ctx, sha, keys, args...)
}

func TestProbe_LeavesTheUnknownToAsynq(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(sha *string, keys *[]string, args *[]any){
		"script": func(sha *string, _ *[]string, _ *[]any) { *sha = "0" + (*sha)[1:] },
		"other script": func(sha *string, _ *[]string, _ *[]any) {
			*sha = map[bool]string{true: asynqSchedule, false: asynqEnqueue}[*sha == asynqEnqueue]
		},
		"further key":      func(_ *string, keys *[]string, _ *[]any) { *keys = append(*keys, "x") },
		"key of the job":   func(_ *string, keys *[]string, _ *[]any) { (*keys)[0] += "x" },
		"key of the queue": func(_ *string, keys *[]string, _ *[]any) { (*keys)[1] += "x" },
		"further argument": func(_ *string, _ *[]string, args *[]any) { *args = append(*args, "x") },
		"id":               func(_ *string, _ *[]string, args *[]any) { (*args)[1], (*args)[2] = "x", "x" },
		"order":            func(_ *string, _ *[]string, args *[]any) { (*args)[1], (*args)[2] = (*args)[2], (*args)[1] },
		"type":             func(_ *string, _ *[]string, args *[]any) { (*args)[0] = string((*args)[0].([]byte)) },
		"layout": func(_ *string, _ *[]string, args *[]any) {
			(*args)[0] = slices.Concat([]byte{1}, []byte("postroom-probe-id"))
		},
		"second id":       func(_ *string, _ *[]string, args *[]any) { (*args)[0] = appendField((*args)[0].([]byte), 20, probeID) },
		"another command": func(*string, *[]string, *[]any) { _ = redis.UniversalClient(composing{}).Ping(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := setup(t)
			p.composer = asynq.NewClientFromRedisClient(otherAsynq{change: change})
			for _, opts := range [][]Option{nil, {Delay(time.Hour)}, {IdempotencyKey("k")}} {
				r := send(t, p, message(), opts...)
				if info := stored(t, p, r); info.ID != r.ID || r.Duplicate {
					t.Errorf("receipt = %+v, job %+v", r, info)
				}
			}
			if r := send(t, p, message(), IdempotencyKey("k")); !r.Duplicate {
				t.Errorf("second receipt = %+v, want a duplicate", r)
			}
			sendMany(t, p, 20)
			if n := size(t, p, EmailQueue(p.namespace, Default)); n != 23 {
				t.Errorf("queue has %d jobs, want 23", n)
			}
			for s, f := range p.frames {
				if f != nil {
					t.Errorf("there is a frame for %+v", s)
				}
			}
		})
	}
}

// sendMany enqueues n messages and returns their receipts.
func sendMany(t *testing.T, p *Producer, n int, opts ...Option) []Receipt {
	t.Helper()
	items := func(yield func(Item) bool) {
		for i := range n {
			email := message()
			email.Subject = fmt.Sprint("message ", i)
			if !yield(Item{Email: email}) {
				return
			}
		}
	}
	var receipts []Receipt
	for i, r := range p.EnqueueMany(t.Context(), items, opts...) {
		if r.Err != nil {
			t.Fatalf("item %d: %v", i, r.Err)
		}
		receipts = append(receipts, r.Receipt)
	}
	return receipts
}

// A service with any number of timeouts does not fill the memory.
func TestProducer_Frame_Bounded(t *testing.T) {
	t.Parallel()
	p := setup(t)
	for i := range 2*maxFrames + 1 {
		if p.frame(shape{queue: "email:default", maxRetry: 1, timeout: time.Duration(i+1) * time.Second}) == nil {
			t.Fatal("no frame")
		}
		if len(p.frames) > maxFrames {
			t.Fatalf("%d frames are kept, want at most %d", len(p.frames), maxFrames)
		}
	}
}
