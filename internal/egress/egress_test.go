package egress

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// newServer starts a server with TLS on loopback, and a client that trusts it and
// finds every name in names. Its certificate is for example.com and 127.0.0.1.
func newServer(t *testing.T, handler http.HandlerFunc, cfg Config, names names) (*httptest.Server, *Client) {
	t.Helper()
	srv := httptest.NewUnstartedServer(handler)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	for _, limit := range []*time.Duration{&cfg.Timeout, &cfg.DialTimeout, &cfg.TLSTimeout, &cfg.HeaderTimeout} {
		*limit = cmp.Or(*limit, time.Minute) // a busy machine takes its time
	}
	cfg.RootCAs = x509.NewCertPool()
	cfg.RootCAs.AddCert(srv.Certificate())
	cfg.Resolver = names.serve(t)
	client, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return srv, client
}

// names is what a resolver answers: the addresses of the first, the second, … lookup
// of each type; the last stays.
type names map[string][]string

// serve starts a name server on loopback.
func (n names) serve(t *testing.T) *net.Resolver {
	t.Helper()
	conn, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = conn.Close(); wg.Wait() })
	wg.Go(func() {
		asked := map[string]int{}
		for buf := make([]byte, 1500); ; {
			size, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(n.answer(buf[:size], asked), from)
		}
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// answer makes the answer to a query for A or AAAA (RFC 1035, 4.1).
func (n names) answer(query []byte, asked map[string]int) []byte {
	const header = 12
	end := header
	var labels []string
	for query[end] != 0 {
		size := int(query[end])
		labels = append(labels, string(query[end+1:end+1+size]))
		end += 1 + size
	}
	end += 5 // the root, type and class
	name, kind := strings.Join(labels, "."), binary.BigEndian.Uint16(query[end-4:])
	reply := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, query[header:end]...)
	list, ok := n[name]
	if !ok {
		reply[3] |= 3 // no such name
		return reply
	}
	key := name + strconv.Itoa(int(kind))
	addr := netip.MustParseAddr(list[min(asked[key], len(list)-1)])
	asked[key]++
	if is4 := addr.Is4(); is4 == (kind == 1) && (kind == 1 || kind == 28) {
		reply[7] = 1
		raw := addr.AsSlice()
		reply = append(reply, 0xc0, header, 0, byte(kind), 0, 1, 0, 0, 0, 0, 0, byte(len(raw)))
		reply = append(reply, raw...)
	}
	return reply
}

// answer is a response whose body the test closes at its end.
type answer struct {
	code  int
	body  io.Reader
	close func() error
}

func get(t *testing.T, client *Client, url string, allow []netip.Prefix) (answer, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req, allow)
	if err != nil {
		return answer{}, err
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return answer{code: resp.StatusCode, body: resp.Body, close: resp.Body.Close}, nil
}

// forbidden lists an address of every kind, the IPv6 forms of 127.0.0.1 among them.
var forbidden = map[string]string{
	"0.0.0.0": "unspecified", "0.1.2.3": "this network", "10.1.2.3": "private", "100.64.0.1": "shared", "100.127.255.255": "shared",
	"127.0.0.1": "loopback", "127.255.255.254": "loopback", "169.254.1.1": "link-local", "169.254.169.254": "metadata",
	"172.16.0.1": "private", "172.31.255.255": "private", "192.0.0.8": "reserved", "192.0.0.192": "metadata", "192.0.2.1": "documentation",
	"192.88.99.1": "6to4", "192.168.1.1": "private", "198.18.0.1": "benchmarking", "198.19.255.255": "benchmarking",
	"198.51.100.1": "documentation", "203.0.113.1": "documentation", "224.0.0.1": "multicast", "239.255.255.255": "multicast",
	"240.0.0.1": "reserved", "255.255.255.255": "broadcast", "168.63.129.16": "metadata", "100.100.100.200": "metadata",
	"::": "unspecified", "::1": "loopback", "::127.0.0.1": "IPv4-compatible", "::8.8.8.8": "IPv4-compatible",
	"::ffff:127.0.0.1": "IPv4-mapped", "::ffff:10.0.0.1": "IPv4-mapped", "::ffff:0:127.0.0.1": "IPv4-translated",
	"64:ff9b::7f00:1": "NAT64", "64:ff9b:1::7f00:1": "NAT64", "100::1": "discard-only", "100:0:0:1::1": "dummy",
	"2001::7f00:1": "Teredo", "2001:2::1": "benchmarking", "2001:10::1": "reserved", "2001:20::1": "reserved", "2001:db8::1": "documentation",
	"2002:7f00:1::": "6to4", "3fff::1": "documentation", "5f00::1": "segment routing", "fc00::1": "private", "fd12::1": "private",
	"fd00:ec2::254": "metadata", "fd20:ce::254": "metadata", "fe80::1": "link-local", "fec0::1": "site-local", "ff02::1": "multicast",
	"4000::1": "reserved", "1::1": "reserved",
}

func nameOf(addr string) string {
	return "a" + strings.NewReplacer(":", "-", ".", "-").Replace(addr) + "z.test"
}

// Each forbidden address is refused as it is, and when a name leads to it.
func TestClient_Do_refusesForbiddenAddresses(t *testing.T) {
	t.Parallel()
	found := names{}
	for addr := range forbidden {
		found[nameOf(addr)] = []string{addr}
	}
	_, client := newServer(t, nil, Config{}, found)
	other := []netip.Prefix{netip.MustParsePrefix("10.255.0.0/16"), netip.MustParsePrefix("fd12:3456::/32")}
	for addr, want := range forbidden {
		for _, allow := range [][]netip.Prefix{nil, other} {
			host := addr
			if strings.Contains(addr, ":") {
				host = "[" + addr + "]"
			}
			_, err := get(t, client, "https://"+host+"/", allow)
			if e, ok := errors.AsType[*ForbiddenError](err); !ok || e.Resolved || !strings.Contains(e.Rule, want) || strings.Contains(err.Error(), addr) {
				t.Errorf("%s: %v, want %s address", addr, err, want)
			}
			if strings.HasPrefix(addr, "::ffff:") && !strings.HasPrefix(addr, "::ffff:0:") {
				want = strings.Fields(rule(netip.MustParseAddr(addr).Unmap()))[0] // the dialer unpacks it
			}
			name := nameOf(addr)
			_, err = get(t, client, "https://"+name+"/", allow)
			if e, ok := errors.AsType[*ForbiddenError](err); !ok || !e.Resolved || !strings.Contains(e.Rule, want) || strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v, want %s address", name, err, want)
			}
			want = forbidden[addr]
		}
	}
}

func TestRule_letsPublicAddressesPass(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{
		"1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255",
		"172.15.255.255", "172.32.0.0", "168.63.129.15", "192.0.1.0", "192.167.255.255", "198.17.255.255", "198.20.0.0", "223.255.255.255",
		"2001:200::1", "2001:4860:4860::8888", "2606:4700:4700::1111", "2a00:1450::1", "2003::1",
	} {
		if r := rule(netip.MustParseAddr(addr)); r != "" {
			t.Errorf("%s is a %s", addr, r)
		}
	}
	if rule(netip.Addr{}) == "" || rule(netip.MustParseAddr("fe80::1%eth0")) == "" {
		t.Error("no address, or one with a zone, passes")
	}
}

// A name that is public when somebody looks and private when the worker connects.
func TestClient_Do_survivesRebinding(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	srv, client := newServer(t, func(http.ResponseWriter, *http.Request) { calls.Add(1) }, Config{},
		names{"example.com": {"1.1.1.1", "127.0.0.1"}})
	addrs, err := client.cfg.Resolver.LookupNetIP(t.Context(), "ip4", "example.com")
	if err != nil || len(addrs) != 1 || rule(addrs[0].Unmap()) != "" {
		t.Fatalf("the first lookup says %v, %v", addrs, err)
	}
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	// Another list, so that the port is not what it fails for.
	_, err = get(t, client, "https://example.com:"+port+"/", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	if e, ok := errors.AsType[*ForbiddenError](err); !ok || !e.Resolved || e.Rule != "loopback address" || calls.Load() != 0 {
		t.Errorf("%v after %d calls", err, calls.Load())
	}
}

// A connection that a wider allow-list made is not there for a narrower one.
func TestClient_Do_keepsConnectionsApart(t *testing.T) {
	t.Parallel()
	srv, client := newServer(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) }, Config{},
		names{"example.com": {"127.0.0.1"}})
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	url := "https://example.com:" + port + "/"
	call := func(allow ...string) (string, error) {
		t.Helper()
		list := make([]netip.Prefix, len(allow))
		for i, p := range allow {
			list[i] = netip.MustParsePrefix(p)
		}
		resp, err := get(t, client, url, list)
		if err != nil {
			return "", err
		}
		text, err := io.ReadAll(resp.body)
		return string(text), errors.Join(err, resp.close())
	}
	first, err := call("10.0.0.0/8", "127.0.0.0/8")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := call("127.0.0.1/8", "10.0.0.0/8"); err != nil || again != first {
		t.Errorf("the same list in another order: connection %s, %v; want %s", again, err, first)
	}
	if _, err := call("10.0.0.0/8"); err == nil {
		t.Error("a narrower list used the connection of a wider one")
	} else if _, ok := errors.AsType[*ForbiddenError](err); !ok {
		t.Errorf("a narrower list: %v", err)
	}
}

func TestClient_Do_boundsItsPools(t *testing.T) {
	t.Parallel()
	srv, client := newServer(t, func(http.ResponseWriter, *http.Request) {}, Config{}, nil)
	for i := range 2 * maxTransports {
		allow := []netip.Prefix{loopback[0], netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16)}
		resp, err := get(t, client, srv.URL, allow)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.close()
	}
	if n := len(client.transports); n > maxTransports {
		t.Errorf("%d pools", n)
	}
}

// In an allow-list http and other ports are right; nowhere else.
func TestClient_Do_allowList(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(plain.Close)
	_, client := newServer(t, nil, Config{}, names{"public.test": {"1.1.1.1"}})
	if _, err := get(t, client, plain.URL, loopback); err != nil {
		t.Errorf("plain http to an allowed address: %v", err)
	}
	for _, url := range []string{plain.URL, "http://public.test/", "http://public.test:443/", "https://public.test:8443/"} {
		allow := loopback
		if url == plain.URL {
			allow = nil
		}
		if _, err := get(t, client, url, allow); err == nil {
			t.Errorf("%s is called", url)
		} else if _, ok := errors.AsType[*ForbiddenError](err); !ok {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestClient_Do_followsNoRedirect(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	srv, client := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		w.Header().Set("Set-Cookie", "a=b")
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	}, Config{}, nil)
	got, err := get(t, client, srv.URL, loopback)
	if err != nil || got.code != http.StatusTemporaryRedirect || calls.Load() != 1 {
		t.Errorf("%d, %v after %d calls", got.code, err, calls.Load())
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.HTTP(loopback).Do(req)
	if err != nil || resp.StatusCode != http.StatusTemporaryRedirect || calls.Load() != 2 {
		t.Fatalf("as http.Client: %v, %v after %d calls", resp, err, calls.Load())
	}
	_ = resp.Body.Close()
	resp, err = client.HTTP(nil).Do(req)
	if err == nil {
		_ = resp.Body.Close()
	}
	if _, ok := errors.AsType[*ForbiddenError](err); !ok {
		t.Errorf("as http.Client, without the list: %v", err)
	}
}

// The environment's proxy would connect to whatever it is told.
func TestClient_Do_usesNoProxy(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	srv, client := newServer(t, func(http.ResponseWriter, *http.Request) {}, Config{}, names{"example.com": {"127.0.0.1"}})
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	if _, err := get(t, client, "https://example.com:"+port, loopback); err != nil {
		t.Error(err)
	}
}

func TestClient_Do_boundsAnswers(t *testing.T) {
	t.Parallel()
	chunk := bytes.Repeat([]byte("x"), 1<<10)
	srv, client := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/header" {
			for i := range 64 {
				w.Header().Set("X-"+strconv.Itoa(i), string(chunk))
			}
			return
		}
		for {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}, Config{MaxBody: 4 << 10}, nil)
	resp, err := get(t, client, srv.URL, loopback)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.body)
	if _, ok := errors.AsType[*http.MaxBytesError](err); !ok || len(body) != 4<<10 {
		t.Errorf("read %d bytes of an endless body, %v", len(body), err)
	}
	_, err = get(t, client, srv.URL+"/header", loopback)
	if e, ok := errors.AsType[*Error](err); !ok || e.Reason != ReasonProtocol {
		t.Errorf("headers of 64 kB: %v", err)
	}
}

// What fails is told in words that show neither the host nor where it is.
func TestClient_Do_explains(t *testing.T) {
	t.Parallel()
	hang := func(_ http.ResponseWriter, r *http.Request) { _, _ = io.ReadAll(r.Body); <-r.Context().Done() }
	srv, client := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/break" {
			panic(http.ErrAbortHandler)
		}
		hang(w, r)
	}, Config{}, names{"example.com": {"127.0.0.1"}, "other.test": {"127.0.0.1"}})
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())

	old := httptest.NewUnstartedServer(http.HandlerFunc(hang))
	old.Config.ErrorLog = log.New(io.Discard, "", 0)
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	old.StartTLS()
	t.Cleanup(old.Close)
	closed, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()

	for _, tt := range []struct {
		url  string
		want Reason
		sent bool
	}{
		{srv.URL + "/break", ReasonProtocol, true},
		{"https://nobody.test/", ReasonDNS, false},
		{"https://" + closed.Addr().String(), ReasonConnect, false},
		{"https://other.test:" + port, ReasonTLS, false}, // a certificate for another name
		{old.URL, ReasonTLS, false},
		{strings.Replace(srv.URL, "https", "http", 1), "", false}, // an answer: 400
	} {
		_, err := get(t, client, tt.url, loopback)
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.url, err)
			}
			continue
		}
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Reason != tt.want || e.Sent != tt.sent {
			t.Errorf("%s: %v (%+v), want %s, sent %v", tt.url, err, e, tt.want, tt.sent)
			continue
		}
		for _, secret := range []string{"127.0.0.1", ".test", "example.com", port} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the error shows it: %v", tt.url, err)
			}
		}
	}

	slow, impatient := newServer(t, hang, Config{HeaderTimeout: 100 * time.Millisecond}, nil)
	_, err = get(t, impatient, slow.URL, loopback)
	if e, ok := errors.AsType[*Error](err); !ok || e.Reason != ReasonTimeout || !e.Sent || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("headers that do not come: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Do(req, loopback); !errors.Is(err, context.Canceled) { //nolint:bodyclose // there is none
		t.Errorf("cancelled: %v", err)
	}
}

// The time of a request is over although its body is still coming.
func TestClient_Do_boundsTheBodysTime(t *testing.T) {
	t.Parallel()
	srv, client := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "x")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}, Config{Timeout: 5 * time.Second}, nil) // of which the handshake must not take all
	resp, err := get(t, client, srv.URL, loopback)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.body)
	if e, ok := errors.AsType[*Error](err); !ok || string(text) != "x" || e.Reason != ReasonTimeout || !e.Sent || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read %q, %v", text, err)
	}
}

func TestCheckURL(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		url   string
		allow []netip.Prefix
		want  string // the rule
	}{
		{"https://example.com/hook?a=b", nil, ""},
		{"https://example.com:443/", nil, ""},
		{"https://[2606:4700:4700::1111]/", nil, ""},
		{"HTTPS://EXAMPLE.com/", nil, ""},
		{"http://10.1.2.3:8080/", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, ""},
		{"http://intranet:8080/", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, ""},
		{"https://[fd12::1]:8443/", []netip.Prefix{netip.MustParsePrefix("fd12::/16")}, ""},
		{"http://example.com/", nil, "scheme other"},
		{"ftp://example.com/", loopback, "scheme other"},
		{"gopher://127.0.0.1/", loopback, "scheme other"},
		{"https://example.com:8443/", nil, "port other"},
		{"https://8.8.8.8:22/", loopback, "port other"},
		{"http://8.8.8.8/", loopback, "scheme other"},
		{"https://user@example.com/", nil, "user or password"},
		{"https://user:pw@example.com/", loopback, "user or password"},
		{"https:///path", nil, "without a host"},
		{"https:example.com", nil, "without a host"},
		{"https://localhost/", nil, "loopback"},
		{"https://a.LOCALHOST./", nil, "loopback"},
		{"https://[fe80::1%25eth0]/", nil, "link-local"},
		{"https://10.0.0.1/", loopback, "private"},
		{"https://exa mple.com/", nil, "malformed"},
		{"https://example.com:https/", nil, "malformed"},
		{"", nil, "scheme"},
		{"https://example.com/" + strings.Repeat("a", MaxURL), nil, "more than 2048"},
	} {
		u, err := CheckURL(tt.url, tt.allow)
		if tt.want == "" {
			if err != nil || u.Host == "" {
				t.Errorf("%s: %v", tt.url, err)
			}
			continue
		}
		e, ok := errors.AsType[*ForbiddenError](err)
		if !ok || e.Resolved || !strings.Contains(e.Rule, tt.want) || strings.Contains(err.Error(), "example.com") {
			t.Errorf("%s: %v, want %q", tt.url, err, tt.want)
		}
	}
}

func TestNew_refusesNegativeLimits(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{{Timeout: -1}, {DialTimeout: -1}, {TLSTimeout: -1}, {HeaderTimeout: -1}, {MaxBody: -1}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}
