package rediskit

import (
	"encoding/json"
	"fmt"
	"io"
)

// Secret is a password or another value that must not be printed. Every fmt
// verb and JSON show "<secret>", or nothing when it is empty; string(s) is the
// one way to read it.
type Secret string

const masked = "<secret>"

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
