package templates

import (
	"fmt"
	"sync/atomic"
	"testing"
)

func benchmarkSet(b *testing.B) *Set {
	b.Helper()
	set, err := Load("")
	if err != nil {
		b.Fatal(err)
	}
	return set
}

// reminder is a row of recipients.csv, as a job carries it.
func reminder(i int) map[string]any {
	return map[string]any{
		"to":             "patient@example.com",
		"first_name":     "José",
		"last_name":      fmt.Sprintf("Perlman %d", i),
		"clinic":         "Riverside <Family> Health",
		"appointment_at": "2026-12-03T09:15:00Z",
		"confirm_url":    "https://portal.example.com/confirm/892f902bd23f0824128b2f33",
	}
}

func BenchmarkSet_Render(b *testing.B) {
	set := benchmarkSet(b)
	for _, info := range emails(b) {
		data := info.Sample
		b.Run(info.Name, func(b *testing.B) {
			b.ReportAllocs()
			size := 0
			for b.Loop() {
				m, err := set.Render(info.Name, "de", data)
				if err != nil {
					b.Fatal(err)
				}
				size = len(m.Subject) + len(m.Text) + len(m.HTML)
			}
			b.ReportMetric(float64(size), "bytes/mail")
		})
	}
	b.Run("row of recipients.csv, pt-BR", func(b *testing.B) {
		b.ReportAllocs()
		data := reminder(1)
		for b.Loop() {
			if _, err := set.Render("appointment-reminder", "pt-BR", data); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		var n atomic.Int64
		b.RunParallel(func(pb *testing.PB) {
			data := reminder(int(n.Add(1)))
			for pb.Next() {
				if _, err := set.Render("appointment-reminder", "en", data); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

func BenchmarkSet_RenderNotification(b *testing.B) {
	set := benchmarkSet(b)
	for _, info := range notifications(b) {
		b.Run(info.Name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := set.RenderNotification(info.Name, "de", info.Sample); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSet_Check(b *testing.B) {
	set := benchmarkSet(b)
	data := reminder(1)
	b.ReportAllocs()
	for b.Loop() {
		if err := set.Check("appointment-reminder", data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLocale(b *testing.B) {
	set := benchmarkSet(b)
	m := set.templates["welcome"].match
	for _, want := range []string{"de", "pt-BR", "de-AT", "ja"} {
		b.Run(want, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m.match(want)
			}
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		if _, err := Load(""); err != nil {
			b.Fatal(err)
		}
	}
}
