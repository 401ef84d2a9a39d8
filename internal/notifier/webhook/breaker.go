package webhook

import (
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// faultsToOpen is how many faults in a row open the breaker of an endpoint.
	faultsToOpen = 5
	// The breaker's first pause, doubled after each probe that fails, and its longest.
	firstPause = 5 * time.Second
	maxPause   = 5 * time.Minute
	// maxAsked is how long an endpoint may ask for all messages to wait: one that
	// asked for a day by mistake is tried before it is over.
	maxAsked = time.Hour
	// turn is about how long a message waits when others are under way.
	turn = time.Second
)

// target is what this process knows of an endpoint that it is sending to, or that
// fails.
type target struct {
	active  int // messages under way
	faults  int // in a row
	open    bool
	probing bool // the one message that a breaker lets through is under way
	pause   time.Duration
	until   time.Time
}

// targets holds the endpoints that are busy or failing; others take no memory.
type targets struct {
	now func() time.Time

	mu   sync.Mutex // owns what follows
	byID map[string]*target
}

// pass is the right to send one message. Every pass ends with end.
type pass struct {
	all   *targets
	id    string
	probe bool
}

// hold is why a message must wait, and how long.
type hold struct {
	reason string
	after  time.Duration
}

// begin returns a pass, or why there is none.
func (t *targets) begin(id string, concurrency int) (pass, *hold) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.byID[id]
	if e == nil {
		e = &target{}
		t.byID[id] = e
	}
	p := pass{all: t, id: id}
	if e.open {
		if rest := e.until.Sub(t.now()); rest > 0 {
			return pass{}, &hold{reason: ReasonBreakerOpen, after: rest + jitter(turn)}
		}
		if e.probing {
			return pass{}, &hold{reason: ReasonBreakerOpen, after: jitter(turn)}
		}
		p.probe = true
	}
	if e.active >= concurrency {
		return pass{}, &hold{reason: ReasonBusy, after: jitter(turn)}
	}
	e.active++
	e.probing = e.probing || p.probe
	return p, nil
}

// An outcome is what a message says of the health of its endpoint.
type outcome int

const (
	outcomeNone  outcome = iota // nothing: we gave up
	outcomeAlive                // it answered, be it with a refusal
	outcomeFault                // counts
	outcomeTrip                 // it asks to be left alone
)

// end gives the pass back. asked is how long the endpoint asked to be left alone.
func (p pass) end(o outcome, asked time.Duration) {
	p.all.mu.Lock()
	defer p.all.mu.Unlock()
	e := p.all.byID[p.id]
	e.active--
	if p.probe {
		e.probing = false
	}
	switch o {
	case outcomeNone:
	case outcomeAlive:
		// What began before the breaker opened says nothing about now.
		if p.probe || !e.open {
			e.faults, e.open, e.pause = 0, false, 0
		}
	case outcomeFault, outcomeTrip:
		e.faults++
		if e.open && !p.probe {
			break
		}
		if e.open || o == outcomeTrip || e.faults >= faultsToOpen {
			e.open = true
			e.pause = min(max(2*e.pause, firstPause), maxPause)
			e.until = p.all.now().Add(max(jitter(e.pause), min(asked, maxAsked)))
		}
	}
	if e.active == 0 && !e.open && e.faults == 0 {
		delete(p.all.byID, p.id)
	}
}

// forget drops what is known of an endpoint that is no longer sent to.
func (t *targets) forget(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.byID[id]; e != nil && e.active == 0 {
		delete(t.byID, id)
	}
}

// jitter spreads d by ±20 %, so that neither processes nor messages go in step.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}
