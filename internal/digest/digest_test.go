package digest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

func texts(items [][]byte) []string {
	var s []string
	for _, item := range items {
		s = append(s, string(item))
	}
	return s
}

func TestStore_GathersAndClosesOnce(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		ctx := t.Context()
		s := NewStore(client, client.Service())
		add := func(id string) Addition {
			t.Helper()
			a, err := s.Add(ctx, "u-1", "messages", id, []byte("item "+id), time.Hour, 10, "q")
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		first := add("b")
		if first.Generation != 1 || first.Full || !first.Ends.After(time.Now()) {
			t.Fatalf("the first item got %+v", first)
		}
		if again := add("b"); again != first {
			t.Errorf("the same item again got %+v, want %+v", again, first)
		}
		if first.Queue != "q" {
			t.Errorf("the window is closed in %q", first.Queue)
		}
		if other, err := s.Add(ctx, "u-1", "messages", "b", nil, time.Hour, 10, "another"); err != nil || other != first {
			t.Errorf("an item from another queue got %+v, %v", other, err)
		}
		if second := add("a"); second != first {
			t.Errorf("the second item got %+v, want the window of the first %+v", second, first)
		}
		if other, err := s.Add(ctx, "u-2", "messages", "c", nil, time.Hour, 10, "q"); err != nil || other.Generation != 1 {
			t.Errorf("another user's digest is at %+v, %v", other, err)
		}

		items, err := s.Close(ctx, "u-1", "messages", 1, "job-1")
		if err != nil || fmt.Sprint(texts(items)) != "[item a item b]" {
			t.Fatalf("closed with %q, %v", texts(items), err)
		}
		next := add("d")
		if next.Generation != 2 {
			t.Errorf("an item after the end got %+v", next)
		}
		if again := add("a"); again.Generation != 1 {
			t.Errorf("an item of the closed window was added to another: %+v", again)
		}
		if _, err := s.Close(ctx, "u-1", "messages", 1, "job-2"); !errors.Is(err, ErrClosed) {
			t.Errorf("another job closed it too: %v", err)
		}
		if items, err = s.Close(ctx, "u-1", "messages", 1, "job-1"); err != nil || len(items) != 2 {
			t.Errorf("the same job again got %q, %v", texts(items), err)
		}
		if err := s.Done(ctx, "u-1", "messages", 1); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Close(ctx, "u-1", "messages", 1, "job-1"); !errors.Is(err, ErrClosed) {
			t.Errorf("after Done: %v", err)
		}
		if again := add("b"); again.Generation != 1 {
			t.Errorf("a delivered item was added to another window: %+v", again)
		}
		if items, err = s.Close(ctx, "u-1", "messages", 2, "job-3"); err != nil || fmt.Sprint(texts(items)) != "[item d]" {
			t.Errorf("the next window has %q, %v", texts(items), err)
		}
	})
}

func TestStore_FullWindowIsFollowedByAnother(t *testing.T) {
	t.Parallel()
	s := NewStore(testenv.Redis(t).Open(t), "")
	var full int
	for i := range 7 {
		a, err := s.Add(t.Context(), "u", "k", fmt.Sprintf("%d", i), []byte{byte('0' + i)}, time.Hour, 3, "q")
		if err != nil {
			t.Fatal(err)
		}
		if a.Full {
			full++
		}
		if want := int64(i/3 + 1); a.Generation != want {
			t.Errorf("item %d is in window %d, want %d", i, a.Generation, want)
		}
	}
	if full != 2 {
		t.Errorf("%d windows were full, want 2", full)
	}
	// Both the job that fills it and the one for its end come; one of them closes it.
	if items, err := s.Close(t.Context(), "u", "k", 1, "full"); err != nil || len(items) != 3 {
		t.Errorf("closed with %q, %v", texts(items), err)
	}
	if _, err := s.Close(t.Context(), "u", "k", 1, "end"); !errors.Is(err, ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
}

// However adders and closers meet, every item is delivered once.
func TestStore_LosesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	s := NewStore(testenv.Redis(t).Open(t), "")
	const adders, each = 8, 100
	var wg sync.WaitGroup
	var mu sync.Mutex
	generations, seen := map[int64]bool{}, map[string]int{}
	collect := func(generation int64, job string) {
		items, err := s.Close(t.Context(), "u", "k", generation, job)
		if errors.Is(err, ErrClosed) {
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		mu.Lock()
		for _, item := range items {
			seen[string(item)]++
		}
		mu.Unlock()
		if err := s.Done(t.Context(), "u", "k", generation); err != nil {
			t.Error(err)
		}
	}
	for i := range adders {
		wg.Go(func() {
			for j := range each {
				id := fmt.Sprintf("%d-%d", i, j)
				a, err := s.Add(t.Context(), "u", "k", id, []byte(id), time.Hour, 7, "q")
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				generations[a.Generation] = true
				mu.Unlock()
				if a.Full || j%9 == 0 {
					collect(a.Generation, "job "+id)
				}
			}
		})
	}
	wg.Wait()
	for g := range generations {
		collect(g, "the last")
	}
	if len(seen) != adders*each {
		t.Errorf("%d items were delivered, want %d", len(seen), adders*each)
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("item %s was delivered %d times", id, n)
		}
	}
}

func TestStore_KeysExpire(t *testing.T) {
	t.Parallel()
	client := testenv.Redis(t).Open(t)
	s := NewStore(client, "staging")
	if _, err := s.Add(t.Context(), "u", "who@example.com", "1", nil, time.Hour, 10, "q"); err != nil {
		t.Fatal(err)
	}
	keys, err := client.Keys(t.Context(), "postroom:digest:{staging:u}:*").Result()
	if err != nil || len(keys) != 3 {
		t.Fatalf("keys %q, %v", keys, err)
	}
	for _, key := range keys {
		if ttl := client.PTTL(t.Context(), key).Val(); ttl <= keep {
			t.Errorf("%s lives for %v", key, ttl)
		}
	}
}
