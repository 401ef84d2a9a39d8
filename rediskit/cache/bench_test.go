package cache_test

import (
	"context"
	"encoding/json"
	"strconv"
	"testing"
	"time"

	"github.com/medicalink/postroom/rediskit/cache"
)

// Each call of the cache beside the same call of go-redis, bare and with the
// JSON that a service would have to write itself. A loaded machine shifts from
// one second to the next: compare within a run, and over several (-count).

type benchUser struct {
	ID    int      `json:"id"`
	Name  string   `json:"name"`
	Email string   `json:"email"`
	Roles []string `json:"roles"`
}

var ada = benchUser{ID: 123, Name: "Ada Lovelace", Email: "ada@example.org", Roles: []string{"doctor", "admin"}}

func benchCache(b *testing.B) (*cache.Cache[benchUser], string, []byte) {
	b.Helper()
	users, err := cache.Of[benchUser](client, "bench", cache.Config{TTL: time.Hour, OnError: cache.Fail})
	if err != nil {
		b.Fatal(err)
	}
	raw, err := json.Marshal(ada)
	if err != nil {
		b.Fatal(err)
	}
	if err := users.Set(b.Context(), "123", ada); err != nil {
		b.Fatal(err)
	}
	return users, client.Key("bench", "123"), raw
}

func BenchmarkGet(b *testing.B) {
	users, key, _ := benchCache(b)
	bypass, err := cache.Of[benchUser](client, "bench", cache.Config{TTL: time.Hour, OnError: cache.Bypass})
	if err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	load := func(context.Context) (benchUser, error) { return ada, nil }
	for _, bm := range []struct {
		name string
		run  func() error
	}{
		{"go-redis", func() error { return client.Get(ctx, key).Err() }},
		{"go-redis+json", func() error {
			raw, err := client.Get(ctx, key).Bytes()
			if err != nil {
				return err
			}
			var u benchUser
			return json.Unmarshal(raw, &u)
		}},
		{"Get", func() error { _, _, err := users.Get(ctx, "123"); return err }},
		{"Get_bypass", func() error { _, _, err := bypass.Get(ctx, "123"); return err }},
		{"GetOrLoad_hit", func() error { _, err := users.GetOrLoad(ctx, "123", load); return err }},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := bm.run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSet(b *testing.B) {
	users, key, raw := benchCache(b)
	ctx := b.Context()
	for _, bm := range []struct {
		name string
		run  func() error
	}{
		{"go-redis", func() error { return client.Set(ctx, key, raw, time.Hour).Err() }},
		{"go-redis+json", func() error {
			raw, err := json.Marshal(ada)
			if err != nil {
				return err
			}
			return client.Set(ctx, key, raw, time.Hour).Err()
		}},
		{"Set", func() error { return users.Set(ctx, "123", ada) }},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := bm.run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkGetMany(b *testing.B) {
	users, _, _ := benchCache(b)
	ctx := b.Context()
	values := make(map[string]benchUser)
	var keys, full []string
	for i := range 100 {
		key := strconv.Itoa(i)
		values[key] = ada
		keys, full = append(keys, key), append(full, client.Key("bench", key))
	}
	if err := users.SetMany(ctx, values); err != nil {
		b.Fatal(err)
	}
	b.Run("go-redis+json", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			raws, err := client.MGet(ctx, full...).Result()
			if err != nil {
				b.Fatal(err)
			}
			found := make(map[string]benchUser, len(raws))
			for i, raw := range raws {
				var u benchUser
				if err := json.Unmarshal([]byte(raw.(string)), &u); err != nil {
					b.Fatal(err)
				}
				found[keys[i]] = u
			}
		}
	})
	b.Run("GetMany", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if found, err := users.GetMany(ctx, keys...); err != nil || len(found) != len(keys) {
				b.Fatalf("%d found, %v", len(found), err)
			}
		}
	})
}
