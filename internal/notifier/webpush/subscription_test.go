package webpush

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

// browserKeys are what a browser keeps of its subscription, and what it hands out.
type browserKeys struct {
	private      *ecdh.PrivateKey
	p256dh, auth []byte
}

func newBrowserKeys(t testing.TB) browserKeys {
	t.Helper()
	private, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k := browserKeys{private: private, p256dh: private.PublicKey().Bytes(), auth: make([]byte, authLen)}
	_, _ = rand.Read(k.auth)
	return k
}

func (k browserKeys) subscription(endpoint string) Subscription {
	return Subscription{Endpoint: endpoint, P256dh: k.p256dh, Auth: k.auth}
}

func TestParseSubscription(t *testing.T) {
	t.Parallel()
	k := newBrowserKeys(t)
	endpoint := "https://push.example/send/abc:def?x=1"
	text := fmt.Sprintf(
		`{"endpoint":%q,"expirationTime":1800000000000.25,"keys":{"p256dh":"%s","auth":"%s"},"more":[1]}`,
		endpoint, b64.EncodeToString(k.p256dh), b64.EncodeToString(k.auth),
	)
	s, err := ParseSubscription([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if s.Endpoint != endpoint || string(s.P256dh) != string(k.p256dh) || string(s.Auth) != string(k.auth) ||
		!s.Expires.Equal(time.UnixMilli(1800000000000)) || len(s.ID) != 32 {
		t.Errorf("parsed as %#v, expires %v", s.Endpoint, s.Expires)
	}
	written, err := json.Marshal(s)
	want := fmt.Sprintf(
		`{"endpoint":%q,"expirationTime":1800000000000,"keys":{"p256dh":"%s","auth":"%s"}}`,
		endpoint, b64.EncodeToString(k.p256dh), b64.EncodeToString(k.auth),
	)
	if err != nil || string(written) != want {
		t.Errorf("written as %s, %v\nwant %s", written, err, want)
	}
	s.Expires = time.Time{}
	if written, err = json.Marshal(s); err != nil || !strings.Contains(string(written), `"expirationTime":null`) {
		t.Errorf("without an end: %s, %v", written, err)
	}
	padded := strings.Replace(text, b64.EncodeToString(k.auth), base64.StdEncoding.EncodeToString(k.auth), 1)
	if s, err := ParseSubscription([]byte(padded)); err != nil || string(s.Auth) != string(k.auth) {
		t.Errorf("base64 as libraries write it: %v", err)
	}
}

func TestParseSubscription_refuses(t *testing.T) {
	t.Parallel()
	k := newBrowserKeys(t)
	p256dh, auth := b64.EncodeToString(k.p256dh), b64.EncodeToString(k.auth)
	compressed := append([]byte{2}, k.p256dh[1:33]...)
	offCurve := slices.Clone(k.p256dh)
	offCurve[64] ^= 1
	form := func(endpoint, expires, p256dh, auth string) string {
		return fmt.Sprintf(`{"endpoint":%q,"expirationTime":%s,"keys":{"p256dh":%q,"auth":%q}}`, endpoint, expires, p256dh, auth)
	}
	const good = "https://push.example/secret-path"
	if _, err := ParseSubscription([]byte(form(good, "null", p256dh, auth))); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"no JSON":            `https://push.example/secret-path`,
		"another type":       `[]`,
		"a wrong field":      `{"endpoint":7}`,
		"null":               `null`,
		"empty":              `{}`,
		"http":               form("http://push.example/secret-path", "null", p256dh, auth),
		"no scheme":          form("push.example/secret-path", "null", p256dh, auth),
		"no host":            form("https:///secret-path", "null", p256dh, auth),
		"a user":             form("https://me:secret-path@push.example/", "null", p256dh, auth),
		"a fragment":         form(good+"#x", "null", p256dh, auth),
		"a control":          form("https://push.example/secret-path\n", "null", p256dh, auth),
		"a long URL":         form(good+strings.Repeat("x", 2048), "null", p256dh, auth),
		"no key":             form(good, "null", "", auth),
		"no base64":          form(good, "null", "!!", auth),
		"a compressed key":   form(good, "null", b64.EncodeToString(compressed), auth),
		"not on the curve":   form(good, "null", b64.EncodeToString(offCurve), auth),
		"the point infinity": form(good, "null", "AA", auth),
		"no secret":          form(good, "null", p256dh, ""),
		"a secret of 15":     form(good, "null", p256dh, b64.EncodeToString(k.auth[:15])),
		"an odd secret":      form(good, "null", p256dh, "?"),
		"before 1970":        form(good, "-1", p256dh, auth),
		"beyond time":        form(good, "1e300", p256dh, auth),
	} {
		s, err := ParseSubscription([]byte(text))
		if !errors.Is(err, ErrInvalidSubscription) {
			t.Errorf("%s: %v, %v", name, s, err)
			continue
		}
		if strings.Contains(err.Error(), "secret-path") || strings.Contains(err.Error(), auth) {
			t.Errorf("%s: the error shows it: %v", name, err)
		}
	}
}

func TestSubscription_neverPrintsItsSecrets(t *testing.T) {
	t.Parallel()
	s := newBrowserKeys(t).subscription("https://push.example/secret-path")
	shown := fmt.Sprintf("%v %+v %#v %s %q %v %+v", s, s, s, s, s, &s, []Subscription{s})
	for _, secret := range []string{"secret-path", fmt.Sprintf("%v", s.Auth), b64.EncodeToString(s.Auth)} {
		if strings.Contains(shown, secret) {
			t.Errorf("shown: %s", shown)
		}
	}
}

func FuzzParseSubscription(f *testing.F) {
	k := newBrowserKeys(f)
	text, err := json.Marshal(k.subscription("https://push.example/x"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"endpoint":"https://a","expirationTime":1e13,"keys":{"p256dh":"` + b64.EncodeToString(k.p256dh) + `","auth":"AAAAAAAAAAAAAAAAAAAAAA"}}`))
	f.Add([]byte(`{"endpoint":7}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseSubscription(text)
		if err != nil {
			if !errors.Is(err, ErrInvalidSubscription) {
				t.Fatal(err)
			}
			return
		}
		if err := s.Validate(); err != nil {
			t.Fatalf("parsed, but %v", err)
		}
		written, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseSubscription(written)
		if err != nil || again.ID != s.ID || !again.Expires.Equal(s.Expires) || string(again.P256dh) != string(s.P256dh) {
			t.Fatalf("%s: %v", written, err)
		}
		if _, err := encrypt([]byte("x"), s.P256dh, s.Auth); err != nil {
			t.Fatal(err)
		}
	})
}

func newSubscriptions(t *testing.T, client *rediskit.Client) *Subscriptions {
	t.Helper()
	s, err := NewSubscriptions(client, strings.ReplaceAll(client.Service(), ":", "-"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustAdd(t *testing.T, s *Subscriptions, user, endpoint string) Subscription {
	t.Helper()
	sub, err := s.Add(t.Context(), user, newBrowserKeys(t).subscription(endpoint))
	if err != nil {
		t.Fatal(err)
	}
	return sub
}

func ids(t *testing.T, s *Subscriptions, user string) []string {
	t.Helper()
	list, err := s.List(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, sub := range list {
		all = append(all, sub.ID)
	}
	return all
}

func TestSubscriptions(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		s := newSubscriptions(t, client)
		ctx := t.Context()

		if got := ids(t, s, "nobody"); got != nil {
			t.Errorf("nobody has %v", got)
		}
		first := mustAdd(t, s, "u-1", "https://push.example/1")
		if first.Added.IsZero() || len(first.ID) != 32 {
			t.Errorf("added as %v at %v", first, first.Added)
		}
		got, err := s.Get(ctx, "u-1", first.ID)
		if err != nil || got.Endpoint != first.Endpoint || string(got.Auth) != string(first.Auth) || !got.Added.Equal(first.Added) {
			t.Errorf("got %v of %v, %v", got, got.Added, err)
		}
		for _, tt := range [][2]string{{"u-2", first.ID}, {"u-1", strings.Repeat("0", 32)}, {"u-1", "x"}, {"", first.ID}, {"u{1}", first.ID}} {
			if _, err := s.Get(ctx, tt[0], tt[1]); !errors.Is(err, ErrNoSubscription) {
				t.Errorf("Get %q: %v", tt, err)
			}
		}

		// The same browser again, with new keys: it is one subscription.
		again := mustAdd(t, s, "u-1", "https://push.example/1")
		got, err = s.Get(ctx, "u-1", first.ID)
		if err != nil || again.ID != first.ID || string(got.Auth) != string(again.Auth) || len(ids(t, s, "u-1")) != 1 {
			t.Errorf("added again: %v, %v", got, err)
		}

		if err := s.Remove(ctx, "u-2", first.ID); err != nil || len(ids(t, s, "u-1")) != 1 {
			t.Errorf("another user removed it: %v", err)
		}
		for range 2 {
			if err := s.Remove(ctx, "u-1", first.ID); err != nil || ids(t, s, "u-1") != nil {
				t.Errorf("remove: %v, left %v", err, ids(t, s, "u-1"))
			}
		}
		if n, err := client.Exists(ctx, s.ownerKey(first.ID)).Result(); err != nil || n != 0 {
			t.Errorf("the endpoint still has an owner: %v", err)
		}
	})
}

func TestSubscriptions_Add_refuses(t *testing.T) {
	t.Parallel()
	s := newSubscriptions(t, testenv.Redis(t).Open(t))
	good := newBrowserKeys(t).subscription("https://push.example/1")
	for _, user := range []string{"", "a{b}", "-a", "a b", strings.Repeat("a", 129)} {
		if _, err := s.Add(t.Context(), user, good); err == nil {
			t.Errorf("user %q was taken", user)
		}
		if _, err := s.List(t.Context(), user); err == nil {
			t.Errorf("user %q was listed", user)
		}
	}
	bad := good
	bad.Auth = nil
	if _, err := s.Add(t.Context(), "u-1", bad); !errors.Is(err, ErrInvalidSubscription) {
		t.Errorf("without a secret: %v", err)
	}
}

// A browser that two people use shows only what is for the one who used it last.
func TestSubscriptions_Add_takesOver(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		s := newSubscriptions(t, client)
		ctx := t.Context()
		sub := mustAdd(t, s, "ada", "https://push.example/ward")
		stored, err := client.HGet(ctx, s.userKey("ada"), sub.ID).Result()
		if err != nil {
			t.Fatal(err)
		}
		mustAdd(t, s, "bob", "https://push.example/ward")
		if ids(t, s, "ada") != nil || len(ids(t, s, "bob")) != 1 {
			t.Fatalf("ada has %v, bob %v", ids(t, s, "ada"), ids(t, s, "bob"))
		}
		// So too if the process died before it was taken from the former user.
		if err := client.HSet(ctx, s.userKey("ada"), sub.ID, stored).Err(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(ctx, "ada", sub.ID); !errors.Is(err, ErrNoSubscription) || ids(t, s, "ada") != nil {
			t.Errorf("ada got %v, has %v", err, ids(t, s, "ada"))
		}
		// What is hers no longer, ada cannot take from bob.
		if err := s.Remove(ctx, "ada", sub.ID); err != nil || len(ids(t, s, "bob")) != 1 {
			t.Errorf("bob lost it: %v", err)
		}
		mustAdd(t, s, "ada", "https://push.example/ward")
		if ids(t, s, "bob") != nil || len(ids(t, s, "ada")) != 1 {
			t.Errorf("ada has %v, bob %v", ids(t, s, "ada"), ids(t, s, "bob"))
		}
	})
}

func TestSubscriptions_areBounded(t *testing.T) {
	t.Parallel()
	client := testenv.Redis(t).Open(t)
	s := newSubscriptions(t, client)
	ctx := t.Context()
	var added []string
	for i := range MaxPerUser {
		added = append(added, mustAdd(t, s, "u-1", fmt.Sprintf("https://push.example/%d", i)).ID)
	}
	// They get different ages, in the order they were added.
	for i, id := range added {
		value, err := client.HGet(ctx, s.userKey("u-1"), id).Result()
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(value, " ")
		aged := fmt.Sprintf("%d %s", time.Now().Add(time.Duration(i-100)*time.Hour).UnixMilli(), rest)
		if err := client.HSet(ctx, s.userKey("u-1"), id, aged).Err(); err != nil {
			t.Fatal(err)
		}
	}
	mustAdd(t, s, "u-1", "https://push.example/0") // used again: now the newest
	mustAdd(t, s, "u-1", "https://push.example/one-more")
	got := ids(t, s, "u-1")
	if len(got) != MaxPerUser || slices.Contains(got, added[1]) || !slices.Contains(got, added[0]) {
		t.Errorf("%d are left, the oldest among them: %v, the renewed: %v", len(got), slices.Contains(got, added[1]), slices.Contains(got, added[0]))
	}
	for _, key := range []string{s.userKey("u-1"), s.ownerKey(added[0])} {
		if ttl, err := client.PTTL(ctx, key).Result(); err != nil || ttl <= Retention-time.Minute || ttl > Retention {
			t.Errorf("%s ends in %v, %v", key, ttl, err)
		}
	}
}

func TestSubscriptions_end(t *testing.T) {
	t.Parallel()
	client := testenv.Redis(t).Open(t)
	s := newSubscriptions(t, client)
	ctx := t.Context()
	expired := newBrowserKeys(t).subscription("https://push.example/expired")
	expired.Expires = time.Now().Add(-time.Minute)
	if _, err := s.Add(ctx, "u-1", expired); err != nil {
		t.Fatal(err)
	}
	later := newBrowserKeys(t).subscription("https://push.example/later")
	later.Expires = time.Now().Add(time.Hour)
	kept, err := s.Add(ctx, "u-1", later)
	if err != nil {
		t.Fatal(err)
	}
	unused := mustAdd(t, s, "u-1", "https://push.example/unused")
	value, err := client.HGet(ctx, s.userKey("u-1"), unused.ID).Result()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(value, " ")
	old := fmt.Sprintf("%d %s", time.Now().Add(-Retention).UnixMilli(), rest)
	if err := client.HSet(ctx, s.userKey("u-1"), unused.ID, old, "odd", "what nobody wrote").Err(); err != nil {
		t.Fatal(err)
	}
	if got := ids(t, s, "u-1"); !slices.Equal(got, []string{kept.ID}) {
		t.Errorf("listed %v", got)
	}
	for _, endpoint := range []string{expired.Endpoint, unused.Endpoint} {
		if _, err := s.Get(ctx, "u-1", subscriptionID(endpoint)); !errors.Is(err, ErrNoSubscription) {
			t.Errorf("got one that is over: %v", err)
		}
	}
	// The next Add sweeps them.
	mustAdd(t, s, "u-1", "https://push.example/new")
	if n, err := client.HLen(ctx, s.userKey("u-1")).Result(); err != nil || n != 2 {
		t.Errorf("%d are stored, %v", n, err)
	}
}

func TestSubscriptions_whenRedisIsAway(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	s := newSubscriptions(t, server.Open(t))
	sub := mustAdd(t, s, "u-1", "https://push.example/1")
	server.Kill()
	ctx := t.Context()
	if _, err := s.Add(ctx, "u-1", sub); err == nil || errors.Is(err, ErrInvalidSubscription) {
		t.Errorf("Add: %v", err)
	}
	if _, err := s.Get(ctx, "u-1", sub.ID); err == nil || errors.Is(err, ErrNoSubscription) {
		t.Errorf("Get: %v", err)
	}
	if _, err := s.List(ctx, "u-1"); err == nil {
		t.Error("List: no error")
	}
	if err := s.Remove(ctx, "u-1", sub.ID); err == nil {
		t.Error("Remove: no error")
	}
}

func TestNewSubscriptions(t *testing.T) {
	t.Parallel()
	if _, err := NewSubscriptions(nil, ""); err == nil {
		t.Error("without a client: no error")
	}
	client := testenv.Redis(t).Open(t)
	if _, err := NewSubscriptions(client, "a}"); err == nil {
		t.Error("a brace in the namespace: no error")
	}
	plain, err := NewSubscriptions(client, "")
	if err != nil {
		t.Fatal(err)
	}
	staging, err := NewSubscriptions(client, "staging")
	if err != nil {
		t.Fatal(err)
	}
	mustAdd(t, plain, "u-1", "https://push.example/1")
	if ids(t, staging, "u-1") != nil {
		t.Error("one environment sees the other's")
	}
	for key, want := range map[string]string{
		plain.userKey("u-1"): "postroom:push:{:u-1}", staging.userKey("u-1"): "postroom:push:{staging:u-1}",
		staging.ownerKey("ab"): "postroom:push:endpoint:{staging:ab}",
	} {
		if key != want {
			t.Errorf("%s, want %s", key, want)
		}
	}
}
