package realtime_test

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/medicalink/postroom/internal/inbox"
	"github.com/medicalink/postroom/internal/notifier/webpush"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/realtime"
	"github.com/medicalink/postroom/rediskit"
)

// pointP256 returns a public key of the curve P-256, as VAPID and browsers write it.
func pointP256(t testing.TB) string {
	t.Helper()
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(key.PublicKey().Bytes())
}

// browserJSON returns what PushSubscription.toJSON returns in a browser.
func browserJSON(t testing.TB, endpoint string) string {
	t.Helper()
	return fmt.Sprintf(`{"endpoint":%q,"expirationTime":null,"keys":{"p256dh":%q,"auth":"AAAAAAAAAAAAAAAAAAAAAA"}}`, endpoint, pointP256(t))
}

const asJSON = "application/json"

func TestHandler_push(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		key := pointP256(t)
		s := open(t, client, realtime.Config{PushPublicKey: key}, inbox.Config{})
		// It is the workers' registry that a page gets into.
		workers, err := webpush.NewSubscriptions(client, client.Service())
		if err != nil {
			t.Fatal(err)
		}
		const phone, laptop = "https://push.example.org/s/phone", "https://push.example.org/s/laptop"
		has := func(user string, endpoints ...string) {
			t.Helper()
			list, err := workers.List(t.Context(), user)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, sub := range list {
				got = append(got, sub.Endpoint)
			}
			if fmt.Sprint(got) != fmt.Sprint(endpoints) {
				t.Errorf("the workers reach %s at %v, want %v", user, got, endpoints)
			}
			status, body := s.call(t, "GET", "/push?user="+user, "")
			var info map[string]any
			if err := json.Unmarshal([]byte(body), &info); err != nil || status != http.StatusOK {
				t.Fatalf("%d %s, %v", status, body, err)
			}
			if fmt.Sprint(info) != fmt.Sprint(map[string]any{"public_key": key, "subscriptions": len(endpoints)}) {
				t.Errorf("%s is told %s", user, body)
			}
		}
		call := func(method, user, body string, want int) {
			t.Helper()
			if status, text := s.call(t, method, "/push?user="+user, body, "Content-Type", asJSON); status != want {
				t.Errorf("%s of %s: %d %s, want %d", method, user, status, text, want)
			}
		}
		has("ada")
		call("POST", "ada", browserJSON(t, phone), http.StatusCreated)
		call("POST", "ada", browserJSON(t, phone), http.StatusCreated) // the app starts again
		has("ada", phone)
		// Grace logs in where Ada was, and can end her own only.
		call("POST", "grace", browserJSON(t, laptop), http.StatusCreated)
		call("POST", "grace", browserJSON(t, phone), http.StatusCreated)
		has("ada")
		has("grace", phone, laptop)
		call("DELETE", "ada", `{"endpoint":"`+laptop+`"}`, http.StatusNoContent)
		has("grace", phone, laptop)
		call("DELETE", "grace", `{"endpoint":"`+phone+`"}`, http.StatusNoContent)
		call("DELETE", "grace", `{"endpoint":"`+phone+`"}`, http.StatusNoContent)
		has("grace", laptop)
	})
}

func TestHandler_pushRefuses(t *testing.T) {
	t.Parallel()
	s, server := plain(t, realtime.Config{PushPublicKey: pointP256(t)}, inbox.Config{})
	const secret = "s3cret-endpoint"
	good := browserJSON(t, "https://push.example.org/"+secret)
	for _, c := range []struct {
		name, method, path, body string
		header                   []string
		want                     int
		says                     string
	}{
		{"method", "PUT", "/push?user=ada", good, nil, 405, ""},
		{"nobody reads", "GET", "/push", "", nil, 401, ""},
		{"nobody subscribes", "POST", "/push", good, nil, 401, ""},
		{"nobody ends", "DELETE", "/push", good, nil, 401, ""},
		{"form", "POST", "/push?user=ada", good, []string{"Content-Type", "text/plain"}, 415, ""},
		{"form", "DELETE", "/push?user=ada", good, []string{"Content-Type", "text/plain"}, 415, ""},
		{"other site", "POST", "/push?user=ada", good, []string{"Sec-Fetch-Site", "cross-site"}, 403, ""},
		{"other site", "DELETE", "/push?user=ada", good, []string{"Sec-Fetch-Site", "cross-site"}, 403, ""},
		{"large", "POST", "/push?user=ada", `{"endpoint":"` + strings.Repeat("x", 40_000) + `"}`, nil, 413, ""},
		{"no JSON", "POST", "/push?user=ada", `{"` + secret, nil, 400, ""},
		{"another JSON", "POST", "/push?user=ada", `"` + secret + `"`, nil, 400, "PushSubscription.toJSON()"},
		{"plain HTTP", "POST", "/push?user=ada", strings.Replace(good, "https:", "http:", 1), nil, 400, "endpoint"},
		{"a short auth", "POST", "/push?user=ada", strings.Replace(good, "AAAA", "", 1), nil, 400, "keys.auth"},
		{"no point", "POST", "/push?user=ada", strings.Replace(good, `dh":"B`, `dh":"C`, 1), nil, 400, "keys.p256dh"},
		{"no endpoint", "DELETE", "/push?user=ada", `{}`, nil, 400, "endpoint"},
	} {
		status, body := s.call(t, c.method, c.path, c.body, append([]string{"Content-Type", asJSON}, c.header...)...)
		if status != c.want || !strings.Contains(body, c.says) {
			t.Errorf("%s: %s %s: %d %s, want %d %s", c.name, c.method, c.path, status, body, c.want, c.says)
		}
		if strings.Contains(body, "s3cret") {
			t.Errorf("%s: the answer tells %s", c.name, body)
		}
	}
	if _, body := s.call(t, "GET", "/push?user=ada", ""); !strings.Contains(body, `"subscriptions":0`) {
		t.Errorf("something was kept: %s", body)
	}
	server.Kill()
	for method, body := range map[string]string{"GET": "", "POST": good, "DELETE": `{"endpoint":"https://push.example.org/"}`} {
		if status, text := s.call(t, method, "/push?user=ada", body, "Content-Type", asJSON); status != http.StatusServiceUnavailable {
			t.Errorf("%s without Redis: %d %s", method, status, text)
		}
	}
}

func TestHandler_pushIsOff(t *testing.T) {
	t.Parallel()
	s, _ := plain(t, realtime.Config{}, inbox.Config{})
	for _, method := range []string{"GET", "POST", "DELETE"} {
		if status, _ := s.call(t, method, "/push?user=ada", "{}", "Content-Type", asJSON); status != http.StatusNotFound {
			t.Errorf("%s: %d", method, status)
		}
	}
}

func TestHandler_pushFromAllowedOrigin(t *testing.T) {
	t.Parallel()
	const app = "https://app.example.org"
	s, _ := plain(t, realtime.Config{PushPublicKey: pointP256(t), AllowedOrigins: []string{app}}, inbox.Config{})
	resp := s.response(t, "OPTIONS", "/push", "", "Origin", app)
	_ = resp.Body.Close()
	if got := resp.Header.Get("Access-Control-Allow-Methods"); got != "GET, POST, DELETE" {
		t.Errorf("the page may use %q", got)
	}
}

// A private key in the place of the public one must not be shown to everybody, nor in
// the error.
func TestNew_pushPublicKey(t *testing.T) {
	t.Parallel()
	key, err := webpush.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	client := named(t, testenv.Redis(t).Config())
	private := string(key.PrivateKey())
	for _, wrong := range []string{private, "x", key.PublicKey() + "=", key.PublicKey()[1:]} {
		_, err := realtime.New(client, realtime.Config{Authenticate: byName, PushPublicKey: wrong})
		if err == nil || !strings.Contains(err.Error(), "PushPublicKey") || strings.Contains(err.Error(), private) {
			t.Errorf("%d characters: %v", len(wrong), err)
		}
	}
	if _, err := realtime.New(client, realtime.Config{Authenticate: byName, PushPublicKey: key.PublicKey()}); err != nil {
		t.Error(err)
	}
}
