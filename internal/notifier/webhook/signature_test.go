package webhook

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/medicalink/postroom/rediskit"
)

const id = "0199b2c0-7d1c-7a63-9d1f-0242ac120002"

var payload = []byte(`{"type":"lab.result.ready","timestamp":"2026-03-01T12:00:00Z","data":{"id":"1f81eb52"}}`)

func newPrivateKey(t testing.TB) rediskit.Secret {
	t.Helper()
	k, err := NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// The specification's own library reads what we sign, and we read what it signs.
func TestSign_standardLibrary(t *testing.T) {
	t.Parallel()
	secret, now := NewSecret(), time.Now()
	library, err := standardwebhooks.NewWebhook(string(secret))
	if err != nil {
		t.Fatal(err)
	}
	// Its signature stands between others.
	header, err := Sign(payload, id, now, newPrivateKey(t), secret, NewSecret())
	if err != nil {
		t.Fatal(err)
	}
	if err := library.Verify(payload, header); err != nil {
		t.Errorf("the library refuses ours: %v", err)
	}
	if err := library.Verify(append(payload, ' '), header); err == nil {
		t.Error("the library takes another body")
	}

	theirs, err := library.Sign(id, now, payload)
	if err != nil {
		t.Fatal(err)
	}
	header = http.Header{}
	header.Set(standardwebhooks.HeaderWebhookID, id)
	header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	header.Set(standardwebhooks.HeaderWebhookSignature, "v1,AAAA "+theirs)
	if err := Verify(payload, header, now, secret); err != nil {
		t.Errorf("we refuse the library's: %v", err)
	}
}

// The example of the library's own tests, which all its languages share.
func TestSign_knownAnswer(t *testing.T) {
	t.Parallel()
	header, err := Sign([]byte(`{"test": 2432232314}`), "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0),
		"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := header.Get(HeaderSignature), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
}

// v1a is plain Ed25519 over the same content.
func TestSign_ed25519(t *testing.T) {
	t.Parallel()
	private := newPrivateKey(t)
	at := time.Unix(1_700_000_000, 0)
	header, err := Sign(payload, id, at, private)
	if err != nil {
		t.Fatal(err)
	}
	public, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(PublicKey(private), "whpk_"))
	if err != nil {
		t.Fatal(err)
	}
	encoded, ok := strings.CutPrefix(header.Get(HeaderSignature), "v1a,")
	signature, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || !ok {
		t.Fatalf("%s: %v", header.Get(HeaderSignature), err)
	}
	if !ed25519.Verify(public, []byte(id+".1700000000."+string(payload)), signature) {
		t.Error("the signature is not by the key over id.timestamp.body")
	}
	if err := Verify(payload, header, at, rediskit.Secret(PublicKey(private))); err != nil {
		t.Errorf("Verify: %v", err)
	}
	seed := private[:len("whsk_")] + rediskit.Secret(base64.StdEncoding.EncodeToString(decoded(t, private)[:ed25519.SeedSize]))
	if PublicKey(seed) != PublicKey(private) {
		t.Error("the seed alone is another key")
	}
	if PublicKey(NewSecret()) != "" {
		t.Error("a shared secret has a public part")
	}
}

func decoded(t *testing.T, private rediskit.Secret) []byte {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(string(private), "whsk_"))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestSign_refuses(t *testing.T) {
	t.Parallel()
	halves := append(decoded(t, newPrivateKey(t))[:32:32], decoded(t, newPrivateKey(t))[32:]...)
	for name, tt := range map[string]struct {
		id   string
		keys []rediskit.Secret
		key  bool // is at fault
	}{
		"no id":       {"", []rediskit.Secret{NewSecret()}, false},
		"full stop":   {"a.b", []rediskit.Secret{NewSecret()}, false},
		"line break":  {"a\nb", []rediskit.Secret{NewSecret()}, false},
		"no key":      {id, nil, true},
		"no prefix":   {id, []rediskit.Secret{NewSecret()[6:]}, true},
		"short":       {id, []rediskit.Secret{"whsec_" + rediskit.Secret(base64.StdEncoding.EncodeToString(make([]byte, 23)))}, true},
		"long":        {id, []rediskit.Secret{"whsec_" + rediskit.Secret(base64.StdEncoding.EncodeToString(make([]byte, 65)))}, true},
		"not base64":  {id, []rediskit.Secret{"whsec_secret-that-is-none-of-base64"}, true},
		"public":      {id, []rediskit.Secret{rediskit.Secret(PublicKey(newPrivateKey(t)))}, true},
		"mixed halfs": {id, []rediskit.Secret{"whsk_" + rediskit.Secret(base64.StdEncoding.EncodeToString(halves))}, true},
	} {
		_, err := Sign(payload, tt.id, time.Now(), tt.keys...)
		if err == nil || errors.Is(err, errKey) != tt.key {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, k := range tt.keys {
			if len(k) > 8 && strings.Contains(err.Error(), string(k[6:])) {
				t.Errorf("%s: shows the key: %v", name, err)
			}
		}
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	secret, private, now := NewSecret(), newPrivateKey(t), time.Now()
	with := func(change func(http.Header)) http.Header {
		header, err := Sign(payload, id, now, secret, private)
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(header)
		}
		return header
	}
	signature := with(nil).Get(HeaderSignature)
	hmacPart, edPart, _ := strings.Cut(signature, " ")
	for name, tt := range map[string]struct {
		header  http.Header
		payload []byte
		now     time.Time
		keys    []rediskit.Secret
		want    error
	}{
		"by the secret":      {with(nil), payload, now, []rediskit.Secret{secret}, nil},
		"by the private key": {with(nil), payload, now, []rediskit.Secret{private}, nil},
		"by one of two":      {with(nil), payload, now, []rediskit.Secret{NewSecret(), rediskit.Secret(PublicKey(private))}, nil},
		"oldest":             {with(nil), payload, now.Add(Tolerance), []rediskit.Secret{secret}, nil},
		"newest":             {with(nil), payload, now.Add(-Tolerance), []rediskit.Secret{secret}, nil},
		"too old":            {with(nil), payload, now.Add(Tolerance + time.Second), []rediskit.Secret{secret}, ErrTimestamp},
		"too new":            {with(nil), payload, now.Add(-Tolerance - time.Second), []rediskit.Secret{secret}, ErrTimestamp},
		"other key":          {with(nil), payload, now, []rediskit.Secret{NewSecret(), newPrivateKey(t)}, ErrSignature},
		"other body":         {with(nil), payload[1:], now, []rediskit.Secret{secret, private}, ErrSignature},
		"other id":           {with(func(h http.Header) { h.Set(HeaderID, "x") }), payload, now, []rediskit.Secret{secret, private}, ErrSignature},
		"other time":         {with(func(h http.Header) { h.Set(HeaderTimestamp, strconv.FormatInt(now.Unix()+1, 10)) }), payload, now, []rediskit.Secret{secret, private}, ErrSignature},
		"no id":              {with(func(h http.Header) { h.Del(HeaderID) }), payload, now, []rediskit.Secret{secret}, ErrHeaders},
		"no time":            {with(func(h http.Header) { h.Del(HeaderTimestamp) }), payload, now, []rediskit.Secret{secret}, ErrHeaders},
		"no signature":       {with(func(h http.Header) { h.Del(HeaderSignature) }), payload, now, []rediskit.Secret{secret}, ErrHeaders},
		"bad time":           {with(func(h http.Header) { h.Set(HeaderTimestamp, "today") }), payload, now, []rediskit.Secret{secret}, ErrHeaders},
		"first time":         {with(func(h http.Header) { h.Set(HeaderTimestamp, "-9223372036854775808") }), payload, now, []rediskit.Secret{secret}, ErrTimestamp},
		"versions swapped": {with(func(h http.Header) {
			h.Set(HeaderSignature, "v1a"+strings.TrimPrefix(hmacPart, "v1")+" v1"+strings.TrimPrefix(edPart, "v1a"))
		}), payload, now, []rediskit.Secret{secret, private}, ErrSignature},
		"future version":   {with(func(h http.Header) { h.Set(HeaderSignature, "v2"+strings.TrimPrefix(hmacPart, "v1")) }), payload, now, []rediskit.Secret{secret}, ErrSignature},
		"nonsense":         {with(func(h http.Header) { h.Set(HeaderSignature, "v1 v1, ,v1,!!! v1a,AAAA") }), payload, now, []rediskit.Secret{secret, private}, ErrSignature},
		"beyond the bound": {with(func(h http.Header) { h.Set(HeaderSignature, strings.Repeat("v1,AAAA ", maxSignatures)+hmacPart) }), payload, now, []rediskit.Secret{secret}, ErrSignature},
		"no key":           {with(nil), payload, now, nil, ErrSignature},
		"bad key":          {with(nil), payload, now, []rediskit.Secret{secret, "whsec_x"}, errKey},
	} {
		if err := Verify(tt.payload, tt.header, tt.now, tt.keys...); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}

func FuzzVerify(f *testing.F) {
	secret := rediskit.Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	private := newPrivateKey(f)
	now := time.Unix(1_700_000_000, 0)
	header, err := Sign(payload, id, now, secret, private)
	if err != nil {
		f.Fatal(err)
	}
	signed := header.Get(HeaderSignature)
	f.Add(payload, id, "1700000000", signed)
	f.Add([]byte{}, "", "", "")
	f.Add(payload, id, "1700000000", "v1,,, v1a, v1")
	f.Fuzz(func(t *testing.T, body []byte, msg, timestamp, signatures string) {
		header := http.Header{HeaderID: {msg}, HeaderTimestamp: {timestamp}, HeaderSignature: {signatures}}
		if Verify(body, header, now, secret, private) == nil && (string(body) != string(payload) || msg != id || timestamp != "1700000000") {
			t.Errorf("took a forgery: %q %q %q %q", body, msg, timestamp, signatures)
		}
		// What we sign of any input is what we verify.
		header, err := Sign(body, msg, now, private, secret)
		if err != nil {
			return
		}
		for _, k := range []rediskit.Secret{secret, private} {
			if err := Verify(body, header, now, k); err != nil {
				t.Errorf("refused our own: %v", err)
			}
		}
	})
}
