package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/medicalink/postroom/bench/internal/report"
)

func TestMeasurement_RateAndCPU(t *testing.T) {
	t.Parallel()
	m := measurement{mails: 2001, span: 500 * time.Millisecond}
	if got := m.rate(); got != 4000 {
		t.Errorf("rate %v, want 4000: 2,000 intervals in half a second", got)
	}
	if got := (measurement{mails: 2000}).per1000(3 * time.Second); got != 1.5 {
		t.Errorf("CPU %v s per 1,000, want 1.5", got)
	}
}

func TestPlot_HasABarForEachSystemInBothCharts(t *testing.T) {
	t.Parallel()
	figures := report.Spread{Median: 2, Min: 1, Max: 3}
	svg := plot([]row{{Name: "a", Rate: figures, Worker: figures}, {Name: "b", Rate: figures, Worker: figures}})
	if bars := bytes.Count(svg, []byte("<rect ")); bars != 4 {
		t.Errorf("%d bars, want 4", bars)
	}
}
