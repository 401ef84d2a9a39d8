package session_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/medicalink/postroom/rediskit/session"
)

// runs makes the users of one run of the model strangers to those of another,
// which -count may put on the same server.
var runs atomic.Int64

// Any sequence of calls leaves the sessions that a plain map says. One server
// does: the topologies have no part in the logic.
func TestStore_model(t *testing.T) {
	t.Parallel()
	store := newStore[login](t, client, config)
	rapid.Check(t, func(rt *rapid.T) {
		ctx, run := t.Context(), runs.Add(1)
		type known struct{ user, role string }
		live := make(map[string]known) // by token
		var dead []string
		names := []string{fmt.Sprint("model-a", run), fmt.Sprint("model-b", run)}
		user := rapid.SampledFrom(names)
		pick := func(rt *rapid.T) string {
			if len(live) == 0 {
				rt.Skip("no session")
			}
			return rapid.SampledFrom(slices.Sorted(maps.Keys(live))).Draw(rt, "token")
		}
		end := func(token string) {
			delete(live, token)
			dead = append(dead, token)
		}
		check := func(err error) {
			if err != nil {
				rt.Fatal(err)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"create": func(rt *rapid.T) {
				if len(live) >= session.DefaultMaxPerUser {
					rt.Skip("the limit has a test of its own")
				}
				k := known{user.Draw(rt, "user"), rapid.String().Draw(rt, "role")}
				token, err := store.Create(ctx, k.user, login{Role: k.role})
				check(err)
				live[token] = k
			},
			"renew": func(rt *rapid.T) {
				token := pick(rt)
				s, err := store.Renew(ctx, token)
				check(err)
				if (known{s.User, s.Data.Role}) != live[token] {
					rt.Fatalf("renewed %+v, want %+v", s, live[token])
				}
			},
			"rotate": func(rt *rapid.T) {
				token := pick(rt)
				k := known{live[token].user, rapid.String().Draw(rt, "role")}
				fresh, err := store.Rotate(ctx, token, login{Role: k.role})
				check(err)
				end(token)
				live[fresh] = k
			},
			"revoke": func(rt *rapid.T) {
				token := pick(rt)
				check(store.Revoke(ctx, token))
				end(token)
			},
			"revoke by id": func(rt *rapid.T) {
				token := pick(rt)
				s, err := store.Read(ctx, token)
				check(err)
				check(store.RevokeID(ctx, s.User, s.ID))
				end(token)
			},
			"revoke all": func(rt *rapid.T) {
				name := user.Draw(rt, "user")
				check(store.RevokeAll(ctx, name))
				for token, k := range maps.Clone(live) {
					if k.user == name {
						end(token)
					}
				}
			},
			"": func(rt *rapid.T) {
				want, got := make(map[string]int), make(map[string]int)
				for token, k := range live {
					s, err := store.Read(ctx, token)
					check(err)
					want[k.user+s.ID+k.role]++
				}
				for _, name := range names {
					sessions, err := store.List(ctx, name)
					check(err)
					for _, s := range sessions {
						got[name+s.ID+s.Data.Role]++
					}
				}
				if !maps.Equal(got, want) {
					rt.Fatalf("listed %v, want %v", got, want)
				}
				if len(dead) > 0 {
					if _, err := store.Read(ctx, dead[len(dead)-1]); !errors.Is(err, session.ErrNotFound) {
						rt.Fatalf("a dead session: %v", err)
					}
				}
			},
		})
	})
}
