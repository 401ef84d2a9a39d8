package mailer

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
)

func benchMessage() Message {
	text := "Dear Ada,\r\n\r\n" + strings.Repeat("your appointment at Riverside Family Health is on Monday.\r\n", 20)
	html := "<html><body>" + strings.Repeat("<p style=\"margin:0 0 16px\">Your appointment at Riverside Family Health is on Monday.</p>\n", 40) + "</body></html>"
	return Message{
		ID: "019ab1de-7c1c-7d7a-9f3c-3f6a4c9c1a10", Date: time.Unix(1_700_000_000, 0).UTC(),
		From: "MedicaLink <no-reply@medicalink.example>", To: "Ada Lovelace <ada@example.com>",
		Subject: "Your appointment on Monday", Text: text, HTML: html,
	}
}

func BenchmarkMailer_Build(b *testing.B) {
	m := newMailer(b, "smtp://localhost")
	msg := benchMessage()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.Build(msg); err != nil {
			b.Fatal(err)
		}
	}
}

// Both sides run in this process and share its CPUs.
func BenchmarkMailer_Send(b *testing.B) {
	for _, tls := range []bool{false, true} {
		b.Run(fmt.Sprintf("tls=%t", tls), func(b *testing.B) {
			faults := []testenv.Fault{testenv.Discard()}
			if tls {
				faults = append(faults, testenv.STARTTLS())
			}
			s := testenv.SMTP(b, faults...)
			m := newMailer(b, s.URL())
			env, err := m.Build(benchMessage())
			if err != nil {
				b.Fatal(err)
			}
			opt := Options{Commit: func(context.Context, string) error { return nil }}
			b.SetBytes(int64(len(env.Raw)))
			b.ReportAllocs()
			b.SetParallelism(8)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				for pb.Next() {
					if _, err := m.Send(ctx, env, opt); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "mails/s")
		})
	}
}
