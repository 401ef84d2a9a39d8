package exchange_test

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/egress"
	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/exchange"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func client(t *testing.T, allow []netip.Prefix, roots *x509.CertPool) *http.Client {
	t.Helper()
	c, err := egress.New(egress.Config{RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c.HTTP(allow)
}

func post(t *testing.T, ctx context.Context, url string) *http.Request { //nolint:revive // t first, as in a helper
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("what is said"))
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func fault(t *testing.T, err error, want notifier.Fault, reason string) {
	t.Helper()
	e, ok := errors.AsType[*notifier.Error](err)
	if !ok || e.Fault != want || e.Reason != reason || !slices.Contains(exchange.Reasons(), reason) {
		t.Fatalf("got %v, want %v %s", err, want, reason)
	}
	if text := e.Error(); strings.Contains(text, "127.0.0.1") || strings.Contains(text, "secret") || strings.Contains(text, "http") {
		t.Fatalf("the error shows where it went: %s", text)
	}
}

func TestAnswer_Err(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		code   int
		header string
		fault  notifier.Fault
		reason string
		after  time.Duration
	}{
		{code: 200},
		{code: 202},
		{code: 204},
		{code: 301, fault: notifier.Permanent, reason: exchange.ReasonRedirected},
		{code: 307, fault: notifier.Permanent, reason: exchange.ReasonRedirected},
		{code: 400, header: "9", fault: notifier.Permanent, reason: exchange.ReasonRejected},
		{code: 408, fault: notifier.Temporary, reason: exchange.ReasonServerError},
		{code: 413, fault: notifier.Permanent, reason: exchange.ReasonTooLarge},
		{code: 425, fault: notifier.Temporary, reason: exchange.ReasonServerError},
		{code: 429, header: "30", fault: notifier.Held, reason: exchange.ReasonRateLimited, after: 30 * time.Second},
		{code: 429, header: "99999999", fault: notifier.Held, reason: exchange.ReasonRateLimited, after: 24 * time.Hour},
		{code: 429, header: "soon", fault: notifier.Held, reason: exchange.ReasonRateLimited},
		{code: 500, fault: notifier.Temporary, reason: exchange.ReasonServerError},
		{code: 503, header: "120", fault: notifier.Temporary, reason: exchange.ReasonServerError, after: 2 * time.Minute},
	} {
		a := exchange.Answer{Code: tt.code, Header: http.Header{"Retry-After": {tt.header}}}
		err := a.Err()
		if tt.reason == "" {
			if err != nil {
				t.Errorf("%d: %v", tt.code, err)
			}
			continue
		}
		fault(t, err, tt.fault, tt.reason)
		if e, _ := errors.AsType[*notifier.Error](err); e.After != tt.after || e.Code != tt.code {
			t.Errorf("%d %q: after %v, code %d, want %v", tt.code, tt.header, e.After, e.Code, tt.after)
		}
	}
}

func TestDo(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		case "/elsewhere":
			t.Error("the redirect was followed")
		case "/long":
			_, _ = w.Write(make([]byte, 1<<20))
		case "/short":
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("half"))
		case "/cut":
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(server.Close)
	c := client(t, loopback, nil)

	answer, err := exchange.Do(c, post(t, t.Context(), server.URL+"/redirect"))
	if err != nil || answer.Code != http.StatusTemporaryRedirect {
		t.Errorf("redirect: %v, %v", answer, err)
	}
	answer, err = exchange.Do(c, post(t, t.Context(), server.URL+"/long"))
	if err != nil || len(answer.Body) != 8<<10 {
		t.Errorf("long answer: %d bytes, %v", len(answer.Body), err)
	}
	answer, err = exchange.Do(c, post(t, t.Context(), server.URL+"/short"))
	if err != nil || string(answer.Body) != "half" || answer.Err() != nil {
		t.Errorf("answer without its end: %v, %v", answer, err)
	}
	_, err = exchange.Do(c, post(t, t.Context(), server.URL+"/cut?secret"))
	fault(t, err, notifier.Unknown, exchange.ReasonNoAnswer)
}

func TestDo_beforeItIsSent(t *testing.T) {
	t.Parallel()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + listener.Addr().String() + "/secret"
	_ = listener.Close()
	untrusted := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("called") }))
	untrusted.Config.ErrorLog = log.New(io.Discard, "", 0)
	untrusted.StartTLS()
	t.Cleanup(untrusted.Close)
	for name, tt := range map[string]struct {
		over   bool
		allow  []netip.Prefix
		url    string
		fault  notifier.Fault
		reason string
	}{
		"nobody listens":     {false, loopback, nobody, notifier.Temporary, "connect"},
		"a stranger's name":  {false, loopback, untrusted.URL + "/secret", notifier.Temporary, "tls"},
		"not to be called":   {false, nil, nobody, notifier.Permanent, exchange.ReasonForbidden},
		"context over":       {true, loopback, nobody, notifier.Held, "canceled"},
		"private, by number": {false, nil, "https://127.0.0.1/secret", notifier.Permanent, exchange.ReasonForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tt.over {
				cancel()
			}
			_, err := exchange.Do(client(t, tt.allow, nil), post(t, ctx, tt.url))
			fault(t, err, tt.fault, tt.reason)
		})
	}
}

type failing struct{ err error }

func (f failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, f.err }

// A client that is not of package egress does not tell what went out.
func TestDo_strangeClient(t *testing.T) {
	t.Parallel()
	c := &http.Client{Transport: failing{errors.New("Post http://secret: broken")}}
	_, err := exchange.Do(c, post(t, t.Context(), "http://127.0.0.1/secret"))
	fault(t, err, notifier.Unknown, exchange.ReasonNoAnswer)
}

// What a name resolves to can be mended by whoever owns the name.
func TestDo_resolvedToForbidden(t *testing.T) {
	t.Parallel()
	c := &http.Client{Transport: failing{&egress.ForbiddenError{Rule: "private address", Resolved: true}}}
	_, err := exchange.Do(c, post(t, t.Context(), "https://hooks.example/secret"))
	fault(t, err, notifier.Temporary, exchange.ReasonForbidden)
}
