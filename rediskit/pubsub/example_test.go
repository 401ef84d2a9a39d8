package pubsub_test

import (
	"context"
	"fmt"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/rediskit/pubsub"
)

type Appointment struct {
	ID     string `json:"id"`
	Status string `json:"status"`
}

// open connects to a server of the example's own; a service opens its client
// and makes its bus once, in main.
func open(ctx context.Context) (*pubsub.Bus, func()) {
	cfg, stop := testenv.ExampleRedis()
	client, err := rediskit.Open(ctx, cfg)
	if err != nil {
		stop()
		panic(err)
	}
	bus, err := pubsub.New(client, pubsub.Config{})
	if err != nil {
		panic(err)
	}
	return bus, func() { _ = client.Close(); stop() }
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func ExampleNew() {
	ctx := context.Background()
	cfg, stop := testenv.ExampleRedis()
	defer stop()
	client := must(rediskit.Open(ctx, cfg))
	defer func() { _ = client.Close() }()

	bus, err := pubsub.New(client, pubsub.Config{Buffer: 1000})
	fmt.Println(bus != nil, err)
	// Output: true <nil>
}

func ExampleOf() {
	bus, done := open(context.Background())
	defer done()

	updates, err := pubsub.Of[Appointment](bus, "appointment:updates") // channel api-gateway:appointment:updates
	if err != nil {
		panic(err)
	}
	fmt.Println(updates.Name())
	// Output: appointment:updates
}

func ExampleBus_Service() {
	ctx := context.Background()
	bus, done := open(ctx)
	defer done()

	deleted := must(pubsub.Of[string](bus.Service("accounts-service"), "user:deleted"))
	got := make(chan string)
	sub := must(deleted.Subscribe(ctx, func(_ context.Context, m pubsub.Message[string]) { got <- m.Value }, pubsub.IgnoreGaps))
	if err := deleted.Publish(ctx, "user 123"); err != nil { // the accounts service does this
		panic(err)
	}
	fmt.Println(<-got)
	fmt.Println(sub.Close())
	// Output:
	// user 123
	// <nil>
}

func ExampleTopic_Name() {
	bus, done := open(context.Background())
	defer done()
	fmt.Println(must(pubsub.Of[Appointment](bus, "appointment:updates")).Name())
	// Output: appointment:updates
}

func ExampleTopic_Publish() {
	ctx := context.Background()
	bus, done := open(ctx)
	defer done()
	updates := must(pubsub.Of[Appointment](bus, "appointment:updates"))

	err := updates.Publish(ctx, Appointment{ID: "a-17", Status: "confirmed"})
	fmt.Println(err) // it is no error that nobody listens
	// Output: <nil>
}

func ExampleTopic_Subscribe() {
	ctx := context.Background()
	bus, done := open(ctx)
	defer done()
	updates := must(pubsub.Of[Appointment](bus, "appointment:updates"))

	handled := make(chan struct{})
	sub, err := updates.Subscribe(ctx,
		func(_ context.Context, m pubsub.Message[Appointment]) {
			fmt.Println(m.Value.ID, m.Value.Status)
			close(handled)
		},
		func(_ context.Context, g pubsub.Gap) {
			fmt.Println("read the appointments again:", g)
		})
	if err != nil {
		panic(err)
	}
	if err := updates.Publish(ctx, Appointment{ID: "a-17", Status: "confirmed"}); err != nil {
		panic(err)
	}
	<-handled
	if err := sub.Close(); err != nil {
		panic(err)
	}
	// Output: a-17 confirmed
}

func ExampleMatching() {
	ctx := context.Background()
	bus, done := open(ctx)
	defer done()

	wards, err := pubsub.Matching[int](bus, "ward:*:free-beds")
	if err != nil {
		panic(err)
	}
	handled := make(chan struct{})
	sub := must(wards.Subscribe(ctx, func(_ context.Context, m pubsub.Message[int]) {
		fmt.Println(m.Topic, m.Value)
		close(handled)
	}, pubsub.IgnoreGaps))
	if err := must(pubsub.Of[int](bus, "ward:north:free-beds")).Publish(ctx, 3); err != nil {
		panic(err)
	}
	<-handled
	if err := sub.Close(); err != nil {
		panic(err)
	}
	// Output: ward:north:free-beds 3
}

func ExamplePattern_Subscribe() {
	ctx := context.Background()
	bus, done := open(ctx)
	defer done()
	all := must(pubsub.Matching[Appointment](bus, "appointment:*"))

	handled := make(chan string)
	sub := must(all.Subscribe(ctx, func(_ context.Context, m pubsub.Message[Appointment]) { handled <- m.Topic }, pubsub.IgnoreGaps))
	if err := must(pubsub.Of[Appointment](bus, "appointment:created")).Publish(ctx, Appointment{ID: "a-18"}); err != nil {
		panic(err)
	}
	fmt.Println(<-handled)
	if err := sub.Close(); err != nil {
		panic(err)
	}
	// Output: appointment:created
}

func ExampleGap_String() {
	lost := time.Date(2024, 1, 15, 10, 30, 0, 0, time.UTC)
	fmt.Println(pubsub.Gap{Disconnects: 1, Dropped: 12, From: lost, To: lost.Add(1500 * time.Millisecond)})
	// Output: connection lost 1 times, 12 messages dropped by a full buffer within 1.5s
}

func ExampleIgnoreGaps() {
	ctx := context.Background()
	bus, done := open(ctx)
	defer done()
	load := must(pubsub.Of[float64](bus, "load"))

	// A gauge: the next value makes up for a lost one.
	got := make(chan float64)
	sub := must(load.Subscribe(ctx, func(_ context.Context, m pubsub.Message[float64]) { got <- m.Value }, pubsub.IgnoreGaps))
	if err := load.Publish(ctx, 0.7); err != nil {
		panic(err)
	}
	fmt.Println(<-got)
	if err := sub.Close(); err != nil {
		panic(err)
	}
	// Output: 0.7
}

func ExampleSubscription_Close() {
	ctx := context.Background()
	bus, done := open(ctx)
	defer done()
	updates := must(pubsub.Of[Appointment](bus, "appointment:updates"))
	sub := must(updates.Subscribe(ctx, func(context.Context, pubsub.Message[Appointment]) {}, pubsub.IgnoreGaps))

	fmt.Println(sub.Close()) // from here on no handler runs
	// Output: <nil>
}

func ExampleSubscription_Done() {
	ctx, cancel := context.WithCancel(context.Background())
	bus, done := open(ctx)
	defer done()
	updates := must(pubsub.Of[Appointment](bus, "appointment:updates"))
	sub := must(updates.Subscribe(ctx, func(context.Context, pubsub.Message[Appointment]) {}, pubsub.IgnoreGaps))

	cancel()
	<-sub.Done()
	fmt.Println("ended")
	// Output: ended
}

func ExampleSubscription_Stats() {
	ctx := context.Background()
	bus, done := open(ctx)
	defer done()
	updates := must(pubsub.Of[Appointment](bus, "appointment:updates"))
	handled := make(chan struct{})
	sub := must(updates.Subscribe(ctx, func(context.Context, pubsub.Message[Appointment]) { close(handled) }, pubsub.IgnoreGaps))
	if err := updates.Publish(ctx, Appointment{ID: "a-17"}); err != nil {
		panic(err)
	}
	<-handled

	stats := sub.Stats()
	fmt.Println(stats.Received, stats.Dropped, stats.Connected)
	if err := sub.Close(); err != nil {
		panic(err)
	}
	// Output: 1 0 true
}
