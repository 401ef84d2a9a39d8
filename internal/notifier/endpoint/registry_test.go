package endpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/egress"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

const canary = "canary-4711"

// clock is moved by tests.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// open returns a registry with a clock of its own; its namespace is the client's
// service, so that tests can share a server.
func open(client *rediskit.Client) (*Registry, *clock) {
	r := NewRegistry(client, client.Service())
	c := &clock{at: time.Now()}
	r.now = c.now
	return r, c
}

func lab() Endpoint {
	return Endpoint{
		ID: "lab", Kind: Standard, URL: "https://hooks.example.com/" + canary,
		Keys:  []Key{{Secret: "whsec_" + canary}},
		Allow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, Concurrency: 3,
	}
}

func TestRegistry_life(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		ctx := t.Context()
		r, _ := open(client)
		if _, err := r.Get(ctx, "lab"); !errors.Is(err, ErrNotFound) {
			t.Errorf("get of none: %v", err)
		}
		added, err := r.Add(ctx, lab())
		if err != nil {
			t.Fatal(err)
		}
		if added.Created.IsZero() || added.Keys[0].Created.IsZero() || added.Disabled != nil {
			t.Errorf("added %+v", added)
		}
		other := lab()
		other.URL = "https://other.example.com/"
		if _, err := r.Add(ctx, other); !errors.Is(err, ErrExists) {
			t.Errorf("a second of the same id: %v", err)
		}
		chat := Endpoint{ID: "chat", Kind: Slack, URL: "https://chat.example.com/" + canary}
		if _, err := r.Add(ctx, chat); err != nil {
			t.Fatal(err)
		}
		got, err := r.Get(ctx, "lab")
		if want := lab(); err != nil || got.URL != want.URL || got.Keys[0].Secret != want.Keys[0].Secret ||
			len(got.Allow) != 1 || got.Allow[0] != want.Allow[0] || got.Concurrency != 3 || got.Kind != Standard {
			t.Errorf("got %+v, %v", got, err)
		}
		list, err := r.List(ctx)
		if err != nil || len(list) != 2 || list[0].ID != "chat" || list[1].ID != "lab" || list[1].URL != lab().URL {
			t.Errorf("list %+v, %v", list, err)
		}

		if err := r.Disable(ctx, "lab", "they asked for it"); err != nil {
			t.Fatal(err)
		}
		if err := r.Disable(ctx, "lab", "another reason"); err != nil {
			t.Fatal(err)
		}
		if got, err := r.Get(ctx, "lab"); err != nil || got.Disabled == nil || got.Disabled.Reason != "they asked for it" || got.Disabled.At.IsZero() {
			t.Errorf("disabled: %+v, %v", got.Disabled, err)
		}
		if err := r.Enable(ctx, "lab"); err != nil {
			t.Fatal(err)
		}
		if got, err := r.Get(ctx, "lab"); err != nil || got.Disabled != nil {
			t.Errorf("enabled: %+v, %v", got.Disabled, err)
		}

		if err := r.Remove(ctx, "lab"); err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{
			"get":     func() error { _, err := r.Get(ctx, "lab"); return err }(),
			"remove":  r.Remove(ctx, "lab"),
			"disable": r.Disable(ctx, "lab", "x"),
			"enable":  r.Enable(ctx, "lab"),
			"rotate":  func() error { _, err := r.RotateKey(ctx, "lab", "whsec_x", 0); return err }(),
		} {
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("%s of a removed one: %v", what, err)
			}
		}
		if list, err := r.List(ctx); err != nil || len(list) != 1 {
			t.Errorf("list %+v, %v", list, err)
		}
		if failed, err := r.Failed(ctx, lab()); err != nil || failed {
			t.Errorf("a failure of a removed one: %v, %v", failed, err)
		}
		if n, err := client.Exists(ctx, r.key("lab")).Result(); err != nil || n != 0 {
			t.Errorf("a late report brought it back: %d, %v", n, err)
		}
	})
}

// A namespace sees its own endpoints only.
func TestRegistry_namespaces(t *testing.T) {
	t.Parallel()
	client := testenv.Redis(t).Open(t)
	if _, err := NewRegistry(client, "").Add(t.Context(), lab()); err != nil {
		t.Fatal(err)
	}
	staging := NewRegistry(client, "staging")
	if _, err := staging.Get(t.Context(), "lab"); !errors.Is(err, ErrNotFound) {
		t.Errorf("staging has it: %v", err)
	}
	if list, err := staging.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("staging lists %+v, %v", list, err)
	}
}

// Reads go to Redis once in 5 s; own changes are seen at once, those of others then.
func TestRegistry_Get_caches(t *testing.T) {
	t.Parallel()
	client := testenv.Redis(t).Open(t)
	ctx := t.Context()
	mine, clock := open(client)
	theirs, _ := open(client)
	if _, err := mine.Add(ctx, lab()); err != nil {
		t.Fatal(err)
	}
	isDisabled := func() bool {
		t.Helper()
		e, err := mine.Get(ctx, "lab")
		if err != nil {
			t.Fatal(err)
		}
		return e.Disabled != nil
	}
	if isDisabled() {
		t.Fatal("disabled from the start")
	}
	if err := theirs.Disable(ctx, "lab", "x"); err != nil {
		t.Fatal(err)
	}
	clock.add(cacheFor - time.Nanosecond)
	if isDisabled() {
		t.Error("asked Redis again too early")
	}
	clock.add(time.Nanosecond)
	if !isDisabled() {
		t.Error("did not ask Redis after 5 s")
	}
	if err := mine.Enable(ctx, "lab"); err != nil {
		t.Fatal(err)
	}
	if isDisabled() {
		t.Error("does not see its own change")
	}
	if err := theirs.Remove(ctx, "lab"); err != nil {
		t.Fatal(err)
	}
	clock.add(cacheFor)
	if _, err := mine.Get(ctx, "lab"); !errors.Is(err, ErrNotFound) {
		t.Errorf("serves a removed endpoint: %v", err)
	}
}

func TestRegistry_RotateKey(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		ctx := t.Context()
		r, _ := open(client)
		if _, err := r.Add(ctx, lab()); err != nil {
			t.Fatal(err)
		}
		old := lab().Keys[0].Secret
		if _, err := r.RotateKey(ctx, "lab", "whsec_2", time.Hour); err != nil {
			t.Fatal(err)
		}
		e, err := r.RotateKey(ctx, "lab", "whsec_2", 2*time.Hour) // repeated
		if err != nil {
			t.Fatal(err)
		}
		stored, err := r.Get(ctx, "lab")
		if err != nil {
			t.Fatal(err)
		}
		for _, keys := range [][]Key{e.Keys, stored.Keys} {
			if len(keys) != 2 || keys[0].Secret != "whsec_2" || !keys[0].Retires.IsZero() || keys[1].Secret != old {
				t.Fatalf("keys %+v", keys)
			}
			if life := keys[1].Retires.Sub(keys[0].Created); life <= 0 || life > time.Hour {
				t.Errorf("the old key lives for %s, want an hour at most", life)
			}
		}
		if got := e.Live(e.Keys[1].Retires.Add(-1)); len(got) != 2 {
			t.Errorf("within the grace %d keys sign", len(got))
		}
		if got := e.Live(e.Keys[1].Retires); len(got) != 1 || got[0].Secret != "whsec_2" {
			t.Errorf("after the grace %+v sign", got)
		}
		for i := range MaxKeys + 2 {
			if e, err = r.RotateKey(ctx, "lab", rediskit.Secret("whsec_n"+strconv.Itoa(i)), time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		if len(e.Keys) != MaxKeys {
			t.Errorf("%d keys are kept", len(e.Keys))
		}
		if e, err = r.RotateKey(ctx, "lab", "whsec_now", 0); err != nil || len(e.Keys) != 1 {
			t.Errorf("without grace %d keys are left, %v", len(e.Keys), err)
		}
		if _, err = r.RotateKey(ctx, "lab", "whsec_now", MaxGrace+1); err == nil {
			t.Error("a grace without end is taken")
		}
	})
}

// Nobody's key is lost when several rotate at once.
func TestRegistry_RotateKey_concurrent(t *testing.T) {
	t.Parallel()
	client := testenv.Redis(t).Open(t)
	r, _ := open(client)
	if _, err := r.Add(t.Context(), lab()); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range MaxKeys - 1 {
		wg.Go(func() {
			if _, err := r.RotateKey(t.Context(), "lab", rediskit.Secret("whsec_"+strconv.Itoa(i)), time.Hour); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if e, err := r.Get(t.Context(), "lab"); err != nil || len(e.Keys) != MaxKeys {
		t.Errorf("%d keys, %v", len(e.Keys), err)
	}
}

func TestRegistry_Failed(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		ctx := t.Context()
		r, _ := open(client)
		if _, err := r.Add(ctx, lab()); err != nil {
			t.Fatal(err)
		}
		get := func() Endpoint {
			t.Helper()
			r.forget("lab") // as after 5 s
			e, err := r.Get(ctx, "lab")
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		fail := func() bool {
			t.Helper()
			disabled, err := r.Failed(ctx, get())
			if err != nil {
				t.Fatal(err)
			}
			return disabled
		}
		// back moves what is recorded into the past: the clock is Redis's.
		back := func(since, last time.Duration) {
			t.Helper()
			for field, d := range map[string]time.Duration{"failing": since, "failed": last} {
				if err := client.HSet(ctx, r.key("lab"), field, time.Now().Add(-d).UnixMilli()).Err(); err != nil {
					t.Fatal(err)
				}
			}
		}

		if fail() || get().FailingSince.IsZero() {
			t.Errorf("after the first failure: %+v", get())
		}
		first := get().FailingSince
		if fail() || !get().FailingSince.Equal(first) {
			t.Error("the second failure began a new row")
		}
		if err := r.Delivered(ctx, get()); err != nil || !get().FailingSince.IsZero() {
			t.Errorf("after a delivery: %+v, %v", get(), err)
		}
		fail()
		back(FailingLimit-time.Minute, time.Minute)
		if fail() || get().Disabled != nil {
			t.Error("disabled before 5 days")
		}
		back(FailingLimit+time.Minute, failingGap+time.Minute)
		if fail() || time.Since(get().FailingSince) > time.Minute {
			t.Error("two failures with nothing between them make a row of 5 days")
		}
		back(FailingLimit+time.Minute, failingGap-time.Minute)
		if !fail() {
			t.Error("not disabled after 5 days")
		}
		if d := get().Disabled; d == nil || d.Reason != DisabledFailing {
			t.Errorf("disabled: %+v", d)
		}
		if fail() {
			t.Error("disabled a second time")
		}
		if err := r.Enable(ctx, "lab"); err != nil || !get().FailingSince.IsZero() {
			t.Errorf("enabled with a record of failures: %v", err)
		}
	})
}

func TestRegistry_Add_isBounded(t *testing.T) {
	t.Parallel()
	client := testenv.Redis(t).Open(t)
	r, _ := open(client)
	ids := make([]any, MaxEndpoints)
	for i := range ids {
		ids[i] = fmt.Sprint("e", i)
	}
	if err := client.SAdd(t.Context(), r.index, ids...).Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Add(t.Context(), lab()); !errors.Is(err, ErrFull) {
		t.Errorf("one too many: %v", err)
	}
}

func TestRegistry_damage(t *testing.T) {
	t.Parallel()
	client := testenv.Redis(t).Open(t)
	r, _ := open(client)
	if err := client.HSet(t.Context(), r.key("lab"), "record", `{"url":5,"keys":"`+canary).Err(); err != nil {
		t.Fatal(err)
	}
	_, err := r.Get(t.Context(), "lab")
	if err == nil || errors.Is(err, ErrNotFound) || strings.Contains(err.Error(), canary) {
		t.Errorf("a damaged record: %v", err)
	}
}

func TestEndpoint_Validate(t *testing.T) {
	t.Parallel()
	if err := lab().Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Endpoint){
		"endpoint id":                           func(e *Endpoint) { e.ID = "Lab" },
		"kind: want":                            func(e *Endpoint) { e.Kind = "pager" },
		"no key":                                func(e *Endpoint) { e.Keys = nil },
		"chats verify none":                     func(e *Endpoint) { e.Kind = Slack },
		"keys, the limit":                       func(e *Endpoint) { e.Keys = append(make([]Key, MaxKeys), e.Keys...) },
		"without spaces":                        func(e *Endpoint) { e.Keys = []Key{{Secret: "a\nb"}} },
		"prefixes, the limit":                   func(e *Endpoint) { e.Allow = make([]netip.Prefix, MaxAllow+1) },
		"allow-list: want":                      func(e *Endpoint) { e.Allow = []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")} },
		"concurrency is":                        func(e *Endpoint) { e.Concurrency = -1 },
		"endpoint URL: forbidden: URL without":  func(e *Endpoint) { e.URL = "https:///" + canary },
		"endpoint URL: forbidden: port other":   func(e *Endpoint) { e.Allow, e.URL = nil, "https://example.com:8443/"+canary },
		"endpoint URL: forbidden: private addr": func(e *Endpoint) { e.URL = "https://10.2.0.1/" + canary },
	} {
		e := lab()
		change(&e)
		err := e.Validate()
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), canary) {
			t.Errorf("%v, want an error with %q and no secret", err, want)
		}
		if _, forbidden := errors.AsType[*egress.ForbiddenError](err); forbidden != strings.HasPrefix(want, "endpoint URL") {
			t.Errorf("%v: a ForbiddenError is %v", err, forbidden)
		}
	}
}

func TestEndpoint_hidesItsSecrets(t *testing.T) {
	t.Parallel()
	e := lab()
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{fmt.Sprint(e), fmt.Sprintf("%+v %#v", e, e), string(text), e.Origin()} {
		if strings.Contains(shown, canary) {
			t.Errorf("shows its secret: %s", shown)
		}
	}
	if got := e.Origin(); got != "https://hooks.example.com" {
		t.Errorf("Origin() = %q", got)
	}
}
