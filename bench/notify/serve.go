package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/medicalink/postroom/realtime"
)

// serve is a service with package realtime and its defaults, and nothing else.
func serve(ctx context.Context, redisURL string, in io.Reader, out io.Writer) (err error) {
	rdb, err := open(ctx, redisURL, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rdb.Close()) }()
	handler, err := realtime.New(rdb, realtime.Config{Authenticate: func(r *http.Request) (realtime.Identity, error) {
		return realtime.Identity{User: r.URL.Query().Get("user")}, nil
	}})
	if err != nil {
		return err
	}
	if err := handler.Start(ctx); err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/realtime/", http.StripPrefix("/realtime", handler))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		err = errors.Join(err, server.Close())
		if failed := <-served; !errors.Is(failed, http.ErrServerClosed) {
			err = errors.Join(err, failed)
		}
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err = errors.Join(err, handler.Close(ending))
	}()
	return obey(in, out, answer{Address: listener.Addr().String()}, func(r request) (answer, error) {
		switch r.Do {
		case doMemory:
			runtime.GC() // twice, for what finalizers held
			debug.FreeOSMemory()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return answer{Heap: int(m.HeapAlloc), Stack: int(m.StackInuse)}, nil
		case doCount:
			s := handler.Stats()
			return answer{Clients: s.Clients, Cut: s.Cut, Replayed: s.Replayed, Resets: int(s.Resets), Gaps: s.Gaps}, nil
		}
		return answer{}, unknown(r)
	})
}
