package realtime_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/inbox"
	"github.com/medicalink/postroom/realtime"
)

// memory returns the heap and the stacks in use.
func memory() uint64 {
	runtime.GC()
	runtime.GC() // what finalizers held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// idle is a response writer that keeps nothing.
type idle struct{ header http.Header }

func (w idle) Header() http.Header              { return w.header }
func (idle) Write(b []byte) (int, error)        { return len(b), nil }
func (idle) WriteHeader(int)                    {}
func (idle) Flush()                             {}
func (idle) SetReadDeadline(time.Time) error    { return nil }
func (idle) SetWriteDeadline(_ time.Time) error { return nil }

const idleClients = 2000

// BenchmarkHandler_idleMemory measures what an idle client of /events takes: in the
// handler alone (its goroutine included), and over real connections with what net/http
// and a bare client's side take.
func BenchmarkHandler_idleMemory(b *testing.B) {
	s, _ := plain(b, realtime.Config{MaxConnections: 2 * idleClients}, inbox.Config{})
	settled := func(n int) {
		eventually(b, "all clients are served", func() bool { return s.handler.Stats().Clients == n })
		// One delivery to the last of them shows nothing of the others, but they were before.
		time.Sleep(time.Second)
	}
	for b.Loop() {
		before := memory()
		stop := make([]func(), 0, idleClients)
		for i := range idleClients {
			r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, fmt.Sprintf("/events?user=u%d", i), nil)
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				s.handler.ServeHTTP(idle{http.Header{}}, r.WithContext(ctx))
			}()
			stop = append(stop, func() { cancel(); <-done })
		}
		settled(idleClients)
		b.ReportMetric(float64(memory()-before)/idleClients, "B/client")
		for _, f := range stop {
			f()
		}
		settled(0)

		before = memory()
		host := strings.TrimSuffix(strings.TrimPrefix(s.url, "http://"), "/realtime")
		conns := make([]net.Conn, 0, idleClients)
		for i := range idleClients {
			conn, err := (&net.Dialer{}).DialContext(b.Context(), "tcp", host)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.WriteString(conn, fmt.Sprintf("GET /realtime/events?user=u%d HTTP/1.1\r\nHost: %s\r\n\r\n", i, host)); err != nil {
				b.Fatal(err)
			}
			conns = append(conns, conn)
		}
		settled(idleClients)
		b.ReportMetric(float64(memory()-before)/idleClients, "B/connection")
		for _, conn := range conns {
			_ = conn.Close()
		}
		settled(0)
	}
}

// BenchmarkStore_Deliver is one delivery, with nobody and with one client who listens.
func BenchmarkStore_Deliver(b *testing.B) {
	s, server := plain(b, realtime.Config{Buffer: 1 << 16}, inbox.Config{})
	body := strings.Repeat("x", 200)
	entry := func() inbox.Entry {
		return inbox.Entry{ID: newID(b), Kind: "lab.result.ready", Title: "A result", Body: body}
	}
	b.Run("one", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Deliver(b.Context(), "ada", entry()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.SetParallelism(16)
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				if _, err := s.Deliver(b.Context(), fmt.Sprint("u", i%1000), entry()); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
	b.Run("memory", func(b *testing.B) {
		client := named(b, server.Config())
		for b.Loop() {
			if err := client.FlushDB(b.Context()).Err(); err != nil {
				b.Fatal(err)
			}
			for range 100 {
				s.deliverEntry(b, "grace", inbox.Entry{Title: "A result", Body: body})
			}
			total := int64(0)
			for _, key := range []string{"", ":unread", ":seen"} {
				n, err := client.MemoryUsage(b.Context(), "postroom:inbox:{staging:grace}"+key, 0).Result()
				if err != nil {
					b.Fatal(err)
				}
				total += n
			}
			b.ReportMetric(float64(total), "B/100-entries")
		}
	})
}
