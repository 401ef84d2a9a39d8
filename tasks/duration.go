package tasks

import (
	"errors"
	"strings"
	"time"
)

// A Duration is a time.Duration that is a text such as "10m" in JSON, in the form
// of time.ParseDuration: a day is "24h".
type Duration time.Duration

var errDuration = errors.New("a duration must be a text such as 90s, 10m or 24h")

// String returns d as MarshalText writes it.
func (d Duration) String() string {
	text := time.Duration(d).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// MarshalText returns d without the units that are zero at its end: "10m" and not
// "10m0s".
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what time.ParseDuration reads. The error does not repeat the
// text.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return errDuration
	}
	*d = Duration(parsed)
	return nil
}
