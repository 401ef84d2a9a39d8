package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
)

func TestSpreadOf_MedianAndEnds(t *testing.T) {
	t.Parallel()
	itself := func(v float64) float64 { return v }
	if got, want := SpreadOf([]float64{5, 1, 9, 2}, itself), (Spread{Median: 3.5, Min: 1, Max: 9}); got != want {
		t.Errorf("four rounds: %+v, want %+v", got, want)
	}
	if got, want := SpreadOf([]float64{5, 1, 9}, itself), (Spread{Median: 5, Min: 1, Max: 9}); got != want {
		t.Errorf("three rounds: %+v, want %+v", got, want)
	}
}

func TestQuantile(t *testing.T) {
	t.Parallel()
	values := make([]float64, 100)
	for i := range values {
		values[i] = float64(100 - i)
	}
	for q, want := range map[float64]float64{0: 1, 0.5: 50, 0.99: 99, 1: 100} {
		if got := Quantile(values, q); got != want {
			t.Errorf("quantile %v of 1 to 100 is %v, want %v", q, got, want)
		}
	}
	if got := Quantile([]float64{7}, 0.99); got != 7 {
		t.Errorf("of one value %v, want 7", got)
	}
}

func TestWhole(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0: "0", 999.4: "999", 999.6: "1,000", 1_234_567: "1,234,567", -12_345: "-12,345"} {
		if got := Whole(v); got != want {
			t.Errorf("%v is written %s, want %s", v, got, want)
		}
	}
}

// Charts of any number and height are drawn within the picture, none over another.
func TestBars_FitThePicture(t *testing.T) {
	t.Parallel()
	chart := func(bars int, figure Spread) Chart {
		c := Chart{Title: "t <&>", Note: "n", Write: Whole}
		for range bars {
			c.Bars = append(c.Bars, Bar{Label: "a & b", Figure: figure})
		}
		return c
	}
	one := Spread{Median: 2, Min: 1, Max: 3}
	for name, charts := range map[string][]Chart{
		"one":               {chart(2, one)},
		"two":               {chart(2, one), chart(4, one)},
		"three":             {chart(4, one), chart(2, one), chart(3, one)},
		"nothing":           {chart(2, Spread{}), chart(2, one)},
		"negative":          {chart(2, Spread{Median: -2, Min: -3, Max: -1})},
		"a scale of theirs": {{Title: "t", Write: Fixed(1), Most: 300, Bars: []Bar{{Figure: one, Ours: true}}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := 0
			for _, c := range charts {
				want += len(c.Bars)
			}
			bars, height, lowest := 0, 0.0, 0.0
			svg := Bars("a label", charts...)
			for dec := xml.NewDecoder(bytes.NewReader(svg)); ; {
				token, err := dec.Token()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatalf("%v in\n%s", err, svg)
				}
				start, ok := token.(xml.StartElement)
				if !ok {
					continue
				}
				number := func(name string) float64 {
					for _, a := range start.Attr {
						if a.Name.Local == name {
							v, err := strconv.ParseFloat(strings.Fields(a.Value)[len(strings.Fields(a.Value))-1], 64)
							if err != nil {
								t.Fatal(err)
							}
							return v
						}
					}
					t.Fatalf("%s has no %s", start.Name.Local, name)
					return 0
				}
				switch start.Name.Local {
				case "svg":
					height = number("viewBox")
				case "rect":
					bars++
					lowest = max(lowest, number("y")+number("height"))
					if w := number("width"); w < 0 || w > 170 {
						t.Errorf("a bar is %v wide", w)
					}
				}
			}
			if bars != want {
				t.Errorf("%d bars, want %d", bars, want)
			}
			if lowest > height {
				t.Errorf("a bar ends at %v of %v", lowest, height)
			}
		})
	}
}
