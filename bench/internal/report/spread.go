// Package report holds what the benchmarks' reports share: figures with their spread, bar charts, and the words on the
// machine that they ran on.
package report

import (
	"math"
	"slices"
)

// Spread is the median of some figures with the smallest and the largest.
type Spread struct{ Median, Min, Max float64 }

// SpreadOf is the spread of one figure over the rounds, of which there is at least one.
func SpreadOf[T any](rounds []T, figure func(T) float64) Spread {
	values := make([]float64, len(rounds))
	for i, r := range rounds {
		values[i] = figure(r)
	}
	slices.Sort(values)
	n := len(values)
	return Spread{(values[(n-1)/2] + values[n/2]) / 2, values[0], values[n-1]}
}

// Quantile is the smallest value that at least the share q of the values do not exceed. There is at least one value.
func Quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(max(int(math.Ceil(q*float64(len(sorted))))-1, 0), len(sorted)-1)]
}
