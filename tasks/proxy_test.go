package tasks

import (
	"bytes"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
)

// A droppingProxy stands between a client and Redis. Armed with a command, it
// lets a call of that command through, swallows the answer, and closes the
// connection: Redis has done the work and the client cannot know.
type droppingProxy struct {
	listener net.Listener
	backend  string
	dropped  atomic.Int64

	mu    sync.Mutex // guards what follows
	armed []byte     // the command on the wire; nil when not armed
	spare int        // calls to leave alone first
}

func startProxy(t *testing.T, backend string) *droppingProxy {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &droppingProxy{listener: listener, backend: backend}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		wg.Wait()
	})
	return p
}

// client returns a client that goes through the proxy and tries a command
// 1+retries times.
func (p *droppingProxy) client(t *testing.T, retries int) *redis.Client {
	t.Helper()
	if retries == 0 {
		retries = -1 // go-redis takes 0 for its default
	}
	rdb := redis.NewClient(&redis.Options{Addr: p.listener.Addr().String(), MaxRetries: retries, ContextTimeoutEnabled: true})
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// drop arms the proxy with a command, as go-redis spells it, after spare calls
// that it leaves alone.
func (p *droppingProxy) drop(command string, spare int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed, p.spare = []byte("\r\n"+command+"\r\n"), spare
}

// hit reports whether the answer to request is to be dropped.
func (p *droppingProxy) hit(request []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.armed == nil || !bytes.Contains(request, p.armed) {
		return false
	}
	if p.spare--; p.spare >= 0 {
		return false
	}
	p.armed = nil
	return true
}

func (p *droppingProxy) serve(client net.Conn) {
	defer client.Close()
	server, err := new(net.Dialer).Dial("tcp", p.backend)
	if err != nil {
		return
	}
	defer server.Close()
	var drop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer client.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			if err != nil {
				return
			}
			if drop.Load() {
				p.dropped.Add(1)
				return
			}
			if _, err := client.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			break
		}
		if p.hit(buf[:n]) {
			drop.Store(true)
		}
		if _, err := server.Write(buf[:n]); err != nil {
			break
		}
	}
	// Give Redis the end of the stream, so that the other direction ends too.
	if tcp, ok := server.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
	<-done
	_, _ = io.Copy(io.Discard, client)
}
