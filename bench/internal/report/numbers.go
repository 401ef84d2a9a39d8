package report

import (
	"fmt"
	"math"
	"strconv"
)

// Count writes 20000 as 20,000.
func Count(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Whole writes a figure without decimals, as Count does.
func Whole(v float64) string {
	if v < 0 {
		return "-" + Whole(-v)
	}
	return Count(int(math.Round(v)))
}

// Fixed writes figures with so many decimals.
func Fixed(decimals int) func(float64) string {
	return func(v float64) string { return strconv.FormatFloat(v, 'f', decimals, 64) }
}
