package pubsub_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit/pubsub"
)

// traffic publishes 0, 1, 2 … until stop is called, which returns how many
// numbers there were and how many of them Redis did not acknowledge.
func traffic(t *testing.T, topic *pubsub.Topic[int]) (stop func() (sent, failed int)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	sent, failed := 0, 0
	wg.Go(func() {
		for ; ctx.Err() == nil; sent++ {
			// A number whose publication failed is never used again: it may have
			// arrived.
			once, done := context.WithTimeout(t.Context(), time.Second)
			if err := topic.Publish(once, sent); err != nil {
				failed++
			}
			done()
		}
	})
	stop = func() (int, int) {
		cancel()
		wg.Wait()
		return sent, failed
	}
	t.Cleanup(func() { _, _ = stop() })
	return stop
}

// recovers waits until the subscriber has been told of a lost connection and
// has received a message after that, and checks that nothing is missing
// silently.
func recovers(t *testing.T, r *recorder, topic *pubsub.Topic[int], stop func() (int, int), lost time.Time) {
	t.Helper()
	r.until(t, "a message after a lost connection", func(events []event) bool {
		cut := slices.IndexFunc(events, func(e event) bool { return e.gap != nil && e.gap.Disconnects > 0 })
		return cut >= 0 && slices.ContainsFunc(events[cut:], func(e event) bool { return e.gap == nil })
	})
	recovered := time.Since(lost)
	sent, failed := stop()
	// A last one that is known to have arrived; the connection may fail once more
	// meanwhile, so it can take several.
	arrived := func() bool {
		events := r.all()
		return slices.ContainsFunc(events, func(e event) bool { return e.gap == nil && e.number >= sent })
	}
	for last := sent; !arrived(); last++ {
		if time.Since(lost) > patience {
			t.Fatalf("no message arrives any more; got %s", describe(r.all()))
		}
		publish(t, topic, last)
		for wait := time.Now().Add(time.Second); !arrived() && time.Now().Before(wait); {
			time.Sleep(time.Millisecond)
		}
	}
	events := r.all()
	account(t, events)
	received := 0
	for _, e := range events {
		if e.gap == nil {
			received++
		}
	}
	t.Logf("messages sent %d in traffic, not acknowledged %d, received %d, gaps %v; received again after %s",
		sent, failed, received, gaps(events), recovered.Round(time.Millisecond))
}

func TestSubscription_serverKilled(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t)
	topic, r, sub := numbers(t, srv.Open(t), pubsub.Config{Buffer: 1 << 16})
	stop, begin := traffic(t, topic), time.Now()
	r.untilMessage(t, 100)
	lost := time.Now()
	srv.Kill()
	eventually(t, "the loss to show", func() bool { return !sub.Stats().Connected })
	srv.Restart()
	recovers(t, r, topic, stop, lost)
	g := r.untilGap(t)
	if g.Err == nil || g.From.Before(begin) || !g.From.Before(g.To) {
		t.Errorf("gap %+v", g)
	}
	if got := sub.Stats(); got.Disconnects == 0 || !got.Connected {
		t.Errorf("stats %+v", got)
	}
}

// The server cuts the subscriber off only, again and again, as it does when its
// output buffer for it is full.
func TestSubscription_cutOff(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t)
	client := srv.Open(t)
	topic, r, sub := numbers(t, client, pubsub.Config{Buffer: 1 << 16})
	stop := traffic(t, topic)
	lost := time.Now()
	for i := range uint64(5) {
		eventually(t, "the subscription", func() bool { s := sub.Stats(); return s.Connected && s.Disconnects == i })
		if err := client.Do(t.Context(), "CLIENT", "KILL", "TYPE", "pubsub").Err(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the loss to show", func() bool { return sub.Stats().Disconnects == i+1 })
	}
	recovers(t, r, topic, stop, lost)
	told := 0
	for _, g := range gaps(r.all()) {
		told += g.Disconnects
	}
	if told != 5 {
		t.Errorf("told of %d lost connections, there were 5", told)
	}
}

// A frozen server sends nothing and closes nothing.
func TestSubscription_serverSilent(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t)
	topic, r, sub := numbers(t, srv.Open(t), pubsub.Config{Buffer: 1 << 16, DeadAfter: 200 * time.Millisecond})
	publish(t, topic, 0)
	r.untilMessage(t, 0)
	srv.Pause()
	eventually(t, "the silence to be noticed", func() bool { return sub.Stats().Disconnects == 1 })
	srv.Resume()
	r.untilGap(t)
	publish(t, topic, 1)
	account(t, r.untilMessage(t, 1))
}

// Silence alone is no fault: the PING is answered.
func TestSubscription_idle(t *testing.T) {
	t.Parallel()
	client := testenv.Redis(t).Open(t)
	const deadAfter = time.Second
	topic, r, sub := numbers(t, client, pubsub.Config{DeadAfter: deadAfter})
	<-time.After(2*deadAfter + deadAfter/2) // the passing of time is what is tested
	if got := sub.Stats(); !got.Connected || got.Disconnects != 0 {
		t.Errorf("after a while without messages: %+v", got)
	}
	publish(t, topic, 0)
	account(t, r.untilMessage(t, 0))
}

func TestSubscription_endsWhileServerIsDown(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t)
	_, _, sub := numbers(t, srv.Open(t), pubsub.Config{})
	srv.Kill()
	eventually(t, "the loss to show", func() bool { return !sub.Stats().Connected })
	if err := sub.Close(); err != nil {
		t.Error(err)
	}
}

func TestSubscription_sentinelFailover(t *testing.T) {
	t.Parallel()
	set := testenv.Sentinel(t)
	topic, r, _ := numbers(t, set.Open(t), pubsub.Config{Buffer: 1 << 18})
	stop := traffic(t, topic)
	r.untilMessage(t, 100)
	lost := time.Now()
	set.KillMaster()
	recovers(t, r, topic, stop, lost)
}

func TestSubscription_clusterFailover(t *testing.T) {
	t.Parallel()
	cluster := testenv.Cluster(t)
	client := cluster.Open(t)
	topic, r, _ := numbers(t, client, pubsub.Config{Buffer: 1 << 18})
	stop := traffic(t, topic)
	r.untilMessage(t, 100)
	lost := time.Now()
	cluster.KillMaster(client.Key("numbers")) // go-redis subscribes at the master of the channel's slot
	recovers(t, r, topic, stop, lost)
}
