package rediskit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// Secret is a password or another value that must not be printed. Every fmt
// verb and JSON show "<secret>", or nothing when it is empty; string(s) is the
// one way to read it.
type Secret string

const (
	masked        = "<secret>"
	maxSecretFile = 64 << 10 // bytes; a bigger file is the wrong file
)

// ReadSecret reads a secret from a file of 1 byte to 64 KiB, such as one that an
// orchestrator mounts. Line ends at its end are dropped. The error says what is
// wanted and shows nothing of the content.
func ReadSecret(path string) (Secret, error) {
	const want = "want the path of a readable file: "
	f, err := os.Open(path)
	if err != nil {
		return "", errors.New(want + pathCause(err))
	}
	defer func() { _ = f.Close() }()
	content, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	value := strings.TrimRight(string(content), "\r\n")
	switch {
	case err != nil:
		return "", errors.New(want + pathCause(err))
	case len(content) > maxSecretFile:
		return "", errors.New("want a file of at most 64 KiB")
	case value == "":
		return "", errors.New("want a file that is not empty")
	}
	return Secret(value), nil
}

// pathCause drops the path, which the caller shows with the variable.
func pathCause(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err.Error()
	}
	return err.Error()
}

// String returns "<secret>", or "" for an empty value.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return masked
}

// Format writes the masked value for every verb, %#v and %x included.
func (s Secret) Format(w fmt.State, _ rune) { _, _ = io.WriteString(w, s.String()) }

// MarshalJSON writes the masked value.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// MarshalText writes the masked value: XML, YAML and log encoders ask for it.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
