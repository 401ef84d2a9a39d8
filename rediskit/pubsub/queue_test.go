package pubsub

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Whatever the order of arriving and handling, the handler can account for
// every message: each comes in order, and the gaps in between say exactly how
// many are missing.
func TestQueue_accountsForEveryMessage(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 5).Draw(t, "messages")
		limitBytes := rapid.IntRange(1, 40).Draw(t, "bytes")
		q := newQueue(limit, limitBytes)
		ctx := context.Background()
		pushed, disconnects := 0, 0
		next, lost, seenDisconnects := 0, 0, 0
		pop := func(t *rapid.T) {
			it, ok := q.pop(ctx)
			if !ok {
				t.Fatal("the queue ended before it was closed")
			}
			if it.gap != nil {
				lost += it.gap.Dropped
				seenDisconnects += it.gap.Disconnects
				if it.gap.To.Before(it.gap.From) {
					t.Fatalf("a gap that ends before it begins: %+v", it.gap)
				}
				return
			}
			number, err := strconv.Atoi(strings.TrimSpace(it.payload))
			if err != nil {
				t.Fatal(err)
			}
			if number != next+lost {
				t.Fatalf("got message %d after %d with %d reported lost in between", number, next-1, lost)
			}
			next, lost = number+1, 0
		}
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				size := rapid.IntRange(4, 20).Draw(t, "size")
				q.push("channel", strings.Repeat(" ", size-len(strconv.Itoa(pushed)))+strconv.Itoa(pushed))
				pushed++
			},
			"disconnect": func(*rapid.T) {
				now := time.Now()
				q.gap(Gap{Disconnects: 1, From: now.Add(-time.Second), To: now})
				disconnects++
			},
			"pop": func(t *rapid.T) {
				if len(q.items) == 0 {
					t.Skip("nothing waits")
				}
				pop(t)
			},
			"": func(t *rapid.T) {
				if q.messages > limit || q.messages > 1 && q.bytes > limitBytes {
					t.Fatalf("%d messages of %d bytes wait, limits are %d and %d", q.messages, q.bytes, limit, limitBytes)
				}
				if gaps := len(q.items) - q.messages; gaps > q.messages+1 {
					t.Fatalf("%d gaps wait among %d messages", gaps, q.messages)
				}
			},
		})
		for len(q.items) > 0 {
			pop(t)
		}
		if next+lost != pushed || seenDisconnects != disconnects {
			t.Fatalf("accounted for %d messages of %d, %d disconnects of %d", next+lost, pushed, seenDisconnects, disconnects)
		}
		if q.messages != 0 || q.bytes != 0 {
			t.Fatalf("an empty queue counts %d messages of %d bytes", q.messages, q.bytes)
		}
		q.close()
		if _, ok := q.pop(ctx); ok {
			t.Fatal("popped from a closed, empty queue")
		}
	})
}

func TestQueue_pop_endsWithContext(t *testing.T) {
	t.Parallel()
	q := newQueue(1, 1)
	q.push("channel", "waits")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, ok := q.pop(ctx); ok {
		t.Error("popped after the context's end")
	}
}

func TestDecode_errorQuotesNothing(t *testing.T) {
	t.Parallel()
	type record struct {
		Patient string    `json:"patient"`
		Age     int       `json:"age"`
		Seen    time.Time `json:"seen"`
	}
	for _, payload := range []string{
		`{"patient":"Ada Lovelace`, `Ada Lovelace`, `{"patient":"x","age":"Ada Lovelace"}`, `{"age":36e400}`,
		`{"seen":"Ada Lovelace"}`, `["Ada Lovelace"]`, "",
	} {
		_, err := decode[record](payload)
		if err == nil {
			t.Errorf("decoded %q", payload)
			continue
		}
		if strings.Contains(err.Error(), "Ada") || strings.Contains(err.Error(), "36e") {
			t.Errorf("the error for %q quotes it: %v", payload, err)
		}
	}
}
