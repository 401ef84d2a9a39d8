package tasks

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMakePlan(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 12, 1, 12, 0, 0, 500, time.UTC)
	base := plan{queue: "email:default", enqueuedAt: now, processAt: now, maxRetry: 12, timeout: 2 * time.Minute, retention: 24 * time.Hour}
	with := func(change func(*plan)) plan {
		p := base
		change(&p)
		return p
	}
	berlin := time.FixedZone("CET", 3600)
	tests := []struct {
		name      string
		class     Class
		namespace string
		opts      []Option
		want      plan
	}{
		{name: "defaults", want: base},
		{name: "nil option", opts: []Option{nil}, want: base},
		{name: "otp", class: ClassOTP, want: with(func(p *plan) {
			p.queue, p.maxRetry, p.expiresAt = "email:critical", 17, now.Add(10*time.Minute)
		})},
		{name: "otp delayed", class: ClassOTP, opts: []Option{Delay(time.Hour)}, want: with(func(p *plan) {
			p.queue, p.maxRetry, p.processAt, p.expiresAt = "email:critical", 17, now.Add(time.Hour), now.Add(70*time.Minute)
		})},
		{name: "otp deadline", class: ClassOTP, opts: []Option{Deadline(now.Add(time.Minute))}, want: with(func(p *plan) {
			p.queue, p.maxRetry, p.expiresAt = "email:critical", 17, now.Add(time.Minute)
		})},
		{name: "clinical", class: ClassClinical, want: with(func(p *plan) { p.maxRetry = 19 })},
		{name: "bulk", class: ClassBulk, want: with(func(p *plan) { p.queue = "email:bulk" })},
		{name: "bulk priority", opts: []Option{Priority(Bulk)}, want: with(func(p *plan) { p.queue = "email:bulk" })},
		{name: "namespace", namespace: "staging", opts: []Option{Priority(Critical)}, want: with(func(p *plan) { p.queue = "staging:email:critical" })},
		{name: "queue wins", namespace: "staging", opts: []Option{Queue("email:lab-results"), Priority(Critical)}, want: with(func(p *plan) { p.queue = "staging:email:lab-results" })},
		{name: "longest queue", opts: []Option{Queue("email:" + strings.Repeat("a", 24))}, want: with(func(p *plan) { p.queue = "email:" + strings.Repeat("a", 24) })},
		{name: "delay", opts: []Option{Delay(5 * time.Second)}, want: with(func(p *plan) { p.processAt = now.Add(5 * time.Second) })},
		{name: "no delay", opts: []Option{Delay(0)}, want: base},
		{name: "at", opts: []Option{At(now.Add(time.Hour).In(berlin))}, want: with(func(p *plan) { p.processAt = now.Add(time.Hour) })},
		{name: "at in the past", opts: []Option{At(now.Add(-time.Hour))}, want: base},
		{name: "at after delay", opts: []Option{Delay(time.Minute), At(now.Add(time.Hour))}, want: with(func(p *plan) { p.processAt = now.Add(time.Hour) })},
		{name: "delay after at", opts: []Option{At(now.Add(time.Hour)), Delay(time.Minute)}, want: with(func(p *plan) { p.processAt = now.Add(time.Minute) })},
		{name: "retries", opts: []Option{MaxRetry(1)}, want: with(func(p *plan) { p.maxRetry = 1 })},
		{name: "later wins", opts: []Option{MaxRetry(1), MaxRetry(2)}, want: with(func(p *plan) { p.maxRetry = 2 })},
		{name: "rounded up", opts: []Option{Timeout(time.Millisecond), Retention(1001 * time.Millisecond)}, want: with(func(p *plan) { p.timeout, p.retention = time.Second, 2*time.Second })},
		{name: "no retention", opts: []Option{Retention(0)}, want: with(func(p *plan) { p.retention = 0 })},
		{name: "key", opts: []Option{IdempotencyKey("k")}, want: with(func(p *plan) { p.key = "k" })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, bad := makePlan(tt.opts, jobEmail, tt.class, tt.namespace, now)
			if bad != nil {
				t.Fatal(errors.Join(bad...))
			}
			if got != tt.want {
				t.Errorf("makePlan() = %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestMakePlan_Refuses(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	const forever = 1<<63 - 1
	tests := []struct {
		name string
		opts []Option
		want []string
	}{
		{"negative delay", []Option{Delay(-1)}, []string{"delay"}},
		{"endless delay", []Option{Delay(forever)}, []string{"delay"}},
		{"zero at", []Option{At(time.Time{})}, []string{"at"}},
		{"far at", []Option{At(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC))}, []string{"at"}},
		{"priority", []Option{Priority(canary)}, []string{"priority"}},
		{"empty priority", []Option{Priority("")}, []string{"priority"}},
		{"no retries", []Option{MaxRetry(0)}, []string{"max_retry"}},
		{"negative retries", []Option{MaxRetry(-1)}, []string{"max_retry"}},
		{"no timeout", []Option{Timeout(0)}, []string{"timeout"}},
		{"negative timeout", []Option{Timeout(-time.Second)}, []string{"timeout"}},
		{"endless timeout", []Option{Timeout(forever)}, []string{"timeout"}},
		{"negative retention", []Option{Retention(-1)}, []string{"retention"}},
		{"endless retention", []Option{Retention(forever)}, []string{"retention"}},
		{"zero deadline", []Option{Deadline(time.Time{})}, []string{"deadline"}},
		{"past deadline", []Option{Deadline(now.Add(-time.Second))}, []string{"deadline"}},
		{"deadline now", []Option{Deadline(now)}, []string{"deadline"}},
		{"deadline before start", []Option{Delay(time.Hour), Deadline(now.Add(time.Minute))}, []string{"deadline"}},
		{"far deadline", []Option{Deadline(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC))}, []string{"deadline"}},
		{"empty key", []Option{IdempotencyKey("")}, []string{"idempotency_key"}},
		{"long key", []Option{IdempotencyKey(strings.Repeat("k", 257))}, []string{"idempotency_key"}},
		{"queue nobody serves", []Option{Queue("lab-results")}, []string{"queue"}},
		{"all at once", []Option{Delay(-1), MaxRetry(0), Queue("")}, []string{"delay", "max_retry", "queue"}},
	}
	for _, name := range []string{"", "Email", "a b", "a/b", "a{b}", "}x", "1a", ":a", "-a", "a\n", "é", canary + " ", strings.Repeat("a", 64)} {
		tests = append(tests, struct {
			name string
			opts []Option
			want []string
		}{"queue " + name, []Option{Queue(name)}, []string{"queue"}})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, bad := makePlan(tt.opts, jobEmail, "", "staging", now)
			err := errors.Join(bad...)
			if got := slices.Compact(fields(err)); !slices.Equal(got, tt.want) {
				t.Errorf("makePlan() complains about %q, want %q: %v", got, tt.want, err)
			}
			if err != nil && strings.Contains(err.Error(), canary) {
				t.Errorf("error repeats a value: %v", err)
			}
		})
	}
}

func TestPlan_Window(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	const h = time.Hour
	tests := []struct {
		name string
		opts []Option
		want time.Duration
	}{
		{"default", nil, 24 * h},
		{"short retention", []Option{Retention(time.Minute)}, 24 * h},
		{"long retention", []Option{Retention(72 * h)}, 72 * h},
		{"delay", []Option{Delay(5 * h)}, 29 * h},
		{"deadline", []Option{Deadline(now.Add(2 * h))}, 26 * h},
		{"delay and deadline", []Option{Delay(5 * h), Deadline(now.Add(6 * h)), Retention(48 * h)}, 54 * h},
	}
	for _, tt := range tests {
		p, bad := makePlan(tt.opts, jobEmail, "", "", now)
		if bad != nil {
			t.Fatal(bad)
		}
		if got := p.window(); got != tt.want {
			t.Errorf("%s: window() = %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestEmailQueue(t *testing.T) {
	t.Parallel()
	if got := EmailQueue("staging", Critical); got != "staging:email:critical" {
		t.Errorf("EmailQueue(staging, Critical) = %q", got)
	}
	if got := EmailQueue("", Bulk); got != "email:bulk" {
		t.Errorf("EmailQueue(\"\", Bulk) = %q", got)
	}
}
