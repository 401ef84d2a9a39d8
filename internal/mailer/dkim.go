package mailer

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"github.com/emersion/go-msgauth/dkim"
)

// DKIM signs messages (RFC 6376). RSA-2048 costs about a millisecond of CPU a
// message, Ed25519 (RFC 8463) a tenth of it, but not every receiver verifies it.
type DKIM struct {
	Domain   string        // d=, the domain of From or a parent of it
	Selector string        // s=
	Signer   crypto.Signer // RSA of at least 1024 bits or Ed25519; may live in an HSM
}

// ParseDKIMKey reads a private key in PEM form (PKCS #8 or PKCS #1).
func ParseDKIMKey(pemBytes []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(pemBytes)
	if block == nil {
		return nil, problem("DKIM key holds no PEM block; want -----BEGIN PRIVATE KEY-----")
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, problem("DKIM key is neither PKCS #8 nor PKCS #1, or is encrypted")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, problem("DKIM key is neither RSA nor Ed25519")
	}
	return signer, nil
}

// dkimHeaders are the fields signed. Listing a field once more than it occurs
// keeps anyone from adding another one (RFC 6376 §5.4). Date and Message-ID
// are left out on purpose: relays such as Amazon SES replace both, which would
// break the signature. RFC 8058 requires both List-Unsubscribe fields.
var dkimHeaders = [...]string{
	"From", "From", "To", "To", "Subject", "Subject", "Reply-To", "Reply-To", "Cc",
	"MIME-Version", "Content-Type", "Content-Type", "Content-Transfer-Encoding",
	"In-Reply-To", "References", "Auto-Submitted",
	"List-Unsubscribe", "List-Unsubscribe", "List-Unsubscribe-Post", "List-Unsubscribe-Post",
}

type signer struct{ options dkim.SignOptions }

func newSigner(cfg *DKIM) (*signer, error) {
	switch {
	case !validDomain(cfg.Domain):
		return nil, problem("DKIM domain is missing or invalid")
	case !validDomain(cfg.Selector):
		return nil, problem("DKIM selector is missing or invalid")
	case cfg.Signer == nil:
		return nil, problem("DKIM key is missing")
	}
	switch pub := cfg.Signer.Public().(type) {
	case *rsa.PublicKey:
		if pub.N.BitLen() < 1024 { // RFC 8301 §3.2
			return nil, problem("DKIM key is RSA below 1024 bits, which receivers reject; use 2048")
		}
	case ed25519.PublicKey:
	default:
		return nil, fmt.Errorf("DKIM key is %T; want RSA or Ed25519", pub)
	}
	return &signer{dkim.SignOptions{
		Domain:                 cfg.Domain,
		Selector:               cfg.Selector,
		Signer:                 cfg.Signer,
		Hash:                   crypto.SHA256,
		HeaderCanonicalization: dkim.CanonicalizationRelaxed,
		BodyCanonicalization:   dkim.CanonicalizationRelaxed,
		HeaderKeys:             dkimHeaders[:],
	}}, nil
}

// sign returns the message with its signature in front.
func (s *signer) sign(raw []byte) ([]byte, error) {
	var out bytes.Buffer
	out.Grow(len(raw) + 1024)
	options := s.options
	if err := dkim.Sign(&out, bytes.NewReader(raw), &options); err != nil {
		return nil, fmt.Errorf("sign message: %w", err)
	}
	return out.Bytes(), nil
}
