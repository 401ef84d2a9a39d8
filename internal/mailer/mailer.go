package mailer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// Config configures a [Mailer]. A zero field means its default.
type Config struct {
	// Providers in the order they are tried. Required; [ParseProviders] makes them.
	Providers []Provider
	// DKIM signs every message. Nil leaves signing to the provider.
	DKIM *DKIM
	// HELO is the name given in EHLO (RFC 5321 §4.1.1.1). Default: the host's
	// name where it is a DNS name, else "localhost".
	HELO string

	// MaxConns is the number of connections per provider. Default 10.
	MaxConns int
	// MaxMessages is the number of messages per connection. Default 100.
	MaxMessages int
	// MaxAge is how long a connection is used. Default 5 min.
	MaxAge time.Duration
	// IdleTimeout is how long an unused connection is kept. Default 30 s;
	// servers drop idle clients from about a minute on.
	IdleTimeout time.Duration
	// ProbeAfter is how long a connection may idle before it must answer a
	// NOOP to be used again. Default 10 s.
	ProbeAfter time.Duration

	// ConnectTimeout bounds each of: dial, greeting and EHLO, TLS, AUTH. Default 15 s.
	// RFC 5321 §4.5.3.2.1 grants a greeting 5 min; with a second provider
	// waiting that is too long.
	ConnectTimeout time.Duration
	// CommandTimeout bounds the answers to MAIL, RCPT and DATA. Default 1 min;
	// RFC 5321 §4.5.3.2 grants 5 min, which outlives most jobs.
	CommandTimeout time.Duration
	// BodyTimeout bounds each 256 KiB of the body. Default 3 min (RFC 5321 §4.5.3.2.5).
	BodyTimeout time.Duration
	// VerdictTimeout bounds the answer to the final dot. Default 5 min. RFC 5321
	// §4.5.3.2.6 says 10 min: giving up early makes duplicates (RFC 1047).
	VerdictTimeout time.Duration

	// BreakerThreshold is the number of provider faults in a row after which a
	// provider is skipped. Default 5.
	BreakerThreshold int
	// BreakerPause is the first pause of a skipped provider. It doubles with
	// every failed probe and is jittered by ±20 %. Default 2 s.
	BreakerPause time.Duration
	// BreakerMaxPause caps the pause. Default 30 s: a probe costs one connection,
	// and a code that waits for a provider to be asked again is soon worthless.
	BreakerMaxPause time.Duration
}

// withDefaults fills in zero fields and reports every field out of range.
func (c Config) withDefaults() (Config, error) {
	var errs []error
	count := func(name string, v *int, def, limit int) {
		if *v == 0 {
			*v = def
		}
		if *v < 1 || *v > limit {
			errs = append(errs, fmt.Errorf("%s is %d; want 1 to %d", name, *v, limit))
		}
	}
	span := func(name string, v *time.Duration, def time.Duration) {
		if *v == 0 {
			*v = def
		}
		if *v < 0 {
			errs = append(errs, fmt.Errorf("%s is %s; want a positive duration", name, *v))
		}
	}
	count("MaxConns", &c.MaxConns, 10, maxConnsLimit)
	count("MaxMessages", &c.MaxMessages, 100, 1_000_000)
	span("MaxAge", &c.MaxAge, 5*time.Minute)
	span("IdleTimeout", &c.IdleTimeout, 30*time.Second)
	span("ProbeAfter", &c.ProbeAfter, 10*time.Second)
	span("ConnectTimeout", &c.ConnectTimeout, 15*time.Second)
	span("CommandTimeout", &c.CommandTimeout, time.Minute)
	span("BodyTimeout", &c.BodyTimeout, 3*time.Minute)
	span("VerdictTimeout", &c.VerdictTimeout, 5*time.Minute)
	count("BreakerThreshold", &c.BreakerThreshold, 5, 1_000_000)
	span("BreakerPause", &c.BreakerPause, 2*time.Second)
	span("BreakerMaxPause", &c.BreakerMaxPause, 30*time.Second)
	if c.HELO == "" {
		c.HELO = defaultHELO()
	}
	if !validHELO(c.HELO) {
		errs = append(errs, errors.New("HELO is not a host name or an address literal"))
	}
	if len(c.Providers) == 0 {
		errs = append(errs, errors.New("no SMTP provider; set SMTP_URL"))
	}
	return c, errors.Join(errs...)
}

func defaultHELO() string {
	if h, err := os.Hostname(); err == nil && strings.Contains(h, ".") && validDomain(h) {
		return h
	}
	return "localhost"
}

func validHELO(s string) bool {
	if literal, ok := strings.CutPrefix(s, "["); ok {
		literal, ok = strings.CutSuffix(literal, "]")
		return ok && validHost(strings.TrimPrefix(literal, "IPv6:"))
	}
	return validDomain(s)
}

// Mailer builds messages and sends them. It is safe for concurrent use.
type Mailer struct {
	cfg   Config
	dkim  *signer
	pools []*pool
	run   *runState
}

// runState counts the sends under way, so that Close can wait for them.
type runState struct {
	mu     sync.Mutex
	active int
	closed bool
	idle   chan struct{} // closed when closed && active == 0
}

func (s *runState) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.active++
	return true
}

func (s *runState) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	if s.closed && s.active == 0 {
		close(s.idle)
	}
}

// shut refuses further sends and returns a channel closed when the last one ended.
func (s *runState) shut() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		if s.active == 0 {
			close(s.idle)
		}
	}
	return s.idle
}

// New checks the configuration and reads CA files. It opens no connection.
func New(cfg Config) (*Mailer, error) {
	cfg, err := cfg.withDefaults()
	errs := []error{err}
	cfg.Providers = append([]Provider(nil), cfg.Providers...)
	for i := range cfg.Providers {
		p := &cfg.Providers[i]
		if err := p.setDefaults(cfg.MaxConns); err != nil {
			errs = append(errs, fmt.Errorf("provider %d: %w", i+1, err))
		}
	}
	errs = append(errs, nameProviders(cfg.Providers))
	m := &Mailer{cfg: cfg, run: &runState{idle: make(chan struct{})}}
	if cfg.DKIM != nil {
		m.dkim, err = newSigner(cfg.DKIM)
		errs = append(errs, err)
	}
	for _, p := range cfg.Providers {
		pl, err := newPool(p, &m.cfg)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		m.pools = append(m.pools, pl)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("configure mailer: %w", err)
	}
	return m, nil
}

// Options are the circumstances of one send.
type Options struct {
	// Commit is called when all of the body is on the wire and before the
	// final dot: the point of no return, at which a send-once record is
	// written. An error stops the delivery, is wrapped by Send's error, and the
	// server has nothing. It is called at most once for each Send: what fails
	// after it is not tried again here. Nil means no call.
	Commit func(ctx context.Context, provider string) error
	// Provider restricts the send to the provider of this name, for a message
	// whose outcome there is unknown.
	Provider string
}

// Receipt tells who took the message.
type Receipt struct {
	Provider string
	QueueID  string // the server's id of the message, "" if its reply held none
}

// Send delivers an envelope through the first provider that works. A
// provider's fault moves on to the next one at once; a refusal of the
// recipient or the message never does, and neither does an unknown outcome.
//
// The error is an [*Error]. If every provider is at fault it is the last one's,
// with [Error.RetryAfter] the time until a provider may be tried again.
func (m *Mailer) Send(ctx context.Context, env Envelope, opt Options) (Receipt, error) {
	if !m.run.enter() {
		return Receipt{}, &Error{Phase: PhaseConnect, Reason: ReasonAborted, Err: ErrClosed}
	}
	defer m.run.leave()

	w, perr := prepare(env)
	if perr != nil {
		return Receipt{}, perr
	}
	var last *Error
	wait := time.Duration(-1)
	for _, p := range m.pools {
		if opt.Provider != "" && opt.Provider != p.name {
			continue
		}
		if ctx.Err() != nil {
			if last == nil { // nobody's fault: nothing was tried
				last = &Error{Phase: PhaseConnect, Reason: ReasonAborted, Err: ctx.Err()}
			}
			break
		}
		receipt, err := p.send(ctx, w, opt.Commit)
		if err == nil {
			return receipt, nil
		}
		if !err.ProviderFault() {
			return Receipt{}, err
		}
		// A pause the server asked for outlasts the breaker's.
		pause := max(p.breaker.wait(), err.retryAfter)
		if wait < 0 || pause < wait {
			wait = pause
		}
		// A breaker that skipped is no news; keep the failure that was seen.
		if last == nil || !errors.Is(err, errBreakerOpen) {
			last = err
		}
		if !err.Phase.beforeBody() {
			break
		}
	}
	if last == nil {
		return Receipt{}, &Error{Phase: PhaseConnect, Reason: ReasonAborted, Err: ErrUnknownProvider}
	}
	if wait > 0 {
		last.retryAfter = wait
	}
	return Receipt{}, last
}

// Admit says how many messages may be handed to Send now: any number while a
// provider works, one if one that failed may be tried again, and otherwise none,
// with the time until that is so. A caller that asks first can leave its messages
// where they are. It does not block.
func (m *Mailer) Admit() (n int, again time.Duration) {
	for _, p := range m.pools {
		admitted, wait := p.breaker.admit()
		n = max(n, admitted)
		if again == 0 || wait > 0 && wait < again {
			again = wait
		}
	}
	if n > 0 {
		again = 0
	}
	return n, again
}

// CheckResult is what [Mailer.Check] found out about one provider.
type CheckResult struct {
	Provider string
	OK       bool
	TLS      string        // "TLS 1.3", "" for plain
	Auth     string        // mechanism used, "" for none
	Latency  time.Duration // from dial to the answer to QUIT
	Err      error         // an [*Error], nil if OK
}

// Check connects to every provider at once: dial, EHLO, TLS, AUTH, QUIT. It
// uses no pooled connection, and its results do not move the circuit breakers.
func (m *Mailer) Check(ctx context.Context) []CheckResult {
	results := make([]CheckResult, len(m.pools))
	var wg sync.WaitGroup
	for i, p := range m.pools {
		wg.Go(func() { results[i] = p.check(ctx) })
	}
	wg.Wait()
	return results
}

// cutGrace is what cut sends get to return.
const cutGrace = time.Second

// Close refuses further sends, says QUIT on idle connections and waits for the
// sends under way. When ctx ends they are cut off; one cut after its final dot
// reports an unknown outcome. The error is ctx's, if it had to cut.
func (m *Mailer) Close(ctx context.Context) error {
	drained := m.run.shut()
	for _, p := range m.pools {
		p.drain()
	}
	var err error
	select {
	case <-drained:
	case <-ctx.Done():
		err = fmt.Errorf("close mailer: %w", context.Cause(ctx))
		for _, p := range m.pools {
			p.cut()
		}
		select {
		case <-drained:
		case <-time.After(cutGrace): // only a Commit that ignores its context takes that long
		}
	}
	for _, p := range m.pools {
		p.wg.Wait()
	}
	return err
}
