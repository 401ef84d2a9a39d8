package cli

import (
	"errors"
	"math"
	"strconv"
	"strings"

	"golang.org/x/time/rate"
)

// Rate is a flag whose value is a number of events per second, written N/s, N/m or N/h.
type Rate struct {
	// Limit is the default until the flag is given; 0 is none.
	Limit rate.Limit

	text string
}

func (r *Rate) String() string {
	if r.text == "" && r.Limit > 0 {
		return strconv.FormatFloat(float64(r.Limit), 'g', -1, 64) + "/s"
	}
	return r.text
}

// Type names the value in help texts.
func (r *Rate) Type() string { return "N/s" }

// Set reads the value.
func (r *Rate) Set(s string) error {
	number, unit, _ := strings.Cut(s, "/")
	n, err := strconv.ParseFloat(number, 64)
	seconds := map[string]float64{"s": 1, "m": 60, "h": 3600}[unit]
	if err != nil || seconds == 0 || !(n > 0) || math.IsInf(n, 0) {
		return errors.New("must look like 100/s, 30/m or 500/h")
	}
	r.text, r.Limit = s, rate.Limit(n/seconds)
	return nil
}

// Limiter lets events through at that rate, at most so many at once. A tenth of a
// second's worth at once keeps the pace even.
func (r *Rate) Limiter(most int) *rate.Limiter {
	return rate.NewLimiter(r.Limit, int(min(max(r.Limit/10, 1), rate.Limit(most))))
}
