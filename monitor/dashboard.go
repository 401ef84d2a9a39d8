package monitor

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path"
	"regexp"
	"strings"
)

const dashboardPath = "/monitor"

var (
	fontLink     = regexp.MustCompile(`<link[^>]*href="https://fonts\.googleapis\.com/[^>]*>`)
	elsewhere    = regexp.MustCompile(`(?:src|href)\s*=\s*["']?(?:[a-z]+:)?//`)
	inlineScript = regexp.MustCompile(`(?s)<script>(.*?)</script>`)
)

// contentTypes of asynqmon's files: it sends most as text/plain, which browsers
// refuse to use under nosniff.
var contentTypes = map[string]string{
	".css":  "text/css; charset=utf-8",
	".ico":  "image/x-icon",
	".js":   "text/javascript; charset=utf-8",
	".json": "application/json",
	".map":  "application/json",
	".png":  "image/png",
	".svg":  "image/svg+xml",
	".txt":  "text/plain; charset=utf-8",
}

// guardDashboard wraps asynqmon. It asks it for its page once, because the page
// is the same for every request and the policy needs the hashes of its scripts.
func guardDashboard(asynqmon http.Handler) (http.Handler, error) {
	req, err := http.NewRequest(http.MethodGet, dashboardPath+"/", nil) //nolint:noctx // answered from memory
	if err != nil {
		return nil, fmt.Errorf("ask for the dashboard's page: %w", err)
	}
	first := capture(asynqmon, req)
	page, policy, err := cleanPage(first.body.Bytes())
	if err != nil {
		return nil, err
	}
	api := apiHandler(asynqmon)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Against DNS rebinding: without a login, the name is what tells a tunnel
		// of an operator from a page of an attacker.
		if !loopbackRequest(r) {
			http.Error(w, "the dashboard answers only to localhost, 127.0.0.1 and [::1]", http.StatusMisdirectedRequest)
			return
		}
		if strings.HasPrefix(r.URL.Path, dashboardPath+"/api/") {
			api.ServeHTTP(w, r)
			return
		}
		rec := capture(asynqmon, r)
		// asynqmon answers every path that is not a file with the page.
		if rec.code == http.StatusOK && bytes.Equal(rec.body.Bytes(), first.body.Bytes()) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.Header().Set("Content-Security-Policy", policy)
			_, _ = w.Write(page) // the client has gone
			return
		}
		contentType, ok := contentTypes[path.Ext(r.URL.Path)]
		if !ok || rec.code != http.StatusOK {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write(rec.body.Bytes())
	}), nil
}

// cleanPage removes what makes a browser talk to others and returns the policy
// that allows exactly the scripts that are left.
func cleanPage(html []byte) (page []byte, policy string, err error) {
	page = fontLink.ReplaceAll(html, nil)
	if elsewhere.Match(page) {
		return nil, "", errors.New("asynqmon's page loads something from elsewhere: a new asynqmon needs a new look at it")
	}
	scripts := inlineScript.FindAllSubmatch(page, -1)
	if len(scripts) == 0 {
		return nil, "", errors.New("asynqmon's page has no inline script: a new asynqmon needs a new look at it")
	}
	var hashes strings.Builder
	for _, s := range scripts {
		sum := sha256.Sum256(s[1])
		hashes.WriteString(" 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'")
	}
	// Material-UI writes style elements, so inline styles must be allowed.
	return page, "default-src 'none'; script-src 'self'" + hashes.String() +
		"; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; connect-src 'self'; manifest-src 'self'" +
		"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'", nil
}

// apiHandler answers with JSON that holds no address.
func apiHandler(asynqmon http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Its handler pastes a parameter into a PromQL query, and there is no
		// Prometheus to ask.
		if r.URL.Path == dashboardPath+"/api/metrics" {
			http.NotFound(w, r)
			return
		}
		rec := capture(asynqmon, r)
		body, err := redactJSON(rec.body.Bytes())
		if err != nil {
			http.Error(w, "the answer could not be redacted", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if rec.code != http.StatusOK {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		}
		w.WriteHeader(rec.code)
		_, _ = w.Write(body)
	})
}

func loopbackRequest(r *http.Request) bool {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return loopback(strings.Trim(host, "[]"))
}

// recorder keeps an answer, so that it can be looked at before it is sent.
type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func capture(h http.Handler, r *http.Request) *recorder {
	rec := &recorder{header: http.Header{}, code: http.StatusOK}
	h.ServeHTTP(rec, r)
	return rec
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(code int)        { r.code = code }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) } //nolint:wrapcheck // never fails
