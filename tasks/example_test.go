package tasks_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/tasks"
)

// connect stands for rediskit.Open. The examples have an empty database, which
// the tests do not use.
func connect() *redis.Client {
	rdb := redis.NewClient(&redis.Options{Addr: os.Getenv("EXAMPLE_REDIS_ADDR"), DB: 1, ContextTimeoutEnabled: true})
	if err := rdb.FlushDB(context.Background()).Err(); err != nil {
		panic(err)
	}
	return rdb
}

func ExampleProducer_SendEmail() {
	ctx := context.Background()
	rdb := connect()
	defer rdb.Close()

	producer, err := tasks.NewProducer(rdb, tasks.FromService("accounts-service"))
	if err != nil {
		fmt.Println(err)
		return
	}
	receipt, err := producer.SendEmail(ctx, tasks.Email{
		To:       "Ada Lovelace <ada@example.com>",
		Template: "welcome",
		Data:     map[string]any{"name": "Ada"},
	}, tasks.Delay(5*time.Second), tasks.Priority(tasks.Critical))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(receipt.Queue, receipt.State, receipt.ProcessAt.Sub(receipt.EnqueuedAt))
	// Output: email:critical scheduled 5s
}

// The patient sees the result in the app, and gets an email if it was not read there.
func ExampleProducer_SendNotification() {
	ctx := context.Background()
	rdb := connect()
	defer rdb.Close()

	producer, err := tasks.NewProducer(rdb, tasks.FromService("lab-service"))
	if err != nil {
		fmt.Println(err)
		return
	}
	receipt, err := producer.SendNotification(ctx, tasks.Notification{
		Kind:   "lab.result.ready",
		User:   "patient-4711",
		Title:  "Your results are ready",
		Action: "/results/17",
		Plan: []tasks.Step{
			{Channel: tasks.ChannelInApp},
			{Channel: tasks.ChannelPush},
			{Channel: tasks.ChannelEmail, After: tasks.Duration(10 * time.Minute), OnlyIf: tasks.OnlyIfUnread},
		},
		Email: "ada@example.com",
		Class: tasks.ClassClinical,
	}, tasks.IdempotencyKey("result-17-ready"))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(receipt.Queue, receipt.State)
	// Output: notification:default pending
}

// An id that follows from what the job is for makes it once, without a record of its
// own: here the reminder of one appointment.
func ExampleJobID() {
	ctx := context.Background()
	rdb := connect()
	defer rdb.Close()

	producer, err := tasks.NewProducer(rdb, tasks.FromService("appointments"))
	if err != nil {
		fmt.Println(err)
		return
	}
	id := uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://portal.example.com/appointments/17")).String()
	reminder := tasks.Notification{Kind: "appointment.reminder", User: "patient-4711", Title: "Your appointment is tomorrow"}
	for range 2 {
		receipt, err := producer.SendNotification(ctx, reminder, tasks.JobID(id))
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(receipt.ID == id, receipt.Duplicate)
	}
	// Output:
	// true false
	// true true
}

// A key names the event. The call can then be repeated without harm, for
// instance by a message consumer that starts again.
func ExampleIdempotencyKey() {
	ctx := context.Background()
	rdb := connect()
	defer rdb.Close()

	producer, err := tasks.NewProducer(rdb, tasks.FromService("billing-service"))
	if err != nil {
		fmt.Println(err)
		return
	}
	email := tasks.Email{To: "ada@example.com", Subject: "Invoice 4711 is paid", Body: "Thank you."}
	first, err := producer.SendEmail(ctx, email, tasks.IdempotencyKey("invoice-4711-paid"))
	if err != nil {
		fmt.Println(err)
		return
	}
	second, err := producer.SendEmail(ctx, email, tasks.IdempotencyKey("invoice-4711-paid"))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(first.Duplicate, second.Duplicate, first.ID == second.ID)
	// Output: false true true
}

func ExampleProducer_EnqueueMany() {
	ctx := context.Background()
	rdb := connect()
	defer rdb.Close()

	producer, err := tasks.NewProducer(rdb, tasks.FromService("newsletter"))
	if err != nil {
		fmt.Println(err)
		return
	}
	items := func(yield func(tasks.Item) bool) {
		for _, to := range []string{"ada@example.com", "nobody", "grace@example.com"} {
			email := tasks.Email{To: to, Subject: "Opening hours", Body: "We are open on Friday."}
			if !yield(tasks.Item{Email: email}) {
				return
			}
		}
	}
	for i, result := range producer.EnqueueMany(ctx, items, tasks.Priority(tasks.Bulk)) {
		if result.Err != nil {
			fmt.Println(i, result.Err)
			continue
		}
		fmt.Println(i, result.Receipt.Queue)
	}
	// Output:
	// 0 email:bulk
	// 1 validate email: to: must be one address such as ada@example.com or Ada Lovelace <ada@example.com>
	// 2 email:bulk
}

func ExampleEmail_Validate() {
	err := tasks.Email{To: "ada@example.com", Subject: "Hello\r\nBcc: spy@example.net", Body: "Hi"}.Validate()
	if problem, ok := errors.AsType[*tasks.ValidationError](err); ok {
		fmt.Println(problem.Field, "-", problem.Problem)
	}
	// Output: subject - must not contain control characters or line breaks
}

func ExampleClass_Policy() {
	for _, class := range []tasks.Class{tasks.ClassOTP, tasks.ClassClinical, tasks.ClassTransactional, tasks.ClassBulk} {
		p := class.Policy()
		fmt.Println(class, p.Priority, slices.Max(p.Schedule), p.GiveUp)
	}
	// Output:
	// otp critical 1m0s 10m0s
	// clinical default 8h0m0s 72h0m0s
	// transactional default 1h0m0s 72h0m0s
	// bulk bulk 24h0m0s 120h0m0s
}
