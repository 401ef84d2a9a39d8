package egress

import (
	"math"
	"net/http"
	"testing"
	"time"
)

func TestParseRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		header string
		want   time.Duration
		ok     bool
	}{
		{"", 0, false},
		{"0", 0, true},
		{"120", 2 * time.Minute, true},
		{" 120\t", 2 * time.Minute, true},
		{"9223372036", 9223372036 * time.Second, true},
		{"9223372037", math.MaxInt64, true},
		{"99999999999999999999999999999999", math.MaxInt64, true},
		{"-1", 0, false},
		{"+1", 0, false},
		{"1.5", 0, false},
		{"1e3", 0, false},
		{"soon", 0, false},
		{"Sun, 01 Mar 2026 12:01:00 GMT", time.Minute, true},
		{"Sunday, 01-Mar-26 12:01:00 GMT", time.Minute, true}, // RFC 850
		{"Sun Mar  1 12:01:00 2026", time.Minute, true},       // asctime
		{"Sun, 01 Mar 2026 11:59:00 GMT", 0, true},
		{"Sun, 01 Mar 2026", 0, false},
	} {
		if got, ok := ParseRetryAfter(tt.header, now); got != tt.want || ok != tt.ok {
			t.Errorf("ParseRetryAfter(%q) = %s, %v, want %s, %v", tt.header, got, ok, tt.want, tt.ok)
		}
	}
}

func FuzzParseRetryAfter(f *testing.F) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, seed := range []string{"", "120", "99999999999999999999", "Sun, 01 Mar 2026 12:01:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		got, ok := ParseRetryAfter(header, now)
		if got < 0 || !ok && got != 0 {
			t.Errorf("%s, %v", got, ok)
		}
		// What HTTP itself would write is read as it was meant.
		if ok && got < 1000*time.Hour {
			date := now.Add(got).Truncate(time.Second).Format(http.TimeFormat)
			if again, ok := ParseRetryAfter(date, now); !ok || again != got.Truncate(time.Second) {
				t.Errorf("%q is %s, as a date %s", header, got, again)
			}
		}
	})
}
