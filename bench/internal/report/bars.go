package report

import (
	"bytes"
	"fmt"
	"html"
)

// Bar is one figure of a chart.
type Bar struct {
	Label  string
	Figure Spread
	Ours   bool // drawn in our colour
}

// Chart is a column of bars.
type Chart struct {
	Title, Note string
	Write       func(float64) string // a figure
	Most        float64              // what the longest bar could be. Default: what it is
	Bars        []Bar
}

// Bars draws charts, two beside each other, as an SVG picture in colours that hold on a light and on a dark page.
func Bars(label string, charts ...Chart) []byte {
	const (
		width, chart = 720, 340 // of the picture, of one chart
		top, rowH    = 56, 44
		name, bar    = 80, 170
	)
	var svg bytes.Buffer
	height := 0
	for i, c := range charts {
		if bottom := top + rowH*len(c.Bars); i%2 == 0 {
			height += bottom + 16
		} else if left := top + rowH*len(charts[i-1].Bars); bottom > left {
			height += bottom - left
		}
	}
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="%s">`+"\n", width, height, html.EscapeString(label))
	svg.WriteString(`<style>text{fill:#222}.faint{fill:#666}.range{stroke:#222}@media(prefers-color-scheme:dark){text{fill:#eee}.faint{fill:#aaa}.range{stroke:#eee}}</style>` + "\n")
	y0 := 0
	for i, c := range charts {
		left := 16 + i%2*(chart+16)
		largest := c.Most
		for _, b := range c.Bars {
			largest = max(largest, b.Figure.Max)
		}
		fmt.Fprintf(&svg, `<text x="%d" y="%d" font-weight="600">%s</text><text x="%d" y="%d" class="faint">%s</text>`+"\n",
			left, y0+22, html.EscapeString(c.Title), left, y0+40, html.EscapeString(c.Note))
		at := func(v float64) float64 {
			if largest <= 0 || v <= 0 {
				return float64(left + name)
			}
			return float64(left+name) + bar*v/largest
		}
		for j, b := range c.Bars {
			s, y := b.Figure, y0+top+rowH*j
			colour := "#94a3b8"
			if b.Ours {
				colour = "#0f766e"
			}
			fmt.Fprintf(&svg, `<text x="%d" y="%d">%s</text><rect x="%d" y="%d" width="%.1f" height="26" rx="3" fill="%s"/>`, left, y+18, html.EscapeString(b.Label), left+name, y, at(s.Median)-at(0), colour)
			fmt.Fprintf(&svg, `<line class="range" x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke-width="1.5"/>`, at(s.Min), at(s.Max), y+13, y+13)
			fmt.Fprintf(&svg, `<text x="%.1f" y="%d" font-weight="600">%s</text>`+"\n", max(at(s.Median), at(s.Max))+8, y+18, html.EscapeString(c.Write(s.Median)))
		}
		if i%2 == 1 {
			y0 += 16 + top + rowH*max(len(c.Bars), len(charts[i-1].Bars))
		}
	}
	svg.WriteString("</svg>\n")
	return svg.Bytes()
}
