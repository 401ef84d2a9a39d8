package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/medicalink/postroom/internal/cli"
)

// progress shows on a terminal how far a run is: share of the file, time taken and left, count and rate.
// A nil progress shows nothing.
type progress struct {
	bar     *progressbar.ProgressBar
	started time.Time
	drawn   time.Time // when the bar was drawn last
	offset  int64
	records int
}

// redraw is the least time between two drawings. The bar's own throttle would also swallow the last state.
const redraw = 100 * time.Millisecond

// newProgress returns nil unless standard error is a terminal that can redraw a line. size is the
// input's length in bytes, or -1.
func newProgress(p cli.Process, size int64) *progress {
	file, ok := p.Stderr.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) || slices.Contains(p.Environ, "TERM=dumb") {
		return nil
	}
	width := progressbar.OptionFullWidth()
	if columns, _, err := term.GetSize(int(file.Fd())); err != nil || columns == 0 {
		width = progressbar.OptionSetWidth(40) // a terminal that does not know its size
	}
	return &progress{
		bar: progressbar.NewOptions64(size,
			progressbar.OptionSetWriter(file),
			width,
			progressbar.OptionSetPredictTime(true),
			progressbar.OptionSetElapsedTime(true),
			progressbar.OptionShowDescriptionAtLineEnd(),
			progressbar.OptionUseANSICodes(true),
			progressbar.OptionSetSpinnerChangeInterval(0), // else a goroutine of its own turns it
		),
		started: time.Now(),
	}
}

// set says that the input is done with up to the given offset, after so many records.
func (p *progress) set(offset int64, records int) {
	if p == nil {
		return
	}
	p.offset, p.records = offset, records
	if time.Since(p.drawn) >= redraw {
		p.draw()
	}
}

func (p *progress) draw() {
	p.drawn = time.Now()
	perSecond := float64(p.records) / max(time.Since(p.started).Seconds(), 0.001)
	p.bar.Describe(fmt.Sprintf("%d done, %.0f/s", p.records, perSecond))
	_ = p.bar.Set64(p.offset) // it can only fail to be drawn
}

// clear takes the bar off the screen, so that a line can be printed in its place.
func (p *progress) clear() {
	if p != nil {
		_ = p.bar.Clear() // as above
	}
}

// finish leaves the bar with its last state and goes on below it.
func (p *progress) finish(w io.Writer) {
	if p != nil {
		p.draw()
		fmt.Fprintln(w)
	}
}
