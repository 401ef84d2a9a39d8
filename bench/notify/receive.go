package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/medicalink/postroom/internal/notifier/webhook"
	"github.com/medicalink/postroom/rediskit"
)

// mostPayload is more than any of the benchmark's webhooks has.
const mostPayload = 64 << 10

// receiver takes webhooks and counts them.
type receiver struct {
	key rediskit.Secret

	mu          sync.Mutex // guards what follows
	count       int
	forged      int
	ids         map[string]bool
	first, last time.Time
}

func receive(ctx context.Context, key string, in io.Reader, out io.Writer) (err error) {
	r := &receiver{key: rediskit.Secret(key), ids: map[string]bool{}}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: r, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		err = errors.Join(err, server.Close())
		if failed := <-served; !errors.Is(failed, http.ErrServerClosed) {
			err = errors.Join(err, failed)
		}
	}()
	return obey(in, out, answer{Address: listener.Addr().String()}, func(q request) (answer, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		switch q.Do {
		case doReset:
			r.count, r.forged, r.ids, r.first, r.last = 0, 0, map[string]bool{}, time.Time{}, time.Time{}
			return answer{}, nil
		case doCount:
			return answer{Count: r.count, Distinct: len(r.ids), Forged: r.forged, First: r.first.UnixMicro(), Last: r.last.UnixMicro()}, nil
		}
		return answer{}, unknown(q)
	})
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	now := time.Now()
	payload, err := io.ReadAll(http.MaxBytesReader(w, req.Body, mostPayload))
	if err != nil {
		http.Error(w, "the body cannot be read", http.StatusBadRequest)
		return
	}
	err = webhook.Verify(payload, req.Header, now, r.key)
	r.mu.Lock()
	r.count++
	if err != nil {
		r.forged++
	}
	r.ids[req.Header.Get(webhook.HeaderID)] = true
	if r.first.IsZero() {
		r.first = now
	}
	r.last = now
	r.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}
