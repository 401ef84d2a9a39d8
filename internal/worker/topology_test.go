package worker

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
	"github.com/medicalink/postroom/templates"
)

// The whole path on every kind of Redis: urgent, delayed and bulk mail, each once.
func TestWorker_OnEachRedis(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, rdb *rediskit.Client) {
		t.Helper()
		smtp := testenv.SMTP(t)
		namespace := fmt.Sprintf("t%d", time.Now().UnixNano()) // the servers are shared with other tests
		producer, err := tasks.NewProducer(rdb, tasks.FromService("worker-test"), tasks.Namespace(namespace))
		if err != nil {
			t.Fatal(err)
		}
		set, err := templates.Load("")
		if err != nil {
			t.Fatal(err)
		}
		mail, err := newMailer(smtp.URL())
		if err != nil {
			t.Fatal(err)
		}
		cfg := quick(tasks.EmailQueue(namespace, tasks.Critical), tasks.EmailQueue(namespace, tasks.Default), tasks.EmailQueue(namespace, tasks.Bulk))
		logs := &syncBuilder{}
		w, err := New(cfg, rdb, set, mail, zerolog.New(logs))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if err := errors.Join(w.Stop(ctx), mail.Close(ctx)); err != nil {
				t.Errorf("stop: %v", err)
			}
			if t.Failed() {
				t.Logf("worker log:\n%s", tail(logs.String(), 40))
			}
		}()
		const each = 20
		for i := range each {
			for _, p := range []tasks.PriorityLevel{tasks.Critical, tasks.Default, tasks.Bulk} {
				opts := []tasks.Option{tasks.Priority(p), tasks.IdempotencyKey(fmt.Sprint(p, i))}
				if p == tasks.Default {
					opts = append(opts, tasks.Delay(time.Second))
				}
				for range 2 { // the second call is a duplicate
					if _, err := producer.SendEmail(t.Context(), welcome(fmt.Sprintf("%s%d@example.com", p, i)), opts...); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		eventually(t, "all are delivered", func() bool { return len(copies(smtp)) == 3*each })
		for to, n := range copies(smtp) {
			if n != 1 {
				t.Errorf("%s got %d copies", to, n)
			}
		}
	})
}
