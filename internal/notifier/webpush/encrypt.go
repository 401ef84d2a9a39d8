package webpush

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

const (
	// recordSize is that of the one record of a message. A push service need not take
	// more than 4,096 bytes (RFC 8030, section 7.2).
	recordSize = 4096
	saltLen    = 16
	keyLen     = 65 // an uncompressed point of P-256
	headerLen  = saltLen + 4 + 1 + keyLen
	tagLen     = 16

	// maxPlaintext leaves room for the header, the tag and the delimiter.
	maxPlaintext = recordSize - headerLen - tagLen - 1

	// paddingBlock is what the length of a plaintext is rounded up to.
	paddingBlock = 512
)

// encrypt returns the body of a push message to the browser with this key and secret,
// by RFC 8291. plaintext is at most maxPlaintext bytes; it is not changed.
func encrypt(plaintext, p256dh, auth []byte) ([]byte, error) {
	var salt [saltLen]byte
	_, _ = rand.Read(salt[:]) // never fails
	sender, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return encryptWith(plaintext, paddedLen(len(plaintext)), p256dh, auth, sender, salt[:])
}

// paddedLen returns the length that a plaintext of n bytes is padded to.
func paddedLen(n int) int {
	return min((n+paddingBlock)/paddingBlock*paddingBlock, maxPlaintext)
}

func encryptWith(plaintext []byte, padTo int, p256dh, auth []byte, sender *ecdh.PrivateKey, salt []byte) ([]byte, error) {
	receiver, err := ecdh.P256().NewPublicKey(p256dh)
	if err != nil {
		return nil, fmt.Errorf("parse key of subscription: %w", err)
	}
	secret, err := sender.ECDH(receiver)
	if err != nil {
		return nil, fmt.Errorf("agree on key: %w", err)
	}
	public := sender.PublicKey().Bytes()
	info := "WebPush: info\x00" + string(receiver.Bytes()) + string(public)
	ikm, err := hkdf.Key(sha256.New, secret, auth, info, 32)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	return seal(plaintext, padTo, ikm, salt, public)
}

// seal writes plaintext as the only record of aes128gcm, RFC 8188.
func seal(plaintext []byte, padTo int, ikm, salt, keyID []byte) ([]byte, error) {
	prk, err := hkdf.Extract(sha256.New, ikm, salt)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	key, err := hkdf.Expand(sha256.New, prk, "Content-Encoding: aes128gcm\x00", 16)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	nonce, err := hkdf.Expand(sha256.New, prk, "Content-Encoding: nonce\x00", 12)
	if err != nil {
		return nil, fmt.Errorf("derive nonce: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	// The record is the text, 2 for "the last record", and zeros.
	record := make([]byte, max(len(plaintext), padTo)+1)
	copy(record, plaintext)
	record[len(plaintext)] = 2

	body := make([]byte, 0, saltLen+4+1+len(keyID)+len(record)+tagLen)
	body = append(body, salt...)
	body = binary.BigEndian.AppendUint32(body, recordSize)
	body = append(body, byte(len(keyID))) //nolint:gosec // none, or a key of 65 bytes
	body = append(body, keyID...)
	return aead.Seal(body, nonce, record, nil), nil
}
