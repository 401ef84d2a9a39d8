package mailer

import (
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

// outcome is what a send says about the health of its provider.
type outcome int

const (
	outcomeNeutral outcome = iota // nothing: the caller gave up, or the message was unusable
	outcomeAlive                  // the provider answered sensibly, be it with a refusal
	outcomeFault                  // counts towards the threshold
	outcomeTrip                   // opens the breaker at once
)

// breaker keeps sends away from a provider that fails: closed, open for a
// growing pause, then half-open for one probe.
type breaker struct {
	threshold  int
	base, most time.Duration

	mu      sync.Mutex // owns the fields below
	faults  int        // in a row
	open    bool
	probing bool // the probe of an open breaker is under way
	pause   time.Duration
	until   time.Time
}

// allow reports whether a send may go to the provider, and whether it is the
// probe. Every allowed send must be reported.
func (b *breaker) allow() (ok, probe bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return true, false
	}
	if b.probing || time.Now().Before(b.until) {
		return false, false
	}
	b.probing = true
	return true, true
}

// report records how an allowed send ended; pause is a minimum asked for by
// the provider.
func (b *breaker) report(probe bool, o outcome, pause time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if probe {
		b.probing = false
	}
	switch o {
	case outcomeNeutral:
	case outcomeAlive:
		// A success that started before the breaker opened says nothing about now.
		if probe || !b.open {
			b.faults, b.open, b.pause = 0, false, 0
		}
	case outcomeFault, outcomeTrip:
		b.faults++
		if b.open && !probe {
			return // sends that were under way when it opened
		}
		if b.open || o == outcomeTrip || b.faults >= b.threshold {
			b.open = true
			b.pause = min(max(b.pause*2, b.base), b.most)
			b.until = time.Now().Add(max(jitter(b.pause), pause))
		}
	}
}

// wait is how long until the provider may be tried again: the rest of the
// pause, or a short one if it has only just begun to fail.
func (b *breaker) wait() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open {
		if rest := time.Until(b.until); rest > 0 {
			return rest
		}
	}
	if b.faults > 0 {
		return jitter(b.base)
	}
	return 0
}

// probeWait is when to ask again while a probe is under way.
const probeWait = 200 * time.Millisecond

// admit is how many sends may begin now: any number, one as a probe, or none for
// the time that it returns too.
func (b *breaker) admit() (n int, again time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch rest := time.Until(b.until); {
	case !b.open:
		return math.MaxInt, 0
	case b.probing:
		return 0, probeWait
	case rest > 0:
		return 0, rest
	default:
		return 1, 0
	}
}

// jitter spreads d by ±20 %, so that a fleet does not probe in step.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}
