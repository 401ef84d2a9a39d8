package session_test

import (
	"slices"
	"testing"
	"time"
)

// BenchmarkStore runs each call and a bare HGET of go-redis in turn, so that
// both see the same machine, and reports the median of each and their ratio.
func BenchmarkStore(b *testing.B) {
	store := newStore[login](b, client, config)
	ctx := b.Context()
	token := mustCreate(b, store, "bench", "doctor")
	s, err := store.Read(ctx, token)
	if err != nil {
		b.Fatal(err)
	}
	key := userKey(b, token, client)
	for _, bm := range []struct {
		name string
		run  func() error
	}{
		{"Read", func() error { _, err := store.Read(ctx, token); return err }},
		{"Renew", func() error { _, err := store.Renew(ctx, token); return err }},
	} {
		b.Run(bm.name, func(b *testing.B) {
			var bare, ours []time.Duration
			for b.Loop() {
				start := time.Now()
				if err := client.HGet(ctx, key, s.ID).Err(); err != nil {
					b.Fatal(err)
				}
				between := time.Now()
				if err := bm.run(); err != nil {
					b.Fatal(err)
				}
				bare, ours = append(bare, between.Sub(start)), append(ours, time.Since(between))
			}
			slices.Sort(bare)
			slices.Sort(ours)
			b.ReportMetric(0, "ns/op") // of both together: means nothing
			b.ReportMetric(float64(bare[len(bare)/2]), "bare-ns")
			b.ReportMetric(float64(ours[len(ours)/2]), "ours-ns")
			b.ReportMetric(float64(ours[len(ours)/2])/float64(bare[len(bare)/2]), "ratio")
		})
	}
}
