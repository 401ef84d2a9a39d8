package session_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/rediskit/session"
)

type login struct {
	Role string `json:"role"`
}

var config = session.Config{Idle: time.Hour, Absolute: 24 * time.Hour}

func newStore[T any](tb testing.TB, c *rediskit.Client, cfg session.Config) *session.Store[T] {
	tb.Helper()
	store, err := session.New[T](c, cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return store
}

func mustCreate(tb testing.TB, store *session.Store[login], user, role string) string {
	tb.Helper()
	token, err := store.Create(tb.Context(), user, login{Role: role})
	if err != nil {
		tb.Fatal(err)
	}
	return token
}

func assertGone(tb testing.TB, store *session.Store[login], token, when string) {
	tb.Helper()
	for name, call := range map[string]func(context.Context, string) (session.Session[login], error){"Read": store.Read, "Renew": store.Renew} {
		if s, err := call(tb.Context(), token); !errors.Is(err, session.ErrNotFound) || s != (session.Session[login]{}) {
			tb.Errorf("%s, %s: %+v, %v; want ErrNotFound", when, name, s, err)
		}
	}
	if fresh, err := store.Rotate(tb.Context(), token, login{}); !errors.Is(err, session.ErrNotFound) || fresh != "" {
		tb.Errorf("%s, Rotate: %v; want ErrNotFound", when, err)
	}
}

// eventually polls until ok: the deadline is only for a broken program.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatal("never happened: " + what)
		}
	}
}

// userKey is the one key of the one user of c's service.
func userKey(tb testing.TB, token string, c *rediskit.Client) string {
	tb.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(raw) != 48 {
		tb.Fatalf("token of %d bytes, %v", len(raw), err)
	}
	return c.Key("session", "{"+base64.RawURLEncoding.EncodeToString(raw[32:])+"}")
}

func TestNew_config(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, want string
		change     func(*session.Config)
	}{
		{name: "good", change: func(*session.Config) {}},
		{name: "no Idle", want: "Idle 0s", change: func(c *session.Config) { c.Idle = 0 }},
		{name: "Idle of less than a second", want: "Idle 1ms", change: func(c *session.Config) { c.Idle = time.Millisecond }},
		{name: "no Absolute", want: "Absolute 0s", change: func(c *session.Config) { c.Absolute = 0 }},
		{name: "Absolute before Idle", want: "Absolute 1m0s", change: func(c *session.Config) { c.Absolute = time.Minute }},
		{name: "MaxPerUser", want: "MaxPerUser -1", change: func(c *session.Config) { c.MaxPerUser = -1 }},
		{name: "MaxPerUser", want: "MaxPerUser 1001", change: func(c *session.Config) { c.MaxPerUser = 1001 }},
		{name: "MaxData", want: "MaxData -1", change: func(c *session.Config) { c.MaxData = -1 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := config
			tt.change(&cfg)
			_, err := session.New[login](client, cfg)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := session.New[login](nil, config); err == nil || !strings.Contains(err.Error(), "SERVICE_NAME") {
		t.Errorf("without a client: %v", err)
	}
}

func TestStore_CreateRead(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		ctx, store := t.Context(), newStore[login](t, c, config)
		clock, err := c.Time(ctx).Result()
		if err != nil {
			t.Fatal(err)
		}
		const user = "ада lovelace:{1}\n" // whatever a service calls its users
		token := mustCreate(t, store, user, "doctor")
		s, err := store.Read(ctx, token)
		if err != nil || s.User != user || s.Data.Role != "doctor" {
			t.Fatalf("read %+v, %v", s, err)
		}
		// In a cluster the clock asked for may be another node's, on one machine.
		if d := s.Created.Sub(clock); d < -time.Second || d > time.Minute {
			t.Errorf("created %v after the server's time", d)
		}
		if !s.LastSeen.Equal(s.Created) || s.IdleEnds.Sub(s.Created) != config.Idle || s.Ends.Sub(s.Created) != config.Absolute {
			t.Errorf("times %+v", s)
		}
		if again, err := store.Read(ctx, token); err != nil || again != s {
			t.Errorf("Read changed something: %+v, %v; was %+v", again, err, s)
		}
		if got, want := store.Stats(), (session.Stats{Created: 1}); got != want {
			t.Errorf("stats %+v, want %+v", got, want)
		}
	})
}

func TestStore_storesOnlyHash(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		ctx, store := t.Context(), newStore[login](t, c, config)
		token := mustCreate(t, store, "ada", "doctor")
		fresh, err := store.Rotate(ctx, token, login{Role: "admin"})
		if err != nil {
			t.Fatal(err)
		}
		key := userKey(t, fresh, c)
		fields, err := c.HGetAll(ctx, key).Result()
		if err != nil || len(fields) != 1 {
			t.Fatalf("stored %v, %v", fields, err)
		}
		raw, _ := base64.RawURLEncoding.DecodeString(fresh)
		sum := sha256.Sum256(raw)
		value, ok := fields[base64.RawURLEncoding.EncodeToString(sum[:])]
		if !ok {
			t.Errorf("the field is not the SHA-256 of the token: %v", fields)
		}
		secret := base64.RawURLEncoding.EncodeToString(raw[:30]) // a multiple of three: the token's own characters
		for _, stored := range []string{key, value, fmt.Sprint(fields)} {
			if strings.Contains(stored, secret) || strings.Contains(stored, string(raw[:32])) {
				t.Errorf("the token is stored: %q", stored)
			}
		}
		if left := c.PTTL(ctx, key).Val(); left <= 0 || left > config.Idle {
			t.Errorf("the key lives for %v, want at most %v", left, config.Idle)
		}
	})
}

func TestStore_tokens(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		store := newStore[login](t, c, config)
		seen := make(map[string]bool)
		for range 50 {
			token := mustCreate(t, store, "ada", "doctor")
			if seen[token[:43]] {
				t.Fatal("the same random part twice")
			}
			seen[token[:43]] = true
		}
		token := mustCreate(t, store, "ada", "doctor")
		other := mustCreate(t, store, "grace", "doctor")
		wrong := []string{
			"", "x", token[:63], token + "A", token + "=", token + "\n", "\r\n" + token[2:], token[:62] + "\n\n",
			strings.Repeat("A", 64), strings.Repeat("é", 32), token[:63] + "+", token[:63] + "\x00",
			token[:43] + other[43:], other[:43] + token[43:],
		}
		for i := range token { // every character counts
			swap := byte('A')
			if token[i] == swap {
				swap = 'B'
			}
			wrong = append(wrong, token[:i]+string(swap)+token[i+1:])
		}
		for _, bad := range wrong {
			if s, err := store.Read(t.Context(), bad); !errors.Is(err, session.ErrNotFound) {
				t.Errorf("token %q: %+v, %v", bad, s, err)
			}
		}
		if n := store.Stats().Unknown; n != uint64(len(wrong)) {
			t.Errorf("%d unknown tokens counted, want %d", n, len(wrong))
		}
		assertGone(t, store, wrong[0], "empty token")
		assertGone(t, store, wrong[8], "well-formed token")
		if _, err := store.Read(t.Context(), token); err != nil {
			t.Errorf("the right token: %v", err)
		}
	})
}

// What cannot be a token is refused without a server.
func TestStore_tokensRefusedLocally(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t)
	store := newStore[login](t, openFor(t, srv), config)
	srv.Kill()
	assertGone(t, store, "guess", "server down")
	if err := store.Revoke(t.Context(), "guess"); err != nil {
		t.Error(err)
	}
}

func openFor(t *testing.T, srv *testenv.RedisServer) *rediskit.Client {
	t.Helper()
	cfg := srv.Config()
	cfg.Service, cfg.MaxRetries = "accounts-service", -1
	c, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestStore_servicesApart(t *testing.T) {
	t.Parallel()
	cfg := client.Config()
	cfg.Service = "accounts-service"
	other, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	here, there := newStore[login](t, client, config), newStore[login](t, other, config)
	token := mustCreate(t, here, "shared-user", "doctor")
	foreign := mustCreate(t, there, "shared-user", "doctor")
	assertGone(t, there, token, "in another service")
	if token[44:] == foreign[44:] {
		t.Error("two services' tokens tell that they are of the same user")
	}
	if err := there.RevokeAll(t.Context(), "shared-user"); err != nil {
		t.Fatal(err)
	}
	if _, err := here.Read(t.Context(), token); err != nil {
		t.Errorf("another service revoked it: %v", err)
	}
}

func TestStore_expiry(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		t.Run("idle", func(t *testing.T) {
			t.Parallel()
			ctx, store := t.Context(), newStore[login](t, c, session.Config{Idle: time.Second, Absolute: time.Hour})
			idle, used := mustCreate(t, store, "idle", "idle"), mustCreate(t, store, "idle", "used")
			key := userKey(t, idle, c)
			var last session.Session[login]
			eventually(t, "the idle session ended", func() bool {
				s, err := store.Renew(ctx, used)
				if err != nil {
					t.Fatalf("the session in use ended: %v", err)
				}
				if s.LastSeen.Before(last.LastSeen) || s.IdleEnds.Sub(s.LastSeen) != time.Second || !s.Created.Before(s.Ends) {
					t.Errorf("renewed to %+v", s)
				}
				last = s
				_, err = store.Read(ctx, idle) // reading does not keep it alive
				return errors.Is(err, session.ErrNotFound)
			})
			if age := last.LastSeen.Sub(last.Created); age < time.Second-time.Second/10 {
				t.Errorf("the idle session ended after %v", age)
			}
			assertGone(t, store, idle, "after Idle")
			if sessions, err := store.List(ctx, "idle"); err != nil || len(sessions) != 1 || sessions[0].Data.Role != "used" {
				t.Errorf("listed %+v, %v", sessions, err)
			}
			if n := c.HLen(ctx, key).Val(); n != 1 {
				t.Errorf("%d sessions are stored after List, want the live one", n)
			}
			eventually(t, "the key disappeared", func() bool { return c.Exists(ctx, key).Val() == 0 })
		})
		t.Run("absolute", func(t *testing.T) {
			t.Parallel()
			ctx, store := t.Context(), newStore[login](t, c, session.Config{Idle: time.Second, Absolute: 1200 * time.Millisecond})
			token := mustCreate(t, store, "absolute", "x")
			first, err := store.Read(ctx, token)
			if err != nil {
				t.Fatal(err)
			}
			rotated := false
			eventually(t, "the session ended although it was in use", func() bool {
				s, err := store.Renew(ctx, token)
				if errors.Is(err, session.ErrNotFound) {
					return true
				}
				if err != nil {
					t.Fatal(err)
				}
				if s.IdleEnds.After(s.Ends) || !s.Ends.Equal(first.Ends) || !s.Created.Equal(first.Created) {
					t.Errorf("renewed to %+v, was %+v", s, first)
				}
				if !rotated && s.LastSeen.Sub(s.Created) > 600*time.Millisecond {
					rotated = true
					if token, err = store.Rotate(ctx, token, login{}); err != nil {
						t.Fatal(err)
					}
				}
				return false
			})
			if !rotated {
				t.Error("it ended before 600 ms had passed")
			}
			eventually(t, "the key disappeared", func() bool { return c.Exists(ctx, userKey(t, token, c)).Val() == 0 })
		})
		t.Run("swept by the next login", func(t *testing.T) {
			t.Parallel()
			ctx, short := t.Context(), newStore[login](t, c, session.Config{Idle: time.Second, Absolute: time.Second})
			long := newStore[login](t, c, config)
			dead := mustCreate(t, short, "swept", "dead")
			mustCreate(t, long, "swept", "live")
			eventually(t, "the short session ended", func() bool {
				_, err := short.Read(ctx, dead)
				return errors.Is(err, session.ErrNotFound)
			})
			if n := c.HLen(ctx, userKey(t, dead, c)).Val(); n != 2 {
				t.Fatalf("%d stored before the login, want 2", n)
			}
			mustCreate(t, long, "swept", "new")
			if n := c.HLen(ctx, userKey(t, dead, c)).Val(); n != 2 {
				t.Errorf("%d stored after the login, want the two live ones", n)
			}
			// A short session does not take the long ones with it.
			mustCreate(t, short, "swept", "short")
			if left := c.PTTL(ctx, userKey(t, dead, c)).Val(); left < config.Idle-time.Minute {
				t.Errorf("the key lives for %v", left)
			}
		})
	})
}

func TestStore_Rotate(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		ctx, store := t.Context(), newStore[login](t, c, config)
		planted := mustCreate(t, store, "ada", "guest") // a token that an attacker knows
		before, err := store.Read(ctx, planted)
		if err != nil {
			t.Fatal(err)
		}
		fresh, err := store.Rotate(ctx, planted, login{Role: "admin"})
		if err != nil || fresh == planted {
			t.Fatalf("rotated to the same token, or %v", err)
		}
		assertGone(t, store, planted, "after Rotate")
		after, err := store.Read(ctx, fresh)
		if err != nil || after.User != "ada" || after.Data.Role != "admin" || after.ID == before.ID ||
			!after.Created.Equal(before.Created) || !after.Ends.Equal(before.Ends) {
			t.Errorf("rotated to %+v, %v; was %+v", after, err, before)
		}
		if sessions, err := store.List(ctx, "ada"); err != nil || len(sessions) != 1 {
			t.Errorf("%d sessions after Rotate, %v", len(sessions), err)
		}
	})
}

// Only one of those who rotate a token at the same time gets the session.
func TestStore_Rotate_once(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		store := newStore[login](t, c, config)
		token := mustCreate(t, store, "ada", "guest")
		var mu sync.Mutex
		won := 0
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				_, err := store.Rotate(t.Context(), token, login{Role: "admin"})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
				} else if !errors.Is(err, session.ErrNotFound) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won != 1 || store.Stats().Rotated != 1 {
			t.Errorf("%d rotated, stats %+v", won, store.Stats())
		}
	})
}

func TestStore_Revoke(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		ctx, store := t.Context(), newStore[login](t, c, config)
		phone, laptop, tablet := mustCreate(t, store, "ada", "phone"), mustCreate(t, store, "ada", "laptop"), mustCreate(t, store, "ada", "tablet")
		grace := mustCreate(t, store, "grace", "phone")
		for range 2 { // revoking again is no error
			if err := store.Revoke(ctx, phone); err != nil {
				t.Fatal(err)
			}
		}
		assertGone(t, store, phone, "after Revoke")
		lost, err := store.Read(ctx, laptop)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.RevokeID(ctx, "grace", lost.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Read(ctx, laptop); err != nil {
			t.Errorf("one user revoked another's session: %v", err)
		}
		for range 2 {
			if err := store.RevokeID(ctx, "ada", lost.ID); err != nil {
				t.Fatal(err)
			}
		}
		assertGone(t, store, laptop, "after RevokeID")
		if _, err := store.Read(ctx, tablet); err != nil {
			t.Errorf("the third session: %v", err)
		}
		another := mustCreate(t, store, "ada", "watch")
		for range 2 {
			if err := store.RevokeAll(ctx, "ada"); err != nil {
				t.Fatal(err)
			}
		}
		assertGone(t, store, tablet, "after RevokeAll")
		assertGone(t, store, another, "after RevokeAll")
		if sessions, err := store.List(ctx, "ada"); err != nil || len(sessions) != 0 {
			t.Errorf("listed %+v, %v", sessions, err)
		}
		if n := c.Exists(ctx, userKey(t, tablet, c)).Val(); n != 0 {
			t.Error("RevokeAll left the key")
		}
		if _, err := store.Read(ctx, grace); err != nil {
			t.Errorf("another user's session: %v", err)
		}
	})
}

// A request that renews while the user is revoked must not bring a session back.
func TestStore_RevokeAll_whileInUse(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		store := newStore[login](t, c, config)
		for range 5 {
			token := mustCreate(t, store, "ada", "phone")
			begun := make(chan struct{})
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					if _, err := store.Renew(t.Context(), token); err != nil && !errors.Is(err, session.ErrNotFound) {
						t.Error(err)
					}
					begun <- struct{}{}
					for {
						_, err := store.Renew(t.Context(), token)
						if errors.Is(err, session.ErrNotFound) {
							return
						}
						if err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			for range 4 {
				<-begun
			}
			if err := store.RevokeAll(t.Context(), "ada"); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			assertGone(t, store, token, "after all renewals")
		}
	})
}

func TestStore_List(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		ctx, store := t.Context(), newStore[login](t, c, config)
		if sessions, err := store.List(ctx, "nobody"); err != nil || len(sessions) != 0 {
			t.Errorf("nobody has %+v, %v", sessions, err)
		}
		first := mustCreate(t, store, "ada", "first")
		mustCreate(t, store, "ada", "second")
		var renewed session.Session[login]
		eventually(t, "the server's clock moved on", func() bool {
			var err error
			renewed, err = store.Renew(ctx, first)
			return err == nil && renewed.LastSeen.Sub(renewed.Created) > 20*time.Millisecond
		})
		sessions, err := store.List(ctx, "ada")
		if err != nil || len(sessions) != 2 || sessions[0] != renewed || sessions[1].Data.Role != "second" || sessions[1].User != "ada" {
			t.Errorf("listed %+v, %v; want first %+v", sessions, err, renewed)
		}
	})
}

func TestStore_Create_limit(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		ctx := t.Context()
		cfg := config
		cfg.MaxPerUser = 3
		store := newStore[login](t, c, cfg)
		stale := mustCreate(t, store, "ada", "stale")
		used := mustCreate(t, store, "ada", "used")
		eventually(t, "used is seen later than stale", func() bool {
			s, err := store.Renew(ctx, used)
			return err == nil && s.LastSeen.Sub(s.Created) > 20*time.Millisecond
		})
		third := mustCreate(t, store, "ada", "third")
		fourth := mustCreate(t, store, "ada", "fourth")
		assertGone(t, store, stale, "beyond the limit")
		for _, token := range []string{used, third, fourth} {
			if _, err := store.Read(ctx, token); err != nil {
				t.Errorf("a session within the limit: %v", err)
			}
		}
		if n := store.Stats().Evicted; n != 1 {
			t.Errorf("%d evicted, want 1", n)
		}
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { mustCreateIn(t, store, "ada") })
		}
		wg.Wait()
		if sessions, err := store.List(ctx, "ada"); err != nil || len(sessions) != 3 {
			t.Errorf("%d sessions after ten logins at once, %v", len(sessions), err)
		}
		cfg.MaxPerUser = 1 // a lowered limit holds from the next login on
		last := mustCreate(t, newStore[login](t, c, cfg), "ada", "last")
		if sessions, err := store.List(ctx, "ada"); err != nil || len(sessions) != 1 {
			t.Errorf("%d sessions under the lowered limit, %v", len(sessions), err)
		}
		if _, err := store.Read(ctx, last); err != nil {
			t.Error(err)
		}
	})
}

// mustCreateIn may be called by any goroutine.
func mustCreateIn(t *testing.T, store *session.Store[login], user string) {
	t.Helper()
	if _, err := store.Create(t.Context(), user, login{}); err != nil {
		t.Error(err)
	}
}

func TestStore_input(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cfg := config
	cfg.MaxData = 20
	store := newStore[any](t, client, cfg)
	long := strings.Repeat("u", session.MaxUser+1)
	for _, user := range []string{"", long} {
		_, createErr := store.Create(ctx, user, nil)
		_, listErr := store.List(ctx, user)
		for i, err := range []error{createErr, listErr, store.RevokeAll(ctx, user), store.RevokeID(ctx, user, "x")} {
			if err == nil || strings.Contains(err.Error(), "uuu") {
				t.Errorf("user of %d bytes, call %d: %v", len(user), i, err)
			}
		}
	}
	token, err := store.Create(ctx, long[1:], strings.Repeat("d", 18))
	if err != nil {
		t.Errorf("the longest user with the most data: %v", err)
	}
	for _, tt := range []struct {
		data any
		want string
	}{
		{strings.Repeat("d", 19), "at most 20"},
		{map[string]any{"diagnosis": func() {}}, "no JSON form"},
	} {
		_, createErr := store.Create(ctx, "ada", tt.data)
		_, rotateErr := store.Rotate(ctx, token, tt.data)
		for _, err := range []error{createErr, rotateErr} {
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "ddd") || strings.Contains(err.Error(), "diagnosis") {
				t.Errorf("error %v, want %q without the data", err, tt.want)
			}
		}
	}
	if _, err := store.Read(ctx, token); err != nil {
		t.Errorf("a refused Rotate ended the session: %v", err)
	}
}

// A session with data of an older program: the user logs in again, and can
// still see and revoke it.
func TestStore_undecodable(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		ctx, store := t.Context(), newStore[login](t, c, config)
		token, err := newStore[any](t, c, config).Create(ctx, "ada", map[string]any{"role": 7})
		if err != nil {
			t.Fatal(err)
		}
		if s, err := store.Read(ctx, token); !errors.Is(err, session.ErrNotFound) || s != (session.Session[login]{}) {
			t.Errorf("read %+v, %v", s, err)
		}
		sessions, err := store.List(ctx, "ada")
		if err != nil || len(sessions) != 1 || sessions[0].User != "ada" || sessions[0].Data != (login{}) {
			t.Fatalf("listed %+v, %v", sessions, err)
		}
		if n := store.Stats().DecodeErrors; n != 2 {
			t.Errorf("%d counted, want 2", n)
		}
		if err := store.RevokeID(ctx, "ada", sessions[0].ID); err != nil {
			t.Fatal(err)
		}
		assertGone(t, store, token, "after RevokeID")
		// Not even a form of the store.
		key := userKey(t, token, c)
		if err := c.HSet(ctx, key, "x", "rubbish", "y", "1 2 3", "z", "").Err(); err != nil {
			t.Fatal(err)
		}
		if sessions, err := store.List(ctx, "ada"); err != nil || len(sessions) != 0 {
			t.Errorf("listed rubbish: %+v, %v", sessions, err)
		}
		if n := c.Exists(ctx, key).Val(); n != 0 {
			t.Error("the rubbish was not swept")
		}
	})
}

func TestStore_redisDown(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t, testenv.AOF())
	ctx, store := t.Context(), newStore[login](t, openFor(t, srv), config)
	token := mustCreate(t, store, "ada@example.org", "diagnosis")
	srv.Kill()
	_, createErr := store.Create(ctx, "ada@example.org", login{Role: "diagnosis"})
	_, readErr := store.Read(ctx, token)
	_, renewErr := store.Renew(ctx, token)
	_, rotateErr := store.Rotate(ctx, token, login{Role: "diagnosis"})
	_, listErr := store.List(ctx, "ada@example.org")
	for i, err := range []error{
		createErr, readErr, renewErr, rotateErr, listErr,
		store.Revoke(ctx, token), store.RevokeAll(ctx, "ada@example.org"), store.RevokeID(ctx, "ada@example.org", "id"),
	} {
		if err == nil || errors.Is(err, session.ErrNotFound) {
			t.Errorf("call %d: %v; a dead server is no missing session", i, err)
		} else if s := err.Error(); strings.Contains(s, "ada@") || strings.Contains(s, token) || strings.Contains(s, "diagnosis") {
			t.Errorf("call %d tells too much: %v", i, err)
		}
	}
	srv.Restart()
	eventually(t, "reading after the repair", func() bool { s, err := store.Read(ctx, token); return err == nil && s.Data.Role == "diagnosis" })
}
