package main

import (
	"context"
	"fmt"
	"iter"
	"path/filepath"
	"testing"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/tasks"
	"github.com/medicalink/postroom/templates"
)

// One iteration sends 20,000 rows from CSV into a real Redis, with everything that enqueue bulk does.
func BenchmarkMailing_Run(b *testing.B) {
	const count = 20_000
	set, err := templates.Load("")
	if err != nil {
		b.Fatal(err)
	}
	client := testenv.Redis(b).Open(b)
	producer, err := tasks.NewProducer(client, tasks.FromService("enqueue"))
	if err != nil {
		b.Fatal(err)
	}
	const row = "patient%07d@example.com,José,Perlman,pt-BR,Riverside <Family> Health,2026-12-03T09:15:00Z,https://portal.example.com/confirm/892f902bd23f0824128b2f33\r\n"
	runs := 0
	for b.Loop() {
		runs++
		m := newTestMailing(b, newRows(count, "to,first_name,last_name,locale,clinic,appointment_at,confirm_url\r\n", row))
		m.item = emailItem(tasks.Email{Template: "appointment-reminder"})
		m.check = func(data map[string]any) error { return set.Check("appointment-reminder", data) }
		m.key = func(r record) string { return foldKey(fmt.Sprint(runs), fmt.Sprint(r.line)) }
		m.rejects.path = filepath.Join(b.TempDir(), "rejected")
		m.enqueue = func(ctx context.Context, items iter.Seq[tasks.Item]) iter.Seq2[int, tasks.Result] {
			return producer.EnqueueMany(ctx, items)
		}
		if err := m.run(b.Context()); err != nil || m.counts.enqueued != count {
			b.Fatalf("sent %+v: %v", m.counts, err)
		}
	}
	b.ReportMetric(float64(runs*count)/b.Elapsed().Seconds(), "rows/s")
}
