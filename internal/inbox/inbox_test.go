package inbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

// fixture is the inbox of the user ada, and what is published about it.
type fixture struct {
	*Store
	rdb *rediskit.Client
	sub *redis.PubSub
}

// setup takes the service's name of the test, which is its own, for a namespace.
func setup(t *testing.T, client *rediskit.Client, cfg Config) *fixture {
	t.Helper()
	cfg.Namespace = client.Service()
	s, err := New(client, cfg)
	if err != nil {
		t.Fatal(err)
	}
	sub := client.Subscribe(t.Context(), s.channel())
	t.Cleanup(func() { _ = sub.Close() })
	if _, err := sub.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &fixture{Store: s, rdb: client, sub: sub}
}

// event returns the next event.
func (f *fixture) event(t *testing.T) Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	m, err := f.sub.ReceiveMessage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var e Event
	if err := json.Unmarshal([]byte(m.Payload), &e); err != nil {
		t.Fatalf("event %s: %v", m.Payload, err)
	}
	return e
}

// quiet fails if anything was published: the next event is one of its own.
func (f *fixture) quiet(t *testing.T) {
	t.Helper()
	if _, err := f.Deliver(t.Context(), "quiet", Entry{ID: newID(t), Kind: "a.b"}); err != nil {
		t.Fatal(err)
	}
	if e := f.event(t); e.User != "quiet" {
		t.Errorf("published: %+v", e)
	}
}

func newID(t *testing.T) string {
	t.Helper()
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

// deliver puts a new entry into ada's inbox, and takes its event.
func (f *fixture) deliver(t *testing.T, e Entry) Delivered {
	t.Helper()
	if e.ID == "" {
		e.ID = newID(t)
	}
	e.Kind = "lab.result.ready"
	d, err := f.Deliver(t.Context(), "ada", e)
	if err != nil || d.Outcome != Accepted {
		t.Fatalf("delivered %+v, %v", d, err)
	}
	if got := f.event(t); got.Position != d.Position || got.Unread != d.Unread || got.Replaces != d.Replaced {
		t.Errorf("the event of %+v is %+v", d, got)
	}
	return d
}

func (f *fixture) state(t *testing.T, id string) string {
	t.Helper()
	delivered, read, err := f.State(t.Context(), "ada", id)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("delivered %t, read %t", delivered, read)
}

func (f *fixture) list(t *testing.T) Page {
	t.Helper()
	page, err := f.List(t.Context(), "ada", MaxEntries)
	if err != nil {
		t.Fatal(err)
	}
	return page
}

func positions(page Page) []string {
	var all []string
	for _, item := range page.Items {
		all = append(all, item.Position)
	}
	return all
}

func TestStore_Deliver(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		f := setup(t, client, Config{})
		created := time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.FixedZone("", 3600))
		first := Entry{
			ID: newID(t), Kind: "lab.result.ready", Title: `A "quoted" title`, Body: "Zeile\n</script> \u2028 \\ ü",
			Action: "/results/1", Category: "lab", Created: created,
		}
		d, err := f.Deliver(t.Context(), "ada", first)
		if err != nil || d.Outcome != Accepted || d.Unread != 1 || d.Position == "" {
			t.Fatalf("delivered %+v, %v", d, err)
		}
		want := first
		want.Created = time.Date(2026, 3, 1, 11, 0, 0, 123000000, time.UTC)
		e := f.event(t)
		if entry, err := e.Entry(); err != nil || entry != want || e.User != "ada" || e.Position != d.Position || e.Previous != Start || e.Unread != 1 {
			t.Errorf("event %+v with %+v, %v", e, entry, err)
		}
		if again, err := f.Deliver(t.Context(), "ada", first); err != nil || again != (Delivered{Outcome: Duplicate, Unread: 1}) {
			t.Errorf("the same notification again: %+v, %v", again, err)
		}
		f.quiet(t)

		second := Entry{ID: newID(t), Kind: "a.b", Created: want.Created}
		next, err := f.Deliver(t.Context(), "ada", second)
		if err != nil || !After(next.Position, d.Position) || next.Unread != 2 {
			t.Fatalf("delivered %+v, %v", next, err)
		}
		if e := f.event(t); e.Previous != d.Position {
			t.Errorf("event %+v after %s", e, d.Position)
		}
		page := f.list(t)
		wantPage := []Item{{Position: next.Position, Entry: second}, {Position: d.Position, Entry: want}}
		if !slices.Equal(page.Items, wantPage) || page.Unread != 2 || page.Last != next.Position || page.Gap {
			t.Errorf("inbox %+v", page)
		}
		if page, err := f.List(t.Context(), "ada", 1); err != nil || len(page.Items) != 1 || page.Items[0].Position != next.Position {
			t.Errorf("the newest: %+v, %v", page, err)
		}
		if page, err := f.List(t.Context(), "grace", 10); err != nil || len(page.Items) != 0 || page.Unread != 0 || page.Last != Start {
			t.Errorf("the inbox of somebody else: %+v, %v", page, err)
		}
	})
}

// Of many workers with the same job one delivers.
func TestStore_Deliver_concurrent(t *testing.T) {
	t.Parallel()
	f := setup(t, namespaced(t), Config{})
	id := newID(t)
	var mu sync.Mutex
	accepted := 0
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			d, err := f.Deliver(t.Context(), "ada", Entry{ID: id, Kind: "a.b"})
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if d.Outcome == Accepted {
				accepted++
			}
		})
	}
	wg.Wait()
	if page := f.list(t); accepted != 1 || len(page.Items) != 1 {
		t.Errorf("%d were delivered, %d are there", accepted, len(page.Items))
	}
}

// namespaced returns a client of a server of its own.
func namespaced(t *testing.T) *rediskit.Client {
	t.Helper()
	cfg := testenv.Redis(t).Config()
	cfg.Service = "staging"
	client, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func TestStore_Deliver_trims(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		f := setup(t, client, Config{MaxEntries: 3})
		var all []string
		ids := make([]string, 5)
		for i := range ids {
			ids[i] = newID(t)
			d := f.deliver(t, Entry{ID: ids[i]})
			all = append(all, d.Position)
			if want := max(1, min(i, 3)); d.Unread != want {
				t.Errorf("%d unread after %d deliveries", d.Unread, i+1)
			}
			if i == 0 {
				if _, err := f.Read(t.Context(), "ada", d.Position); err != nil {
					t.Fatal(err)
				}
				f.event(t)
				f.deliverUnread(t, 0)
			}
		}
		slices.Reverse(all)
		if page := f.list(t); !slices.Equal(positions(page), all[:3]) {
			t.Errorf("kept %v of %v", positions(page), all)
		}
		// What was trimmed is remembered.
		if got := f.state(t, ids[0]); got != "delivered true, read true" {
			t.Error("the first, which was read:", got)
		}
		if got := f.state(t, ids[1]); got != "delivered true, read false" {
			t.Error("the second:", got)
		}
		if got := f.state(t, newID(t)); got != "delivered false, read false" {
			t.Error("one that never came:", got)
		}
		if d, err := f.Deliver(t.Context(), "ada", Entry{ID: ids[0], Kind: "a.b"}); err != nil || d.Outcome != Duplicate {
			t.Errorf("the first again: %+v, %v", d, err)
		}
	})
}

func (f *fixture) deliverUnread(t *testing.T, want int) {
	t.Helper()
	if n, err := f.Unread(t.Context(), "ada"); err != nil || n != want {
		t.Errorf("%d unread, want %d; %v", n, want, err)
	}
}

// The ages are told by ids, so that the test need not wait.
func TestStore_Deliver_forgetsWhatIsOld(t *testing.T) {
	t.Parallel()
	f := setup(t, namespaced(t), Config{MaxAge: time.Hour})
	keys := f.keys("ada")
	old := time.Now().Add(-time.Hour - time.Minute).UnixMilli()
	for i, at := range []int64{old, old + 1, time.Now().Add(-time.Minute).UnixMilli()} {
		id := fmt.Sprintf("%d-0", at)
		if err := errors.Join(
			f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: keys[0], ID: id, Values: []any{"n", fmt.Sprint("n", i), "c", "{}"}}).Err(),
			f.rdb.ZAdd(t.Context(), keys[1], redis.Z{Score: float64(at), Member: id}).Err(),
			f.rdb.ZAdd(t.Context(), keys[2], redis.Z{Score: float64(at), Member: fmt.Sprint("n", i)}).Err(),
		); err != nil {
			t.Fatal(err)
		}
	}
	d := f.deliver(t, Entry{})
	if page := f.list(t); len(page.Items) != 2 || page.Unread != 2 || d.Unread != 2 {
		t.Errorf("left: %+v", page)
	}
	if got := f.state(t, "n1"); got != "delivered false, read false" {
		t.Error("an old notification is remembered:", got)
	}
	if got := f.state(t, "n2"); got != "delivered true, read false" {
		t.Error("a young notification is forgotten:", got)
	}
}

// What is remembered of a user has a bound, however many notifications come.
func TestStore_Deliver_boundsRecords(t *testing.T) {
	t.Parallel()
	f := setup(t, namespaced(t), Config{})
	members := make([]redis.Z, maxRecords)
	now := float64(time.Now().Add(-time.Hour).UnixMilli())
	for i := range members {
		members[i] = redis.Z{Score: now + float64(i), Member: fmt.Sprint("n", i)}
	}
	seen := f.keys("ada")[2]
	if err := f.rdb.ZAdd(t.Context(), seen, members...).Err(); err != nil {
		t.Fatal(err)
	}
	id := newID(t)
	f.deliver(t, Entry{ID: id})
	if n, err := f.rdb.ZCard(t.Context(), seen).Result(); err != nil || n != maxRecords {
		t.Errorf("%d records, %v", n, err)
	}
	if old, young := f.state(t, "n0"), f.state(t, id); old != "delivered false, read false" || young != "delivered true, read false" {
		t.Errorf("the oldest: %s; the newest: %s", old, young)
	}
}

func TestStore_keysExpire(t *testing.T) {
	t.Parallel()
	f := setup(t, namespaced(t), Config{MaxAge: time.Hour})
	id := newID(t)
	if o, err := f.Claim(t.Context(), "ada", id, Claim{Dedupe: "d", DedupeFor: time.Minute, Collapse: "c", Keep: 2 * time.Hour}); err != nil || o != Accepted {
		t.Fatal(o, err)
	}
	d := f.deliver(t, Entry{ID: id, Collapse: "c"})
	f.deliver(t, Entry{ID: newID(t), Collapse: "other"})
	if _, err := f.Read(t.Context(), "ada", d.Position); err != nil {
		t.Fatal(err)
	}
	// A shorter plan does not shorten what an earlier one asked for.
	if o, err := f.Claim(t.Context(), "ada", newID(t), Claim{Collapse: "c", Keep: time.Minute}); err != nil || o != Accepted {
		t.Fatal(o, err)
	}
	keys, err := f.rdb.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) != 6 {
		t.Fatalf("keys %q, %v", keys, err)
	}
	for _, key := range keys {
		ttl, err := f.rdb.PTTL(t.Context(), key).Result()
		lowest, highest := 59*time.Minute, time.Hour
		switch {
		case strings.Contains(key, ":dedupe:"):
			lowest, highest = 59*time.Second, time.Minute
		case key == f.collapseKey("ada", "c"): // what Claim asked for is longer
			lowest, highest = 119*time.Minute, 2*time.Hour
		}
		if err != nil || ttl < lowest || ttl > highest {
			t.Errorf("%s lives for %s, %v", key, ttl, err)
		}
		if !strings.HasPrefix(key, "postroom:inbox:{staging:ada}") {
			t.Errorf("key %s", key)
		}
	}
}

func TestStore_Deliver_collapse(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		f := setup(t, client, Config{})
		older, old, newest := newID(t), newID(t), newID(t)
		other := f.deliver(t, Entry{Collapse: "other"})
		a := f.deliver(t, Entry{ID: old, Collapse: "queue"})
		b := f.deliver(t, Entry{ID: newest, Collapse: "queue"})
		if b.Replaced != a.Position || b.Unread != 2 {
			t.Errorf("the newer one: %+v", b)
		}
		for _, id := range []string{older, old} {
			// old is a duplicate, older is superseded.
			d, err := f.Deliver(t.Context(), "ada", Entry{ID: id, Kind: "a.b", Collapse: "queue"})
			if want := map[string]Outcome{older: Superseded, old: Duplicate}[id]; err != nil || d.Outcome != want || d.Unread != 2 {
				t.Errorf("an older one: %+v, %v, want %s", d, err, want)
			}
		}
		f.quiet(t)
		if got, want := positions(f.list(t)), []string{b.Position, other.Position}; !slices.Equal(got, want) {
			t.Errorf("inbox %v, want %v", got, want)
		}

		// What has been read stays.
		if _, err := f.Read(t.Context(), "ada", b.Position); err != nil {
			t.Fatal(err)
		}
		f.event(t)
		c := f.deliver(t, Entry{Collapse: "queue"})
		if c.Replaced != "" || len(f.list(t).Items) != 3 {
			t.Errorf("one after a read one: %+v", c)
		}
	})
}

func TestStore_Claim(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		f := setup(t, client, Config{})
		ids := make([]string, 4)
		for i := range ids {
			ids[i] = newID(t)
		}
		dedupe := func(key string) Claim { return Claim{Dedupe: key, DedupeFor: time.Hour} }
		collapse := func(key string) Claim { return Claim{Collapse: key, Keep: time.Hour} }
		both := Claim{Dedupe: "free", DedupeFor: time.Hour, Collapse: "c", Keep: time.Hour}
		for i, step := range []struct {
			user string
			id   int
			Claim
			want Outcome
		}{
			{"ada", 1, Claim{}, Accepted},
			{"ada", 1, dedupe("k"), Accepted},
			{"ada", 1, dedupe("k"), Accepted}, // again
			{"ada", 2, dedupe("k"), Duplicate},
			{"ada", 0, dedupe("k"), Duplicate},
			{"ada", 2, dedupe("l"), Accepted},
			{"grace", 2, dedupe("k"), Accepted},
			{"ada", 1, collapse("c"), Accepted},
			{"ada", 1, collapse("c"), Accepted},
			{"ada", 0, collapse("c"), Superseded},
			{"ada", 2, collapse("c"), Accepted},
			{"ada", 1, collapse("c"), Superseded}, // a newer one came in between
			{"grace", 1, collapse("c"), Accepted},
			{"ada", 1, both, Superseded},
			{"ada", 3, both, Accepted}, // the superseded one did not take the dedupe key
			{"ada", 3, both, Accepted},
		} {
			got, err := f.Claim(t.Context(), step.user, ids[step.id], step.Claim)
			if err != nil || got != step.want {
				t.Errorf("step %d: %s, %v, want %s", i, got, err, step.want)
			}
		}
		for i, want := range []bool{true, true, true, false} {
			if got, err := f.Superseded(t.Context(), "ada", "c", ids[i]); err != nil || got != want {
				t.Errorf("%d superseded: %t, %v", i, got, err)
			}
		}
		if got, err := f.Superseded(t.Context(), "ada", "unknown", ids[0]); err != nil || got {
			t.Errorf("superseded by nothing: %t, %v", got, err)
		}
		// A claim forgets no entry that is to be replaced.
		d := f.deliver(t, Entry{ID: newID(t), Collapse: "c"})
		id := newID(t)
		if got, err := f.Claim(t.Context(), "ada", id, collapse("c")); err != nil || got != Accepted {
			t.Fatal(got, err)
		}
		if next := f.deliver(t, Entry{ID: id, Collapse: "c"}); next.Replaced != d.Position {
			t.Errorf("replaced %q, want %q", next.Replaced, d.Position)
		}
	})
}

// No key and no event shows what a service put into its keys.
func TestStore_Claim_hashes(t *testing.T) {
	t.Parallel()
	f := setup(t, namespaced(t), Config{})
	const canary = "hiv-test"
	if _, err := f.Claim(t.Context(), "ada", newID(t), Claim{Dedupe: canary, DedupeFor: time.Hour, Collapse: canary, Keep: time.Hour}); err != nil {
		t.Fatal(err)
	}
	keys, err := f.rdb.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) != 2 || strings.Contains(fmt.Sprint(keys), canary) {
		t.Errorf("keys %q, %v", keys, err)
	}
}

func TestStore_Read(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		f := setup(t, client, Config{})
		var ids, at []string
		for range 4 {
			ids = append(ids, newID(t))
			at = append(at, f.deliver(t, Entry{ID: ids[len(ids)-1]}).Position)
		}
		read := func(want int, positions ...string) {
			t.Helper()
			if n, err := f.Read(t.Context(), "ada", positions...); err != nil || n != want {
				t.Errorf("%d unread, %v, want %d", n, err, want)
			}
		}
		read(3, at[1], "1-1", at[1])
		if e := f.event(t); e.User != "ada" || e.Position != "" || !slices.Equal(e.Read, at[1:2]) || e.Unread != 3 {
			t.Errorf("event %+v", e)
		}
		read(3, at[1]) // again
		read(3)
		f.quiet(t)
		if n, err := f.ReadAll(t.Context(), "ada", at[2]); err != nil || n != 1 {
			t.Errorf("%d unread, %v", n, err)
		}
		if e := f.event(t); e.User != "ada" || e.UpTo != at[2] || e.Unread != 1 {
			t.Errorf("event %+v", e)
		}
		if n, err := f.ReadAll(t.Context(), "ada", at[2]); err != nil || n != 1 {
			t.Errorf("%d unread, %v", n, err)
		}
		f.quiet(t)
		for i, want := range []bool{true, true, true, false} {
			if got := f.state(t, ids[i]); got != fmt.Sprintf("delivered true, read %t", want) {
				t.Errorf("%d: %s", i, got)
			}
			if item := f.list(t).Items[3-i]; item.Read != want {
				t.Errorf("%d in the inbox: %+v", i, item)
			}
		}
		// Within one millisecond the second part of the id counts, as a number.
		key := f.keys("grace")
		for _, id := range []string{"5-2", "5-9", "5-10", "6-0"} {
			if err := errors.Join(
				client.XAdd(t.Context(), &redis.XAddArgs{Stream: key[0], ID: id, Values: []any{"n", "n" + id, "c", "{}"}}).Err(),
				client.ZAdd(t.Context(), key[1], redis.Z{Score: 5, Member: id}).Err(),
			); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := f.ReadAll(t.Context(), "grace", "5-9"); err != nil || n != 2 {
			t.Errorf("%d unread, %v", n, err)
		}
	})
}

func TestStore_Since(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		f := setup(t, client, Config{MaxEntries: 3})
		since := func(after string, gap bool, want ...string) {
			t.Helper()
			page, err := f.Since(t.Context(), "ada", after)
			if err != nil || page.Gap != gap || !slices.Equal(positions(page), want) {
				t.Errorf("since %s: gap %t, %v, %v; want gap %t, %v", after, page.Gap, positions(page), err, gap, want)
			}
			if list := f.list(t); page.Last != list.Last || page.Unread != list.Unread {
				t.Errorf("since %s: last %s, unread %d; the inbox has %s, %d", after, page.Last, page.Unread, list.Last, list.Unread)
			}
		}
		since(Start, false)
		since("5-0", true) // everything expired, or was lost
		a := f.deliver(t, Entry{}).Position
		b := f.deliver(t, Entry{}).Position
		c := f.deliver(t, Entry{Collapse: "c"}).Position
		since(Start, false, a, b, c)
		since(a, false, b, c)
		since(c, false)
		since("5-0", true)
		since("9999999999999-0", true) // of a stream that is no more
		d := f.deliver(t, Entry{}).Position
		since(a, true) // trimmed, and others may have been with it
		since(b, false, c, d)
		since(Start, false, b, c, d)
		e := f.deliver(t, Entry{Collapse: "c"}).Position
		since(c, false, d, e) // replaced, but not before the first
		since(b, false, d, e)

		if _, err := f.Read(t.Context(), "ada", e); err != nil {
			t.Fatal(err)
		}
		page, err := f.Since(t.Context(), "ada", d)
		if err != nil || len(page.Items) != 1 || !page.Items[0].Read {
			t.Errorf("since %s: %+v, %v", d, page, err)
		}
	})
}

func TestStore_List_spoiltEntry(t *testing.T) {
	t.Parallel()
	f := setup(t, namespaced(t), Config{})
	a := f.deliver(t, Entry{}).Position
	if err := f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: f.key("ada"), Values: []any{"n", "x", "c", "not JSON"}}).Err(); err != nil {
		t.Fatal(err)
	}
	b := f.deliver(t, Entry{}).Position
	if got := positions(f.list(t)); !slices.Equal(got, []string{b, a}) {
		t.Errorf("inbox %v, want %v", got, []string{b, a})
	}
}

// The commands that a worker needs, for docs.
func TestStore_rights(t *testing.T) {
	t.Parallel()
	cfg := testenv.Redis(t, testenv.ACL("worker", "s3cret", "~postroom:inbox:{* &postroom:inbox:staging -@all +ping +subscribe"+
		" +evalsha +eval +time +xrange +xrevrange +xlen +xadd +xdel +zadd +zrem +zcard +zscore +zremrangebyscore"+
		" +zremrangebyrank +pexpire +pttl +hget +hmget +hset +get +set +publish")).Config()
	cfg.Service = "staging"
	client, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	f := setup(t, client, Config{MaxEntries: 1})
	id := newID(t)
	claim := Claim{Dedupe: "d", DedupeFor: time.Hour, Collapse: "c", Keep: time.Hour}
	for range 2 {
		if o, err := f.Claim(t.Context(), "ada", id, claim); err != nil || o != Accepted {
			t.Fatal(o, err)
		}
	}
	f.deliver(t, Entry{ID: id, Collapse: "c"})
	f.deliver(t, Entry{Collapse: "c"})
	f.deliver(t, Entry{})
	if got := f.state(t, id); got != "delivered true, read false" {
		t.Error(got)
	}
	if over, err := f.Superseded(t.Context(), "ada", "c", id); err != nil || !over {
		t.Error(over, err)
	}
}

// What was deleted is found although Redis' own field does not tell of it.
func TestStore_Since_afterFlush(t *testing.T) {
	t.Parallel()
	f := setup(t, namespaced(t), Config{})
	before := f.deliver(t, Entry{}).Position
	if err := f.rdb.FlushDB(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if page, err := f.Since(t.Context(), "ada", before); err != nil || !page.Gap || page.Last != Start {
		t.Errorf("after the flush: %+v, %v", page, err)
	}
	f.deliver(t, Entry{})
	if page, err := f.Since(t.Context(), "ada", before); err != nil || !page.Gap {
		t.Errorf("after the next delivery: %+v, %v", page, err)
	}
}

// unused returns a client that is never asked.
func unused(t *testing.T) *redis.Client {
	t.Helper()
	rdb := redis.NewClient(&redis.Options{})
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

func TestStore_refuses(t *testing.T) {
	t.Parallel()
	s, err := New(unused(t), Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, id := t.Context(), newID(t)
	const canary = "ada} lovelace"
	for name, call := range map[string]func() error{
		"Deliver user": func() error { _, err := s.Deliver(ctx, canary, Entry{ID: id}); return err },
		"Deliver id":   func() error { _, err := s.Deliver(ctx, "ada", Entry{ID: canary}); return err },
		"Deliver time": func() error {
			_, err := s.Deliver(ctx, "ada", Entry{ID: id, Created: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)})
			return err
		},
		"Claim user":      func() error { _, err := s.Claim(ctx, canary, id, Claim{}); return err },
		"Claim dedupe":    func() error { _, err := s.Claim(ctx, "ada", id, Claim{Dedupe: "d"}); return err },
		"Claim collapse":  func() error { _, err := s.Claim(ctx, "ada", id, Claim{Collapse: "c"}); return err },
		"Superseded user": func() error { _, err := s.Superseded(ctx, canary, "c", id); return err },
		"State user":      func() error { _, _, err := s.State(ctx, canary, id); return err },
		"Read user":       func() error { _, err := s.Read(ctx, canary, "1-1"); return err },
		"Read too many":   func() error { _, err := s.Read(ctx, "ada", make([]string, MaxRead+1)...); return err },
		"Read position":   func() error { _, err := s.Read(ctx, "ada", canary); return err },
		"ReadAll user":    func() error { _, err := s.ReadAll(ctx, canary, "1-1"); return err },
		"ReadAll nothing": func() error { _, err := s.ReadAll(ctx, "ada", ""); return err },
		"Unread user":     func() error { _, err := s.Unread(ctx, canary); return err },
		"List user":       func() error { _, err := s.List(ctx, canary, 1); return err },
		"List nothing":    func() error { _, err := s.List(ctx, "ada", 0); return err },
		"Since user":      func() error { _, err := s.Since(ctx, canary, Start); return err },
		"Since position":  func() error { _, err := s.Since(ctx, "ada", canary); return err },
	} {
		err := call()
		if err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.ReadAll(ctx, "ada", canary); !errors.Is(err, ErrPosition) {
		t.Errorf("%v is not ErrPosition", err)
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	rdb := unused(t)
	for _, cfg := range []Config{
		{Namespace: "a:b"}, {Namespace: "}"}, {MaxEntries: -1}, {MaxEntries: MaxEntries + 1}, {MaxAge: time.Millisecond}, {MaxAge: -1},
	} {
		if _, err := New(rdb, cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
	if _, err := New(nil, Config{}); err == nil {
		t.Error("no client was accepted")
	}
	a, err1 := New(rdb, Config{})
	b, err2 := New(rdb, Config{Namespace: "staging"})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if a.key("staging:ada") == b.key("ada") {
		t.Errorf("two inboxes share %s", b.key("ada"))
	}
	if a.channel() != "postroom:inbox" || b.channel() != "postroom:inbox:staging" {
		t.Errorf("channels %s and %s", a.channel(), b.channel())
	}
}

func FuzzPosition(f *testing.F) {
	for _, seed := range []string{"1700000000000-0", "0-0", "007-08", "-1-2", "1-", "1-2-3", "+1-1", "9223372036854775807-1", "9223372036854775808-1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, id string) {
		got, err := Position(id)
		if err != nil {
			if !errors.Is(err, ErrPosition) {
				t.Errorf("%v is not ErrPosition", err)
			}
			return
		}
		if again, err := Position(got); err != nil || again != got {
			t.Errorf("%q becomes %q becomes %q, %v", id, got, again, err)
		}
		if strings.Trim(got, "0123456789-") != "" || After(got, got) {
			t.Errorf("%q becomes %q", id, got)
		}
	})
}

func TestAfter(t *testing.T) {
	t.Parallel()
	ordered := []string{Start, "0-1", "9-0", "10-0", "10-9", "10-10", "1700000000000-0"}
	for i, a := range ordered {
		for j, b := range ordered {
			if After(a, b) != (i > j) {
				t.Errorf("After(%s, %s) is %t", a, b, i <= j)
			}
		}
	}
}
