package webhook

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/medicalink/postroom/rediskit"
)

// The headers of a webhook.
const (
	HeaderID        = "Webhook-Id"
	HeaderTimestamp = "Webhook-Timestamp"
	HeaderSignature = "Webhook-Signature"
)

// Tolerance is how far the timestamp of a webhook may be from a receiver's clock.
const Tolerance = 5 * time.Minute

const (
	prefixSecret  = "whsec_" // of HMAC
	prefixPrivate = "whsk_"  // of Ed25519
	prefixPublic  = "whpk_"

	versionHMAC    = "v1"
	versionEd25519 = "v1a"

	// Bounds of an HMAC key in bytes, and the length of those that NewKey makes: that
	// of the hash.
	minSecret, maxSecret, newSecret = 24, 64, 32

	// maxSignatures bounds what Verify looks at: each costs a signature's verification.
	maxSignatures = 16
)

// Errors of [Verify].
var (
	// ErrHeaders means that a header is missing or malformed.
	ErrHeaders = errors.New("webhook: missing or malformed header")
	// ErrTimestamp means that the webhook is older or newer than the tolerance: it
	// may be a copy of an earlier one.
	ErrTimestamp = errors.New("webhook: timestamp is too far from now")
	// ErrSignature means that no signature is by one of the keys.
	ErrSignature = errors.New("webhook: no matching signature")
)

var errKey = errors.New("webhook key: want whsec_ and 24 to 64 bytes, or whsk_ or whpk_ and a key of Ed25519, in base64")

// NewSecret returns a new key for HMAC-SHA256 (v1), which receiver and sender share.
func NewSecret() rediskit.Secret {
	key := make([]byte, newSecret)
	_, _ = rand.Read(key) // never fails
	return rediskit.Secret(prefixSecret + base64.StdEncoding.EncodeToString(key))
}

// NewPrivateKey returns a new key for Ed25519 (v1a): the receiver needs only its
// [PublicKey], with which nobody can sign.
func NewPrivateKey() (rediskit.Secret, error) {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return "", fmt.Errorf("make webhook key: %w", err)
	}
	return rediskit.Secret(prefixPrivate + base64.StdEncoding.EncodeToString(private)), nil
}

// PublicKey returns the public part (whpk_…) of a key of Ed25519, and "" for others.
func PublicKey(secret rediskit.Secret) string {
	k, err := parseKey(string(secret))
	if err != nil || k.private == nil {
		return ""
	}
	return prefixPublic + base64.StdEncoding.EncodeToString(k.public)
}

// key is one of its fields, or a pair.
type key struct {
	secret  []byte
	private ed25519.PrivateKey
	public  ed25519.PublicKey
}

// parseKey reads a key in the form in which it is given out. Its error shows nothing of
// it.
func parseKey(text string) (key, error) {
	for _, prefix := range []string{prefixSecret, prefixPrivate, prefixPublic} {
		encoded, ok := strings.CutPrefix(text, prefix)
		if !ok {
			continue
		}
		raw, err := base64.StdEncoding.Strict().DecodeString(encoded)
		if err != nil {
			return key{}, errKey
		}
		switch n := len(raw); {
		case prefix == prefixSecret && n >= minSecret && n <= maxSecret:
			return key{secret: raw}, nil
		case prefix == prefixPrivate && (n == ed25519.SeedSize || n == ed25519.PrivateKeySize):
			private := ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize])
			if n == ed25519.PrivateKeySize && !private.Equal(ed25519.PrivateKey(raw)) {
				return key{}, errKey // halves of two keys, whose signatures would give the seed away
			}
			return key{private: private, public: private.Public().(ed25519.PublicKey)}, nil
		case prefix == prefixPublic && n == ed25519.PublicKeySize:
			return key{public: raw}, nil
		}
	}
	return key{}, errKey
}

// content is what is signed.
func content(id, timestamp string, payload []byte) []byte {
	b := make([]byte, 0, len(id)+len(timestamp)+len(payload)+2)
	b = append(append(append(append(b, id...), '.'), timestamp...), '.')
	return append(b, payload...)
}

// Sign returns the headers of a webhook that is sent at the time at, with a signature
// by each of the keys, in their order. id must have no full stop, which separates what
// is signed. Its error shows nothing of a key.
func Sign(payload []byte, id string, at time.Time, keys ...rediskit.Secret) (http.Header, error) {
	if !idForm(id) {
		return nil, errors.New("sign webhook: its id must be 1 to 255 visible characters of ASCII other than a full stop")
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("sign webhook: none is given: %w", errKey)
	}
	timestamp := strconv.FormatInt(at.Unix(), 10)
	signed := content(id, timestamp, payload)
	signatures := make([]string, len(keys))
	for i, text := range keys {
		k, err := parseKey(string(text))
		switch {
		case err != nil:
			return nil, fmt.Errorf("sign webhook: %w", err)
		case k.secret != nil:
			signatures[i] = versionHMAC + "," + base64.StdEncoding.EncodeToString(mac(k.secret, signed))
		case k.private != nil:
			signatures[i] = versionEd25519 + "," + base64.StdEncoding.EncodeToString(ed25519.Sign(k.private, signed))
		default:
			return nil, fmt.Errorf("sign webhook: a public key cannot: %w", errKey)
		}
	}
	return http.Header{
		HeaderID: {id}, HeaderTimestamp: {timestamp}, HeaderSignature: {strings.Join(signatures, " ")},
	}, nil
}

func idForm(id string) bool {
	return id != "" && len(id) <= 255 && strings.IndexFunc(id, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '.' }) < 0
}

func mac(secret, signed []byte) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write(signed)
	return h.Sum(nil)
}

// Verify reports whether payload, the body as it came, was signed by one of the keys
// at most [Tolerance] before or after now. Keys are whsec_…, whpk_… or whsk_…; give it
// the old and the new one while they change. Its error wraps [ErrHeaders],
// [ErrTimestamp] or [ErrSignature], or says that a key is none. A receiver then looks
// whether it has seen the id before.
func Verify(payload []byte, header http.Header, now time.Time, keys ...rediskit.Secret) error {
	id, timestamp, signatures := header.Get(HeaderID), header.Get(HeaderTimestamp), header.Get(HeaderSignature)
	if id == "" || signatures == "" {
		return ErrHeaders
	}
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return ErrHeaders
	}
	// Compared as seconds: a time of any int64 would overflow.
	if low, high := now.Add(-Tolerance).Unix(), now.Add(Tolerance).Unix(); seconds < low || seconds > high {
		return ErrTimestamp
	}
	parsed := make([]key, len(keys))
	for i, text := range keys {
		if parsed[i], err = parseKey(string(text)); err != nil {
			return err
		}
	}
	signed := content(id, timestamp, payload)
	looked := 0
	for one := range strings.FieldsSeq(signatures) {
		if looked++; looked > maxSignatures {
			break
		}
		version, encoded, ok := strings.Cut(one, ",")
		if !ok {
			continue
		}
		signature, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			continue
		}
		for _, k := range parsed {
			if version == versionHMAC && k.secret != nil && hmac.Equal(signature, mac(k.secret, signed)) ||
				version == versionEd25519 && k.public != nil && ed25519.Verify(k.public, signed, signature) {
				return nil
			}
		}
	}
	return ErrSignature
}
