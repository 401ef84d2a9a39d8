package egress

import (
	"math"
	"net/http"
	"strings"
	"time"
)

// ParseRetryAfter returns how long the header Retry-After asks to wait, counted from
// now, and false if it is absent or neither of its two forms (RFC 9110, 10.2.3):
// seconds, or a date in any of the formats of HTTP. A date in the past is no wait.
// There is no upper bound: the caller sets one.
func ParseRetryAfter(header string, now time.Time) (time.Duration, bool) {
	header = strings.Trim(header, " \t")
	if header == "" {
		return 0, false
	}
	if strings.Trim(header, "0123456789") == "" {
		const most = math.MaxInt64 / int64(time.Second)
		var seconds int64
		for _, digit := range []byte(header) {
			seconds = seconds*10 + int64(digit-'0')
			if seconds > most {
				return math.MaxInt64, true
			}
		}
		return time.Duration(seconds) * time.Second, true
	}
	at, err := http.ParseTime(header)
	if err != nil {
		return 0, false
	}
	return max(at.Sub(now), 0), true
}
