package pubsub_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit/pubsub"
)

// BenchmarkTopic_publishToReceive alternates a message from Publish to the
// handler with one from go-redis' Publish to its Channel, payloads of the same
// size, so that a busy machine slows both: ns/op is for the two together, the
// metrics are for each, from the start of Publish to the receiver's return of
// the message.
func BenchmarkTopic_publishToReceive(b *testing.B) {
	ctx := b.Context()
	client := testenv.Redis(b).Open(b)
	bus, err := pubsub.New(client, pubsub.Config{})
	if err != nil {
		b.Fatal(err)
	}
	type update struct{ Text string }
	value := update{Text: strings.Repeat("x", 100)}
	payload := `{"Text":"` + value.Text + `"}`

	topic, err := pubsub.Of[update](bus, "ours")
	if err != nil {
		b.Fatal(err)
	}
	got := make(chan struct{}, 1)
	sub, err := topic.Subscribe(ctx, func(context.Context, pubsub.Message[update]) { got <- struct{}{} },
		func(_ context.Context, g pubsub.Gap) { b.Error(g) })
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = sub.Close() }()

	publisher := client.Dedicated("bare")
	bare := client.Subscribe(ctx, "bare")
	defer func() { _ = bare.Close() }()
	if _, err := bare.Receive(ctx); err != nil {
		b.Fatal(err)
	}
	messages := bare.Channel(redis.WithChannelHealthCheckInterval(0))

	var ours, theirs []time.Duration
	one := func() {
		start := time.Now()
		if err := topic.Publish(ctx, value); err != nil {
			b.Fatal(err)
		}
		<-got
		ours = append(ours, time.Since(start))
	}
	other := func() {
		start := time.Now()
		if err := publisher.Publish(ctx, "bare", payload).Err(); err != nil {
			b.Fatal(err)
		}
		<-messages
		theirs = append(theirs, time.Since(start))
	}
	for b.Loop() {
		one()
		other()
		one, other = other, one
	}
	for _, figure := range []struct {
		name string
		at   float64
	}{{"p50", 0.5}, {"p99", 0.99}} {
		a, z := quantile(ours, figure.at), quantile(theirs, figure.at)
		b.ReportMetric(float64(a.Nanoseconds()), "ours-"+figure.name+"-ns")
		b.ReportMetric(float64(z.Nanoseconds()), "bare-"+figure.name+"-ns")
		b.ReportMetric(float64(a)/float64(z), "x-bare-"+figure.name)
	}
}

func quantile(durations []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(durations))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
