package worker

import (
	"fmt"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/inbox"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/tasks"
)

// Workers are killed and Redis is restarted in the midst of it: no notification is
// lost, and none is in the app twice.
func TestNotification_SurvivesKillsAndRestarts(t *testing.T) {
	t.Parallel()
	const users, each, kills = 20, 40, 6
	redis, smtp := testenv.Redis(t, testenv.AOF()), testenv.SMTP(t)
	rdb := redis.Open(t)
	producer, err := tasks.NewProducer(rdb)
	if err != nil {
		t.Fatal(err)
	}
	store, err := inbox.New(rdb, inbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	sent := map[string]bool{}
	for i := range users * each {
		n := tasks.Notification{Kind: "lab.result.ready", User: fmt.Sprintf("u-%d", i%users), Title: "ready"}
		r, err := producer.SendNotification(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		sent[r.ID] = true
	}
	// delivered returns how often each notification is in an inbox.
	delivered := func() map[string]int {
		found := map[string]int{}
		for i := range users {
			page, err := store.List(t.Context(), fmt.Sprintf("u-%d", i), 100)
			if err != nil {
				return nil // Redis is away
			}
			for _, item := range page.Items {
				found[item.Entry.ID]++
			}
		}
		return found
	}
	// Each worker is killed once it has shown that it delivers.
	for i := range kills {
		before := len(delivered())
		p := spawn(t, redis, smtp)
		eventually(t, "the worker delivers", func() bool {
			n := len(delivered())
			return n > before || n == len(sent)
		})
		p.kill(t)
		if i%3 == 2 {
			redis.Kill()
			redis.Restart()
		}
	}
	spawn(t, redis, smtp)
	deadline := time.Now().Add(stalled)
	for len(delivered()) < len(sent) && time.Now().Before(deadline) {
		time.Sleep(100 * time.Millisecond)
	}
	got := delivered()
	for id := range sent {
		if got[id] != 1 {
			t.Errorf("notification %s is in the app %d times", id, got[id])
		}
	}
	if len(got) != len(sent) {
		t.Errorf("%d notifications in the app, want %d", len(got), len(sent))
	}
}
