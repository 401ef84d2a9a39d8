package tasks

import (
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/internal/wake"
	"github.com/medicalink/postroom/rediskit"
)

// Every way to run Redis takes single jobs and batches, over several queues, with
// and without keys, now and later. Queues of one batch live on different nodes of
// a cluster.
func TestProducer_EveryTopology(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		p := newProducer(t, client)
		levels := []PriorityLevel{Critical, Default, Bulk}
		var made, duplicates atomic.Int64
		count := func(r Receipt) {
			if r.Duplicate {
				duplicates.Add(1)
			} else {
				made.Add(1)
			}
		}
		options := func(i int) []Option {
			opts := []Option{Priority(levels[i%3])}
			if i%2 == 0 {
				opts = append(opts, IdempotencyKey(fmt.Sprint("key", i%500)))
			}
			if i%5 == 0 {
				opts = append(opts, Delay(time.Hour+time.Duration(i)*time.Millisecond))
			}
			return opts
		}
		items := iter.Seq[Item](func(yield func(Item) bool) {
			for i := range 1000 {
				if !yield(Item{Email: message(), Options: options(i)}) {
					return
				}
			}
		})
		for i, r := range p.EnqueueMany(t.Context(), items) {
			if r.Err != nil {
				t.Fatalf("item %d: %v", i, r.Err)
			}
			count(r.Receipt)
		}
		var wg sync.WaitGroup
		for g := range 10 {
			wg.Go(func() {
				for i := range 50 {
					count(send(t, p, message(), options(1000+50*g+i)...))
				}
			})
		}
		wg.Wait()
		// Of the even numbers, only the first 250 have a key of their own.
		if made.Load() != 750+250 || duplicates.Load() != 250+250 {
			t.Errorf("%d jobs were made and %d calls were duplicates, want 1000 and 500", made.Load(), duplicates.Load())
		}
		total := 0
		for _, level := range levels {
			queue := EmailQueue(p.namespace, level)
			info, err := p.inspector.GetQueueInfo(queue)
			if err != nil {
				t.Fatal(err)
			}
			total += info.Size
			if info.Pending == 0 || info.Scheduled == 0 {
				t.Errorf("%s: %+v, want jobs for now and for later", queue, info)
			}
			if n, err := client.LLen(t.Context(), wake.Key(queue)).Result(); n != 1 || err != nil {
				t.Errorf("%s: the marker has %d elements (%v), want 1", queue, n, err)
			}
			// All delays but those of whole seconds have an exact time.
			if n, err := client.ZCard(t.Context(), wake.DueKey(queue)).Result(); n == 0 || int(n) > info.Scheduled || err != nil {
				t.Errorf("%s: %d exact times (%v) for %d delayed jobs", queue, n, err, info.Scheduled)
			}
		}
		if total != 1000 {
			t.Errorf("queues have %d jobs, want 1000", total)
		}
	})
}
