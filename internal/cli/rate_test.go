package cli

import "testing"

func TestRate_Set(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]float64{"100/s": 100, "30/m": 0.5, "500/h": 500.0 / 3600, "0.5/s": 0.5} {
		var r Rate
		if err := r.Set(text); err != nil || float64(r.Limit) != want || r.String() != text {
			t.Errorf("Set(%q): %v, %v per second, printed as %s", text, err, r.Limit, r.String())
		}
	}
	for _, text := range []string{"", "100", "100/d", "-1/s", "0/s", "Inf/s", "NaN/s", "x/s"} {
		var r Rate
		if err := r.Set(text); err == nil || r.Limit != 0 {
			t.Errorf("Set(%q) is accepted", text)
		}
	}
	if r := (Rate{Limit: 50}); r.String() != "50/s" {
		t.Errorf("the default is printed as %q", r.String())
	}
}

func TestRate_Limiter(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		limit  Rate
		most   int
		atOnce int
	}{{Rate{Limit: 100}, 1000, 10}, {Rate{Limit: 100}, 5, 5}, {Rate{Limit: 2}, 1000, 1}} {
		if got := tc.limit.Limiter(tc.most).Burst(); got != tc.atOnce {
			t.Errorf("at %s, %d at once, want %d", tc.limit.String(), got, tc.atOnce)
		}
	}
}
