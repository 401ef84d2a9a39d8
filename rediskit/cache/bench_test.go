package cache_test

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/medicalink/postroom/rediskit/cache"
)

// Each call of the cache beside the same call of go-redis: "bare" only moves the
// bytes, "json" also does what a service would have to write itself.

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

// compare runs the two calls in turn, so that both see the same machine, and
// reports the median of each and their ratio.
func compare(b *testing.B, bare, ours func() error) {
	b.Helper()
	var times [2][]time.Duration
	for i := 0; b.Loop(); i++ {
		for _, who := range [2]int{i % 2, 1 - i%2} {
			call := bare
			if who == 1 {
				call = ours
			}
			start := time.Now()
			if err := call(); err != nil {
				b.Fatal(err)
			}
			times[who] = append(times[who], time.Since(start))
		}
	}
	var medians [2]float64
	for who := range times {
		slices.Sort(times[who])
		medians[who] = float64(times[who][len(times[who])/2])
	}
	b.ReportMetric(0, "ns/op") // of both together: means nothing
	b.ReportMetric(medians[0], "bare-ns")
	b.ReportMetric(medians[1], "ours-ns")
	b.ReportMetric(medians[1]/medians[0], "ratio")
}

func BenchmarkCache(b *testing.B) {
	users, key, raw := benchCache(b)
	bypass, err := cache.Of[benchUser](client, "bench", cache.Config{TTL: time.Hour, OnError: cache.Bypass})
	if err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	bareGet := func() error { return client.Get(ctx, key).Err() }
	jsonGet := func() error {
		raw, err := client.Get(ctx, key).Bytes()
		if err != nil {
			return err
		}
		var u benchUser
		return json.Unmarshal(raw, &u)
	}
	bareSet := func() error { return client.Set(ctx, key, raw, time.Hour).Err() }
	jsonSet := func() error {
		raw, err := json.Marshal(ada)
		if err != nil {
			return err
		}
		return client.Set(ctx, key, raw, time.Hour).Err()
	}
	get := func() error { _, _, err := users.Get(ctx, "123"); return err }
	getBypass := func() error { _, _, err := bypass.Get(ctx, "123"); return err }
	load := func(context.Context) (benchUser, error) { return ada, nil }
	hit := func() error { _, err := users.GetOrLoad(ctx, "123", load); return err }
	set := func() error { return users.Set(ctx, "123", ada) }
	for _, bm := range []struct {
		name       string
		bare, ours func() error
	}{
		{"noise", bareGet, bareGet},
		{"Get/bare", bareGet, get},
		{"Get/json", jsonGet, get},
		{"Get_bypass/bare", bareGet, getBypass},
		{"Get_bypass/json", jsonGet, getBypass},
		{"GetOrLoad_hit/bare", bareGet, hit},
		{"GetOrLoad_hit/json", jsonGet, hit},
		{"Set/bare", bareSet, set},
		{"Set/json", jsonSet, set},
	} {
		b.Run(bm.name, func(b *testing.B) { compare(b, bm.bare, bm.ours) })
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
	bare := func() error {
		raws, err := client.MGet(ctx, full...).Result()
		if err != nil {
			return err
		}
		found := make(map[string]benchUser, len(raws))
		for i, raw := range raws {
			var u benchUser
			if err := json.Unmarshal([]byte(raw.(string)), &u); err != nil {
				return err
			}
			found[keys[i]] = u
		}
		return nil
	}
	b.Run("json", func(b *testing.B) {
		compare(b, bare, func() error { _, err := users.GetMany(ctx, keys...); return err })
	})
}
