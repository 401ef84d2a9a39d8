package webpush

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/medicalink/postroom/rediskit"
)

// verify checks an Authorization header as a push service does and returns its claims.
func verify(t *testing.T, header string) (claims map[string]any, key string) {
	t.Helper()
	token, key, ok := strings.Cut(strings.TrimPrefix(header, "vapid t="), ", k=")
	parts := strings.Split(token, ".")
	if !ok || len(parts) != 3 || !strings.HasPrefix(header, "vapid ") {
		t.Fatalf("not of the form of RFC 8292: %q", header)
	}
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), raw(t, key))
	if err != nil {
		t.Fatal(err)
	}
	signature := raw(t, parts[2])
	if len(signature) != 64 {
		t.Fatalf("a signature of %d bytes", len(signature))
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	r, z := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	if !ecdsa.Verify(public, digest[:], r, z) {
		t.Fatal("the signature is not of that key")
	}
	var head map[string]any
	if err := json.Unmarshal(raw(t, parts[0]), &head); err != nil || head["alg"] != "ES256" || head["typ"] != "JWT" {
		t.Fatalf("head %v, %v", head, err)
	}
	if err := json.Unmarshal(raw(t, parts[1]), &claims); err != nil {
		t.Fatal(err)
	}
	return claims, key
}

// RFC 8292, section 2.4: holds verify itself against a signature that is not ours.
func TestVerify_exampleOfRFC8292(t *testing.T) {
	t.Parallel()
	claims, _ := verify(t, "vapid t=eyJ0eXAiOiJKV1QiLCJhbGciOiJFUzI1NiJ9.eyJhdWQiOiJodHRwczovL3B1c2guZXhhbXBsZS5uZXQiLCJleHAiOjE0NTM1"+
		"MjM3NjgsInN1YiI6Im1haWx0bzpwdXNoQGV4YW1wbGUuY29tIn0.i3CYb7t4xfxCDquptFOepC9GAu_HLGkMlMuCGSK2rpiUfnK9ojFwDXb1JrErtmysazNjjvW2L9Ok"+
		"SSHzvoD1oA, k=BA1Hxzyi1RUM1b5wjxsn7nGxAszw2u61m164i3MrAIxHF6YK5h4SDYic-dRuU_RCPCfA5aq9ojSwk5Y2EmClBPs")
	if claims["aud"] != "https://push.example.net" || claims["sub"] != "mailto:push@example.com" {
		t.Errorf("claims %v", claims)
	}
}

func newKeyOf(t *testing.T) *Key {
	t.Helper()
	key, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestSigner_header(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		key := newKeyOf(t)
		s := &signer{key: key, subject: "mailto:it@clinic.example"}
		header := func(origin string) string {
			t.Helper()
			h, err := s.header(origin)
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		first := header("https://push.example")
		claims, k := verify(t, first)
		if claims["aud"] != "https://push.example" || claims["sub"] != "mailto:it@clinic.example" || k != key.PublicKey() {
			t.Errorf("claims %v of key %s", claims, k)
		}
		if other, _ := verify(t, header("https://other.example")); other["aud"] != "https://other.example" {
			t.Errorf("a token for %v", other["aud"])
		}
		// At every time within two days: valid for 6 hours at least, for 24 at most.
		tokens := map[string]bool{}
		for range 48 {
			h := header("https://push.example")
			tokens[h] = true
			claims, _ := verify(t, h)
			left := time.Until(time.Unix(int64(claims["exp"].(float64)), 0))
			if left > 24*time.Hour || left < tokenRenew {
				t.Errorf("a token that is valid for %v", left)
			}
			time.Sleep(time.Hour)
		}
		if len(tokens) < 4 || len(tokens) > 9 {
			t.Errorf("%d tokens in two days: want one for 6 hours", len(tokens))
		}
	})
}

// Users name the origins: they must not fill the memory.
func TestSigner_header_isBounded(t *testing.T) {
	t.Parallel()
	s := &signer{key: newKeyOf(t), subject: "mailto:it@clinic.example"}
	for i := range 3 * maxOrigins {
		if _, err := s.header(fmt.Sprintf("https://%d.example", i)); err != nil {
			t.Fatal(err)
		}
		if len(s.headers) > maxOrigins {
			t.Fatalf("%d tokens are kept", len(s.headers))
		}
	}
}

func TestOrigin(t *testing.T) {
	t.Parallel()
	for endpoint, want := range map[string]string{
		"https://fcm.googleapis.com/fcm/send/abc": "https://fcm.googleapis.com",
		"https://Push.Example:443/x":              "https://push.example",
		"https://push.example:8443/x":             "https://push.example:8443",
		"https://[2001:db8::1]:8443/x":            "https://[2001:db8::1]:8443",
	} {
		u, err := url.Parse(endpoint)
		if err != nil {
			t.Fatal(err)
		}
		if got := origin(u); got != want {
			t.Errorf("%s: %s, want %s", endpoint, got, want)
		}
	}
}

func TestParseKey(t *testing.T) {
	t.Parallel()
	key := newKeyOf(t)
	plain := string(key.PrivateKey())
	sec1, err := x509.MarshalECPrivateKey(key.private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key.private)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	for name, text := range map[string]string{
		"base64url":  plain,
		"a new line": plain + "\n",
		"padded":     plain + "=",
		"base64":     base64.StdEncoding.EncodeToString(raw(t, plain)),
		"SEC 1":      block("EC PRIVATE KEY", sec1),
		"PKCS 8":     block("PRIVATE KEY", pkcs8),
		"openssl":    block("EC PARAMETERS", []byte{1}) + block("EC PRIVATE KEY", sec1),
	} {
		got, err := ParseKey(rediskit.Secret(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.PublicKey() != key.PublicKey() || got.PrivateKey() != key.PrivateKey() || len(got.PublicKey()) != 87 {
			t.Errorf("%s: another key", name)
		}
	}

	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	wrongCurve, err := x509.MarshalPKCS8PrivateKey(p384)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	wrongKind, err := x509.MarshalPKCS8PrivateKey(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"nothing":        "",
		"the public key": key.PublicKey(),
		"31 bytes":       plain[:42],
		"zero":           strings.Repeat("A", 43),
		"over the order": strings.Repeat("_", 42) + "8",
		"P-384":          block("PRIVATE KEY", wrongCurve),
		"RSA":            block("PRIVATE KEY", wrongKind),
		"a public PEM":   block("PUBLIC KEY", sec1),
		"broken PEM":     block("EC PRIVATE KEY", sec1[:20]),
		"half a PEM":     "-----BEGIN EC PRIVATE KEY-----\n" + plain,
	} {
		got, err := ParseKey(rediskit.Secret(text))
		if err == nil {
			t.Errorf("%s: taken as %v", name, got)
		} else if text != "" && strings.Contains(err.Error(), strings.TrimSpace(text)[:10]) && !strings.HasPrefix(text, "-----") {
			t.Errorf("%s: the error shows it: %v", name, err)
		}
	}
}

func TestKey_neverPrintsThePrivateHalf(t *testing.T) {
	t.Parallel()
	key := newKeyOf(t)
	private := string(key.PrivateKey())
	number := new(big.Int).SetBytes(raw(t, private))
	text, err := json.Marshal(map[string]any{"key": key})
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{
		fmt.Sprint(key), fmt.Sprintf("%v %+v %#v %s %x %d", key, key, key, key, key, key),
		fmt.Sprintf("%+v", Config{Key: key}), string(text), fmt.Sprint(key.PrivateKey()),
	} {
		if strings.Contains(shown, private) || strings.Contains(shown, number.String()) || strings.Contains(shown, number.Text(16)) {
			t.Errorf("shown: %s", shown)
		}
	}
}

func TestCheckSubject(t *testing.T) {
	t.Parallel()
	for _, subject := range []string{"mailto:it@clinic.example", "https://clinic.example/contact", "https://clinic.example"} {
		if err := CheckSubject(subject); err != nil {
			t.Errorf("%s: %v", subject, err)
		}
	}
	for _, subject := range []string{
		"", "it@clinic.example", "mailto:", "mailto: it@clinic.example", "mailto:<it@clinic.example>", "mailto:it@localhost",
		"mailto:it@clinic", "http://clinic.example", "https://localhost:8080", "https://127.0.0.1/", "https://", "ftp://clinic.example",
		"https://me:secret@clinic.example", "mailto:it@clinic.example,ada@clinic.example",
	} {
		if err := CheckSubject(subject); err == nil {
			t.Errorf("%q was taken", subject)
		}
	}
}
