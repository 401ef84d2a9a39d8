package tasks

import (
	"strings"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/internal/wake"
)

// A worker that waits is woken, and the marker never has more than one element.
func TestProducer_WakesWaiter(t *testing.T) {
	t.Parallel()
	soon := Delay(wake.Horizon / 2)
	for _, tt := range []struct {
		name string
		key  func(string) string
		send func(*testing.T, *Producer)
	}{
		{"one", wake.Key, func(t *testing.T, p *Producer) { t.Helper(); send(t, p, message()) }},
		{"many", wake.Key, func(t *testing.T, p *Producer) { t.Helper(); sendMany(t, p, 600) }},
		{"one soon", wake.DelayedKey, func(t *testing.T, p *Producer) { t.Helper(); send(t, p, message(), soon) }},
		{"many soon", wake.DelayedKey, func(t *testing.T, p *Producer) { t.Helper(); sendMany(t, p, 600, soon) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := testenv.Redis(t)
			p := newProducer(t, server.Open(t))
			key := tt.key(EmailQueue(p.namespace, Default))
			length := func() int64 {
				t.Helper()
				n, err := p.rdb.LLen(t.Context(), key).Result()
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			woken := make(chan error, 1)
			waiter := server.Open(t)
			go func() { woken <- waiter.BLPop(t.Context(), 20*time.Second, key).Err() }()
			for deadline := time.Now().Add(20 * time.Second); !strings.Contains(p.rdb.Info(t.Context(), "clients").Val(), "blocked_clients:1\r\n"); {
				if time.Now().After(deadline) {
					t.Fatal("nobody waits")
				}
			}
			tt.send(t, p)
			if err := <-woken; err != nil {
				t.Fatalf("the waiter is not woken: %v", err)
			}
			if n := length(); n > 1 {
				t.Errorf("the marker has %d elements", n)
			}
			tt.send(t, p)
			tt.send(t, p)
			if n := length(); n != 1 {
				t.Errorf("the marker has %d elements, want 1", n)
			}
		})
	}
}

func TestProducer_WakesNobodyEarly(t *testing.T) {
	t.Parallel()
	p := setup(t)
	queue := EmailQueue(p.namespace, Default)
	at := time.Now().Add(time.Hour).Truncate(time.Second)
	whole := send(t, p, message(), At(at))
	exact := send(t, p, message(), At(at.Add(250*time.Millisecond)))
	rounded := send(t, p, message(), At(at.Add(250*time.Millisecond+1)))
	upToWhole := send(t, p, message(), At(at.Add(time.Second-1)))
	if n, err := p.rdb.Exists(t.Context(), wake.Key(queue), wake.DelayedKey(queue)).Result(); n != 0 || err != nil {
		t.Errorf("%d markers are set for jobs that are due in an hour (%v)", n, err)
	}
	for r, want := range map[Receipt]struct {
		score int64
		due   float64
	}{
		whole:     {score: at.Unix()},
		exact:     {score: at.Unix() + 1, due: float64(at.UnixMilli() + 250)},
		rounded:   {score: at.Unix() + 1, due: float64(at.UnixMilli() + 251)},
		upToWhole: {score: at.Unix() + 1},
	} {
		if info := stored(t, p, r); info.NextProcessAt.Unix() != want.score {
			t.Errorf("due at %v: scheduled at %v, want %v", r.ProcessAt, info.NextProcessAt, time.Unix(want.score, 0))
		}
		// A missing member has the score 0 here.
		if due := p.rdb.ZScore(t.Context(), wake.DueKey(queue), r.ID).Val(); due != want.due {
			t.Errorf("due at %v: the exact time is %v, want %v", r.ProcessAt, due, want.due)
		}
	}
}
