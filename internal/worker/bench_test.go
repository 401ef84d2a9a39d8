package worker

import (
	"fmt"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/tasks"
)

// BenchmarkWorker takes jobs from a full queue to a relay that throws the mail
// away. Redis is another process; the relay is in this one.
func BenchmarkWorker(b *testing.B) {
	cfg := quick()
	cfg.Concurrency = 32
	bed := setup(b, cfg, testenv.Redis(b), testenv.SMTP(b, testenv.Discard()))
	items := func(yield func(tasks.Item) bool) {
		for i := range b.N {
			if !yield(tasks.Item{Email: welcome(fmt.Sprintf("p%d@example.com", i))}) {
				return
			}
		}
	}
	for _, r := range bed.producer.EnqueueMany(b.Context(), items) {
		if r.Err != nil {
			b.Fatal(r.Err)
		}
	}
	b.ResetTimer()
	bed.start(b)
	for bed.smtp.Count() < b.N {
		time.Sleep(time.Millisecond)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "mails/s")
}
