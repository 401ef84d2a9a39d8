package tasks

import (
	"fmt"
	"iter"
	"sync"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
)

// typical returns a message of about 300 bytes of JSON.
func typical(i int) Email {
	return Email{
		To: fmt.Sprintf("patient%07d@example.com", i), Template: "appointment-reminder", Locale: "pt-BR",
		Data: map[string]any{
			"name": "Ada Lovelace", "clinic": "Riverside Family Health", "appointment_at": "2026-12-03T09:15:00Z",
			"confirm_url": "https://portal.example.com/confirm/892f902bd23f0824128b2f33",
		},
	}
}

func BenchmarkProducer_Compose(b *testing.B) {
	p, err := NewProducer(testenv.Redis(b).Open(b), FromService("bench"))
	if err != nil {
		b.Fatal(err)
	}
	email := typical(1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.compose(b.Context(), email, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkProducer_ComposeNotification(b *testing.B) {
	p, err := NewProducer(testenv.Redis(b).Open(b), FromService("bench"))
	if err != nil {
		b.Fatal(err)
	}
	n := Notification{
		Kind: "appointment.reminder", User: "patient-4711", Template: "appointment-reminder", Data: typical(1).Data,
		Plan:  []Step{{Channel: ChannelInApp}, {Channel: ChannelEmail, After: Duration(10 * time.Minute), OnlyIf: OnlyIfUnread}},
		Email: "ada@example.com", Action: "/appointments/17",
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.composeNotification(b.Context(), n, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// One iteration is one call; the goroutines share a producer.
func BenchmarkProducer_SendEmail(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("goroutines=%d", callers), func(b *testing.B) {
			p, err := NewProducer(testenv.Redis(b).Open(b), FromService("bench"))
			if err != nil {
				b.Fatal(err)
			}
			email := typical(1)
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for c := range callers {
				n := (b.N + c) / callers
				wg.Go(func() {
					for range n {
						if _, err := p.SendEmail(b.Context(), email); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
		})
	}
}

// One iteration is one job.
func BenchmarkProducer_EnqueueMany(b *testing.B) {
	for _, keyed := range []bool{false, true} {
		b.Run(fmt.Sprintf("keyed=%v", keyed), func(b *testing.B) {
			p, err := NewProducer(testenv.Redis(b).Open(b), FromService("bench"))
			if err != nil {
				b.Fatal(err)
			}
			email := typical(1)
			items := func(n int) iter.Seq[Item] {
				return func(yield func(Item) bool) {
					for i := range n {
						item := Item{Email: email}
						if keyed {
							item.Options = []Option{IdempotencyKey(fmt.Sprint("key", i))}
						}
						if !yield(item) {
							return
						}
					}
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			for _, r := range p.EnqueueMany(b.Context(), items(b.N)) {
				if r.Err != nil {
					b.Fatal(r.Err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
		})
	}
}
