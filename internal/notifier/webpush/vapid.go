package webpush

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/mail"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/medicalink/postroom/rediskit"
)

const (
	// tokenLife is how long a token is valid: at most 24 hours (RFC 8292, section 2),
	// of which a clock that is wrong on either side takes its part.
	tokenLife = 12 * time.Hour
	// tokenRenew is how much of its life a token has left when it is replaced.
	tokenRenew = 6 * time.Hour
	// maxOrigins bounds the tokens that are kept. There are some five push services;
	// users can hand in others.
	maxOrigins = 64
)

var b64 = base64.RawURLEncoding.Strict()

// A Key is the pair of keys by which push services know us (VAPID, RFC 8292). It stays
// the same for years: a browser's subscription is bound to it, and a new key means that
// every browser has to subscribe again. Every format verb shows the public half only.
type Key struct {
	private *ecdsa.PrivateKey
	public  string
}

// GenerateKey makes a new key.
func GenerateKey() (*Key, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make VAPID key: %w", err)
	}
	return newKey(private)
}

// ParseKey reads a private key as the web-push tools print it, 32 bytes in base64url,
// or as PEM (EC PRIVATE KEY or PRIVATE KEY) on the curve P-256. Its errors say nothing
// of what was read.
func ParseKey(text rediskit.Secret) (*Key, error) {
	s := strings.TrimSpace(string(text))
	if strings.HasPrefix(s, "-----BEGIN") {
		return parsePEM(s)
	}
	raw, err := decode64(s)
	if err != nil || len(raw) != 32 {
		return nil, errors.New("parse VAPID key: want the private key as 32 bytes in base64url (43 characters), or as PEM")
	}
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw)
	if err != nil {
		return nil, errors.New("parse VAPID key: the 32 bytes are no private key of the curve P-256")
	}
	return newKey(private)
}

func parsePEM(s string) (*Key, error) {
	for rest := []byte(s); ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			return nil, errors.New("parse VAPID key: the PEM has no EC PRIVATE KEY and no PRIVATE KEY")
		}
		var key any
		var err error
		switch block.Type {
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		default: // openssl writes EC PARAMETERS first
			continue
		}
		private, ok := key.(*ecdsa.PrivateKey)
		if err != nil || !ok || private.Curve != elliptic.P256() {
			return nil, errors.New("parse VAPID key: the PEM holds no private key of the curve P-256")
		}
		return newKey(private)
	}
}

func newKey(private *ecdsa.PrivateKey) (*Key, error) {
	public, err := private.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode VAPID key: %w", err)
	}
	return &Key{private: private, public: b64.EncodeToString(public)}, nil
}

// PublicKey returns what a page gives to PushManager.subscribe as applicationServerKey:
// 87 characters of base64url. It is no secret.
func (k *Key) PublicKey() string { return k.public }

// PrivateKey returns the private key in the form that [ParseKey] and other tools read.
func (k *Key) PrivateKey() rediskit.Secret {
	raw, err := k.private.Bytes()
	if err != nil {
		return "" // a key of ours is on the curve
	}
	return rediskit.Secret(b64.EncodeToString(raw))
}

// String returns the public key.
func (k *Key) String() string { return "VAPID key " + k.public }

// Format writes the public key for every verb.
func (k *Key) Format(w fmt.State, _ rune) { _, _ = io.WriteString(w, k.String()) }

// decode64 reads base64url, and the other alphabet and padding that some libraries use.
func decode64(s string) ([]byte, error) {
	s = strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(s, "="))
	return b64.DecodeString(s)
}

// CheckSubject says whether push services can reach the operator at subject, which goes
// to them with every message: mailto: with an address, or an https URL. Some services
// refuse names that only mean something inside (RFC 8292, section 2.1; Apple).
func CheckSubject(subject string) error {
	const want = "VAPID subject: want mailto: and an address, or an https URL, at which the push services reach you"
	var host string
	if address, ok := strings.CutPrefix(subject, "mailto:"); ok {
		parsed, err := mail.ParseAddress(address)
		if err != nil || parsed.Address != address {
			return errors.New(want)
		}
		host = address[strings.LastIndexByte(address, '@')+1:]
	} else {
		u, err := url.Parse(subject)
		if err != nil || u.Scheme != "https" || u.User != nil {
			return errors.New(want)
		}
		host = u.Hostname()
	}
	if !strings.Contains(strings.Trim(host, "."), ".") || net.ParseIP(host) != nil {
		return errors.New(want + "; Apple refuses hosts that are not on the internet, such as localhost")
	}
	return nil
}

// signer makes the Authorization header for each push service and keeps it while it is
// valid: a signature for every message would be the costliest part of it.
type signer struct {
	key     *Key
	subject string

	mu      sync.Mutex // owns headers
	headers map[string]header
}

type header struct {
	value string
	renew time.Time
}

// header returns the value for a message to an endpoint of origin.
func (s *signer) header(origin string) (string, error) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if h, ok := s.headers[origin]; ok && now.Before(h.renew) {
		return h.value, nil
	}
	expires := now.Add(tokenLife)
	token, err := s.token(origin, expires)
	if err != nil {
		return "", err
	}
	if s.headers == nil || len(s.headers) >= maxOrigins {
		s.headers = map[string]header{}
	}
	value := "vapid t=" + token + ", k=" + s.key.public
	s.headers[origin] = header{value: value, renew: expires.Add(-tokenRenew)}
	return value, nil
}

// token returns a JWT signed with ES256 (RFC 7515, RFC 7518 section 3.4).
func (s *signer) token(origin string, expires time.Time) (string, error) {
	claims, err := json.Marshal(struct {
		Aud string `json:"aud"`
		Exp int64  `json:"exp"`
		Sub string `json:"sub"`
	}{origin, expires.Unix(), s.subject})
	if err != nil {
		return "", fmt.Errorf("encode VAPID token: %w", err)
	}
	signed := b64.EncodeToString([]byte(`{"typ":"JWT","alg":"ES256"}`)) + "." + b64.EncodeToString(claims)
	digest := sha256.Sum256([]byte(signed))
	r, z, err := ecdsa.Sign(rand.Reader, s.key.private, digest[:])
	if err != nil {
		return "", fmt.Errorf("sign VAPID token: %w", err)
	}
	var signature [64]byte
	r.FillBytes(signature[:32])
	z.FillBytes(signature[32:])
	return signed + "." + b64.EncodeToString(signature[:]), nil
}

// origin returns the origin of an endpoint (RFC 6454, section 6.1).
func origin(u *url.URL) string {
	host := strings.ToLower(u.Hostname())
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port := u.Port(); port != "" && port != "443" {
		host += ":" + port
	}
	return "https://" + host
}
