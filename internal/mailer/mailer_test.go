package mailer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newMailer makes a mailer for the given URL and closes it at the end of the
// test, before the servers started earlier.
func newMailer(t testing.TB, url string, change ...func(*Config)) *Mailer {
	t.Helper()
	providers, err := ParseProviders(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Providers: providers}
	for _, fn := range change {
		fn(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return m
}

var testRaw = []byte("From: a@example.com\r\nTo: b@example.com\r\nSubject: hello\r\n\r\nbody\r\n")

func testEnvelope() Envelope {
	return Envelope{From: "a@example.com", To: "b@example.com", Raw: testRaw}
}

// sendErr sends one message and returns its *Error, nil on success.
func sendErr(t testing.TB, ctx context.Context, m *Mailer, env Envelope, opt Options) *Error { //nolint:revive // t comes first everywhere
	t.Helper()
	_, err := m.Send(ctx, env, opt)
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("Send returned %T, want *Error: %v", err, err)
	}
	return e
}

func TestMailer_Send(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		faults []testenv.Fault
	}{
		{"pipelined", nil},
		{"lock-step", []testenv.Fault{testenv.Without("PIPELINING")}},
		{"bare server", []testenv.Fault{testenv.Without("PIPELINING", "SIZE", "8BITMIME", "ENHANCEDSTATUSCODES")}},
		{"STARTTLS and AUTH", []testenv.Fault{testenv.STARTTLS(), testenv.Login("user", "secret")}},
		{"implicit TLS and AUTH", []testenv.Fault{testenv.ImplicitTLS(), testenv.Login("user", "secret")}},
		{"AUTH in clear to loopback", []testenv.Fault{testenv.Login("user", "secret")}},
		{"slow reader", []testenv.Fault{testenv.SlowReader(10, time.Millisecond)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := testenv.SMTP(t, tt.faults...)
			m := newMailer(t, s.URL())
			for i := range 3 {
				receipt, err := m.Send(t.Context(), testEnvelope(), Options{})
				if err != nil {
					t.Fatal(err)
				}
				if want := fmt.Sprintf("T%d", i+1); receipt.QueueID != want || receipt.Provider != "127.0.0.1" {
					t.Errorf("receipt = %+v, want queue id %s of 127.0.0.1", receipt, want)
				}
			}
			got := s.Messages()
			if len(got) != 3 || s.Total() != 1 {
				t.Fatalf("got %d messages on %d connections, want 3 on 1", len(got), s.Total())
			}
			for _, r := range got {
				if r.From != "a@example.com" || r.To != "b@example.com" || string(r.Raw) != string(testRaw) {
					t.Errorf("received %+v", r)
				}
			}
		})
	}
}

func TestMailer_Send_bytesArriveUnchanged(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, raw, want string }{
		{"dots", ".\r\n..\r\n.a\r\n\r\n.\r\n", ".\r\n..\r\n.a\r\n\r\n.\r\n"},
		{"bare LF and CR", "a\n.\nb\rc\r\r\nd", "a\r\n.\r\nb\r\nc\r\n\r\nd\r\n"},
		{"smuggled end of data", "a\n.\r\nMAIL FROM:<x@example.com>\r\n", "a\r\n.\r\nMAIL FROM:<x@example.com>\r\n"},
		{"only line ends", "\r\n\r\n", "\r\n\r\n"},
		{"8-bit", "a: b\r\n\r\nü\r\n", "a: b\r\n\r\nü\r\n"},
		{"several chunks", strings.Repeat(".0123456789abcdef\r\n", 50_000), strings.Repeat(".0123456789abcdef\r\n", 50_000)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := testenv.SMTP(t)
			m := newMailer(t, s.URL())
			env := testEnvelope()
			env.Raw = []byte(tt.raw)
			if _, err := m.Send(t.Context(), env, Options{}); err != nil {
				t.Fatal(err)
			}
			got := s.Messages()
			if len(got) != 1 || string(got[0].Raw) != tt.want {
				t.Errorf("got %d messages, first %.80q, want %.80q", len(got), got[0].Raw, tt.want)
			}
		})
	}
}

func TestMailer_Send_commit(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t)
	m := newMailer(t, s.URL())

	calls := 0
	_, err := m.Send(t.Context(), testEnvelope(), Options{Commit: func(_ context.Context, provider string) error {
		calls++
		if provider != "127.0.0.1" {
			t.Errorf("provider = %q", provider)
		}
		if s.Count() != 0 {
			t.Error("the message was accepted before Commit")
		}
		return nil
	}})
	if err != nil || calls != 1 || s.Count() != 1 {
		t.Fatalf("err %v, %d calls, %d messages; want none, 1, 1", err, calls, s.Count())
	}

	cause := errors.New("ledger away")
	e := sendErr(t, t.Context(), m, testEnvelope(), Options{Commit: func(context.Context, string) error { return cause }})
	if e == nil || !errors.Is(e, cause) || e.Reason != ReasonAborted || e.Unknown() || e.Permanent() || e.ProviderFault() {
		t.Fatalf("error = %v, want a definite abort that wraps the cause", e)
	}
	s.WaitOpen(t, 0) // closed hard, not kept
	if s.Count() != 1 {
		t.Errorf("%d messages accepted, want 1", s.Count())
	}

	ctx, cancel := context.WithCancel(t.Context())
	e = sendErr(t, ctx, m, testEnvelope(), Options{Commit: func(context.Context, string) error { cancel(); return nil }})
	if e == nil || e.Unknown() || e.Phase != PhaseBody || !errors.Is(e, context.Canceled) {
		t.Fatalf("error = %v, want a definite cancel in the body", e)
	}
	s.WaitOpen(t, 0)
	if s.Count() != 1 {
		t.Errorf("%d messages accepted, want 1", s.Count())
	}
}

// The hostile servers of the pool's specification.

func TestMailer_Send_421EveryEighth(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t, testenv.Every421(8))
	m := newMailer(t, s.URL()+"?conns=4")
	var failed atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				if _, err := m.Send(t.Context(), testEnvelope(), Options{}); err != nil {
					t.Error(err)
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() != 0 || s.Count() != 400 {
		t.Errorf("%d failed, %d accepted; want 0, 400", failed.Load(), s.Count())
	}
	if s.Total() < 400/7 {
		t.Errorf("%d connections for 400 messages of at most 7 each", s.Total())
	}
}

func TestMailer_Send_serverDropsIdle(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t, testenv.DropIdle(5*time.Millisecond))
	m := newMailer(t, s.URL())
	for range 20 {
		if _, err := m.Send(t.Context(), testEnvelope(), Options{}); err != nil {
			t.Fatal(err)
		}
		s.WaitOpen(t, 0) // the server has dropped it, the pool does not know
	}
	if s.Count() != 20 || s.Total() != 20 {
		t.Errorf("%d accepted on %d connections, want 20 on 20", s.Count(), s.Total())
	}
}

func TestMailer_Send_contextCutsEveryPhase(t *testing.T) {
	t.Parallel()
	big := testEnvelope()
	big.Raw = []byte(strings.Repeat("0123456789abcdef0123456789abcdef\r\n", 600_000)) // beyond any socket buffer
	for _, tt := range []struct {
		at    testenv.Stage
		phase Phase
		env   Envelope
	}{
		{testenv.StageGreeting, PhaseConnect, testEnvelope()},
		{testenv.StageHello, PhaseConnect, testEnvelope()},
		{testenv.StageSTARTTLS, PhaseTLS, testEnvelope()},
		{testenv.StageAuth, PhaseAuth, testEnvelope()},
		{testenv.StageMail, PhaseMail, testEnvelope()},
		{testenv.StageRcpt, PhaseRcpt, testEnvelope()},
		{testenv.StageData, PhaseData, testEnvelope()},
		{testenv.StageBody, PhaseBody, big},
		{testenv.StageVerdict, PhaseVerdict, testEnvelope()},
	} {
		for _, pipelining := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s pipelining %t", tt.at, pipelining), func(t *testing.T) {
				t.Parallel()
				faults := []testenv.Fault{testenv.STARTTLS(), testenv.Login("user", "secret"), testenv.Hang(tt.at)}
				if !pipelining {
					faults = append(faults, testenv.Without("PIPELINING"))
				}
				s := testenv.SMTP(t, faults...)
				m := newMailer(t, s.URL(), func(c *Config) { c.ConnectTimeout, c.CommandTimeout = time.Hour, time.Hour })
				ctx, cancel := context.WithCancel(t.Context())
				var e *Error
				var wg sync.WaitGroup
				wg.Go(func() { e = sendErr(t, ctx, m, tt.env, Options{}) })
				s.WaitHang(t, 1)
				cancel()
				wg.Wait()
				// The answers before the hang may still be unread when the cut comes.
				phases := []Phase{tt.phase}
				if pipelining && (tt.phase == PhaseRcpt || tt.phase == PhaseData) {
					phases = append(phases, PhaseMail, PhaseRcpt)
				}
				if e == nil || !slices.Contains(phases, e.Phase) || !errors.Is(e, context.Canceled) {
					t.Fatalf("error = %#v, want phase %s and the context's error", e, phases)
				}
				last := tt.at == testenv.StageVerdict
				if e.Unknown() != last || e.Permanent() || e.ProviderFault() {
					t.Errorf("unknown %t, permanent %t, provider fault %t; want unknown %t", e.Unknown(), e.Permanent(), e.ProviderFault(), last)
				}
				if want := map[bool]int{false: 0, true: 1}[last]; s.Count() != want {
					t.Errorf("%d accepted, want %d", s.Count(), want)
				}
				if tt.at != testenv.StageBody { // that one does not read, so it cannot see the end
					s.WaitOpen(t, 0)
				}
			})
		}
	}
}

// A context's deadline on a mute provider counts against the provider.
func TestMailer_Send_contextDeadline(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t, testenv.Hang(testenv.StageMail))
	m := newMailer(t, s.URL())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	e := sendErr(t, ctx, m, testEnvelope(), Options{})
	if e == nil || e.Reason != ReasonTimeout || !e.ProviderFault() || !errors.Is(e, context.DeadlineExceeded) || s.Count() != 0 {
		t.Fatalf("error = %#v, want a timeout at the provider's fault", e)
	}
	s.WaitOpen(t, 0)
}

// Every phase has its own deadline when the context has none.
func TestMailer_Send_phaseDeadlines(t *testing.T) {
	t.Parallel()
	const short = 50 * time.Millisecond
	big := testEnvelope()
	big.Raw = []byte(strings.Repeat("0123456789abcdef0123456789abcdef\r\n", 600_000))
	for _, tt := range []struct {
		at     testenv.Stage
		phase  Phase
		reason Reason
		env    Envelope
		change func(*Config)
	}{
		{testenv.StageGreeting, PhaseConnect, ReasonTimeout, testEnvelope(), func(c *Config) { c.ConnectTimeout = short }},
		{testenv.StageMail, PhaseMail, ReasonTimeout, testEnvelope(), func(c *Config) { c.CommandTimeout = short }},
		{testenv.StageBody, PhaseBody, ReasonTimeout, big, func(c *Config) { c.BodyTimeout = short }},
		{testenv.StageVerdict, PhaseVerdict, ReasonUnknownOutcome, testEnvelope(), func(c *Config) { c.VerdictTimeout = short }},
	} {
		t.Run(string(tt.at), func(t *testing.T) {
			t.Parallel()
			s := testenv.SMTP(t, testenv.Hang(tt.at))
			m := newMailer(t, s.URL(), tt.change)
			e := sendErr(t, context.Background(), m, tt.env, Options{})
			if e == nil || e.Phase != tt.phase || e.Reason != tt.reason {
				t.Fatalf("error = %#v, want %s %s", e, tt.phase, tt.reason)
			}
			if want := tt.phase.beforeBody(); e.ProviderFault() != want {
				t.Errorf("provider fault %t, want %t", e.ProviderFault(), want)
			}
		})
	}
}

func TestMailer_Send_aboveSize(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t, testenv.Size(20))
	m := newMailer(t, s.URL())
	e := sendErr(t, t.Context(), m, testEnvelope(), Options{})
	if e == nil || e.Reason != ReasonTooBig || !e.Permanent() {
		t.Fatalf("error = %v, want too_big", e)
	}
	for _, line := range s.Commands() {
		if strings.HasPrefix(line, "MAIL") {
			t.Error("MAIL was sent for a message above SIZE")
		}
	}
	if s.Open() != 1 {
		t.Error("the connection was not kept")
	}
}

func TestMailer_Send_cutInBody(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t, testenv.CutBody(1<<20).Times(1))
	m := newMailer(t, s.URL())
	env := testEnvelope()
	env.Raw = []byte(strings.Repeat("0123456789abcdef0123456789abcdef\r\n", 600_000))
	e := sendErr(t, t.Context(), m, env, Options{})
	if e == nil || e.Phase != PhaseBody || e.Unknown() || e.Permanent() || e.ProviderFault() {
		t.Fatalf("error = %#v, want a definite, temporary failure in the body", e)
	}
	if _, err := m.Send(t.Context(), env, Options{}); err != nil {
		t.Fatal(err)
	}
	if got := s.Messages(); len(got) != 1 || len(got[0].Raw) != len(env.Raw) {
		t.Errorf("%d messages accepted, want the whole one once", len(got))
	}
}

// A server that says why before it hangs up in the body is believed.
func TestMailer_Send_refusedInBody(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t, testenv.Refuse(552, "5.3.4 too big", testenv.StageBody))
	m := newMailer(t, s.URL())
	env := testEnvelope()
	env.Raw = []byte(strings.Repeat("0123456789abcdef0123456789abcdef\r\n", 600_000))
	e := sendErr(t, t.Context(), m, env, Options{})
	if e == nil || e.Phase != PhaseBody || e.Reason != ReasonTooBig || !e.Permanent() || s.Count() != 0 {
		t.Fatalf("error = %#v, want too_big", e)
	}
	s.WaitOpen(t, 0)
}

func TestMailer_Send_afterTheDot(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		fault testenv.Fault
	}{
		{"cut", testenv.Cut(testenv.StageVerdict)},
		{"garbage", testenv.Say("what?\r\n", testenv.StageVerdict)},
		{"3xx", testenv.Say("354 more\r\n", testenv.StageVerdict)},
		{"half a reply", testenv.Say("250-Ok\r\n", testenv.StageVerdict)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s1 := testenv.SMTP(t, tt.fault)
			s2 := testenv.SMTP(t)
			m := newMailer(t, s1.URL()+"?name=one,"+s2.URL()+"?name=two", func(c *Config) { c.VerdictTimeout = 300 * time.Millisecond })
			e := sendErr(t, t.Context(), m, testEnvelope(), Options{})
			if e == nil || !e.Unknown() || e.Permanent() || e.ProviderFault() || e.Provider != "one" || e.Phase != PhaseVerdict {
				t.Fatalf("error = %#v, want an unknown outcome at provider one", e)
			}
			s1.WaitCount(t, 1)
			if s2.Total() != 0 {
				t.Errorf("the second provider saw %d connections", s2.Total())
			}
			s1.WaitOpen(t, 0)
		})
	}
}

func TestMailer_Send_closeAfterAccept(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t, testenv.CloseAfterAccept())
	m := newMailer(t, s.URL())
	for range 20 {
		if _, err := m.Send(t.Context(), testEnvelope(), Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if s.Count() != 20 {
		t.Errorf("%d accepted, want 20", s.Count())
	}
}

func TestMailer_Send_250AndMore(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t, testenv.Say("250 2.0.0 Ok\r\n550 5.1.1 late\r\n", testenv.StageVerdict).Times(1))
	m := newMailer(t, s.URL())
	for range 2 {
		if _, err := m.Send(t.Context(), testEnvelope(), Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if s.Count() != 2 || s.Total() != 2 {
		t.Errorf("%d accepted on %d connections, want 2 on 2: the first was out of step", s.Count(), s.Total())
	}
}

func TestMailer_Send_refusalKeepsConnection(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		faults []testenv.Fault
		phase  Phase
		reset  bool
	}{
		{"rcpt", []testenv.Fault{testenv.Refuse(550, "5.1.1 no", testenv.StageRcpt).Times(1)}, PhaseRcpt, true},
		{"rcpt, lock-step", []testenv.Fault{testenv.Refuse(550, "5.1.1 no", testenv.StageRcpt).Times(1), testenv.Without("PIPELINING")}, PhaseRcpt, true},
		{"rcpt, but DATA gets 354", []testenv.Fault{testenv.Refuse(550, "5.1.1 no", testenv.StageRcpt).Times(1), testenv.DataAnyway()}, PhaseRcpt, true},
		{"mail", []testenv.Fault{testenv.Refuse(550, "5.7.1 no", testenv.StageMail).Times(1)}, PhaseMail, true},
		{"data", []testenv.Fault{testenv.Refuse(554, "5.7.1 no", testenv.StageData).Times(1)}, PhaseData, true},
		{"verdict", []testenv.Fault{testenv.Refuse(554, "5.7.1 no", testenv.StageVerdict).Times(1)}, PhaseVerdict, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := testenv.SMTP(t, tt.faults...)
			m := newMailer(t, s.URL())
			e := sendErr(t, t.Context(), m, testEnvelope(), Options{})
			if e == nil || !e.Permanent() || e.Phase != tt.phase {
				t.Fatalf("error = %#v, want a permanent refusal in %s", e, tt.phase)
			}
			commands := strings.Join(s.Commands(), "\n")
			if got := strings.Contains(commands, "RSET"); got != tt.reset {
				t.Errorf("RSET sent: %t, want %t\n%s", got, tt.reset, commands)
			}
			if _, err := m.Send(t.Context(), testEnvelope(), Options{}); err != nil {
				t.Fatal(err)
			}
			if s.Total() != 1 || s.Count() != 1 {
				t.Errorf("%d connections, %d messages; want 1, 1", s.Total(), s.Count())
			}
		})
	}
}

// MAIL refused, RCPT and DATA accepted: a dot would deliver an empty message.
func TestMailer_Send_noEmptyMessage(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t, testenv.Say("550 5.7.1 no\r\n", testenv.StageMail), testenv.Say("250 ok\r\n", testenv.StageRcpt),
		testenv.Say("354 go\r\n", testenv.StageData))
	m := newMailer(t, s.URL())
	e := sendErr(t, t.Context(), m, testEnvelope(), Options{})
	if e == nil || e.Phase != PhaseMail || e.Reason != ReasonPolicy {
		t.Fatalf("error = %#v, want the refusal of MAIL", e)
	}
	s.WaitOpen(t, 0)
}

func TestMailer_Send_connectionLimits(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t)
	m := newMailer(t, s.URL()+"?conns=3", func(c *Config) { c.MaxMessages = 10 })
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 25 {
				if _, err := m.Send(t.Context(), testEnvelope(), Options{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if s.Count() != 400 || s.Most() > 3 {
		t.Errorf("%d accepted with up to %d connections; want 400, 3", s.Count(), s.Most())
	}
	if s.Total() < 40 {
		t.Errorf("%d connections for 400 messages of at most 10 each", s.Total())
	}
	quits := 0
	for _, line := range s.Commands() {
		if line == "QUIT" {
			quits++
		}
	}
	if quits < 30 {
		t.Errorf("%d QUITs, want one for each worn connection", quits)
	}
}

func TestMailer_Send_waitsForASlot(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t, testenv.Hang(testenv.StageMail))
	m := newMailer(t, s.URL()+"?conns=1")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if e := sendErr(t, ctx, m, testEnvelope(), Options{}); e == nil {
			t.Error("sent to a server that hangs")
		}
	})
	s.WaitOpen(t, 1)
	short, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	e := sendErr(t, short, m, testEnvelope(), Options{})
	if e == nil || e.Reason != ReasonTimeout || e.ProviderFault() || !errors.Is(e, context.DeadlineExceeded) || !strings.Contains(e.Error(), "busy") {
		t.Errorf("error = %v, want a timeout that is nobody's fault and says why", e)
	}
	cancel()
	wg.Wait()
	s.WaitOpen(t, 0)
}

// The connection used last is used next, so that the others can age out.
func TestMailer_Send_reusesTheHottest(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t)
	m := newMailer(t, s.URL())
	var wg, all sync.WaitGroup
	all.Add(4)
	for range 4 {
		wg.Go(func() {
			if _, err := m.Send(t.Context(), testEnvelope(), Options{Commit: func(context.Context, string) error {
				all.Done()
				all.Wait() // four connections at once
				return nil
			}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	p := m.pools[0]
	if len(p.idle) != 4 {
		t.Fatalf("%d idle connections, want 4", len(p.idle))
	}
	hottest := p.idle[3]
	for range 5 {
		if _, err := m.Send(t.Context(), testEnvelope(), Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if p.idle[3] != hottest || hottest.messages != 6 || s.Total() != 4 {
		t.Errorf("hottest connection carried %d of %d connections' messages, want 6 of 4", hottest.messages, s.Total())
	}
}

func TestMailer_idleConnections(t *testing.T) {
	t.Parallel()
	t.Run("swept", func(t *testing.T) {
		t.Parallel()
		s := testenv.SMTP(t)
		m := newMailer(t, s.URL(), func(c *Config) { c.IdleTimeout = 20 * time.Millisecond })
		if _, err := m.Send(t.Context(), testEnvelope(), Options{}); err != nil {
			t.Fatal(err)
		}
		s.WaitOpen(t, 0)
		if c := s.Commands(); c[len(c)-1] != "QUIT" {
			t.Errorf("last command %q, want QUIT", c[len(c)-1])
		}
	})
	t.Run("probed", func(t *testing.T) {
		t.Parallel()
		s := testenv.SMTP(t, testenv.Refuse(500, "no", testenv.StageNoop).Times(1))
		m := newMailer(t, s.URL(), func(c *Config) { c.ProbeAfter = time.Nanosecond })
		for range 3 {
			if _, err := m.Send(t.Context(), testEnvelope(), Options{}); err != nil {
				t.Fatal(err)
			}
		}
		noops := 0
		for _, line := range s.Commands() {
			if line == "NOOP" {
				noops++
			}
		}
		if noops != 2 || s.Total() != 2 {
			t.Errorf("%d NOOPs on %d connections, want 2 on 2", noops, s.Total())
		}
	})
	t.Run("too old", func(t *testing.T) {
		t.Parallel()
		s := testenv.SMTP(t)
		m := newMailer(t, s.URL(), func(c *Config) { c.MaxAge = time.Nanosecond })
		for range 3 {
			if _, err := m.Send(t.Context(), testEnvelope(), Options{}); err != nil {
				t.Fatal(err)
			}
		}
		if s.Total() != 3 {
			t.Errorf("%d connections, want 3", s.Total())
		}
	})
}

// go-mail leaves the socket open when a dial fails after the connect.
func TestMailer_failedDialsLeakNothing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		faults []testenv.Fault
		reason Reason
	}{
		{"greeting", []testenv.Fault{testenv.Refuse(554, "go away", testenv.StageGreeting)}, ReasonProvider},
		{"greeting garbage", []testenv.Fault{testenv.Say("hello\r\n", testenv.StageGreeting), testenv.Hang(testenv.StageHello)}, ReasonProtocol},
		{"EHLO", []testenv.Fault{testenv.Refuse(502, "5.5.1 no", testenv.StageHello)}, ReasonProvider},
		{"STARTTLS", []testenv.Fault{testenv.STARTTLS(), testenv.Refuse(454, "4.7.0 no TLS", testenv.StageSTARTTLS)}, ReasonTLS},
		{"STARTTLS, then garbage", []testenv.Fault{testenv.STARTTLS(), testenv.Say("220 go\r\n"+strings.Repeat("not TLS ", 2000), testenv.StageSTARTTLS)}, ReasonTLS},
		{"AUTH", []testenv.Fault{testenv.Login("user", "other"), testenv.Refuse(535, "5.7.8 bad", testenv.StageAuth)}, ReasonAuth},
		{"cut", []testenv.Fault{testenv.Cut(testenv.StageHello)}, ReasonConnect},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := testenv.SMTP(t, tt.faults...)
			m := newMailer(t, s.URL(), func(c *Config) { c.BreakerThreshold = 1000; c.ConnectTimeout = 5 * time.Second })
			for i := range 50 {
				results := m.Check(t.Context())
				e, ok := errors.AsType[*Error](results[0].Err)
				if !ok || results[0].OK || e.Reason != tt.reason || !e.ProviderFault() {
					t.Fatalf("check %d: %+v, want %s at the provider's fault", i, results[0], tt.reason)
				}
			}
			s.WaitOpen(t, 0)
			if s.Total() != 50 {
				t.Errorf("%d connections, want 50", s.Total())
			}
			if len(m.pools[0].live) != 0 {
				t.Errorf("%d connections still registered", len(m.pools[0].live))
			}
		})
	}
}

func TestMailer_Send_connectionRefused(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	m := newMailer(t, "smtp://"+addr)
	e := sendErr(t, t.Context(), m, testEnvelope(), Options{})
	if e == nil || e.Reason != ReasonConnect || !e.ProviderFault() || !errors.Is(e, syscall.ECONNREFUSED) || e.RetryAfter() <= 0 {
		t.Fatalf("error = %#v, want a refused connection with a time to come back", e)
	}
	if want := "send mail: connect: connection refused (provider 127.0.0.1)"; e.Error() != want {
		t.Errorf("text = %q, want %q", e, want)
	}
}

func TestMailer_TLS(t *testing.T) {
	t.Parallel()
	starttls := testenv.SMTP(t, testenv.STARTTLS())
	plain := testenv.SMTP(t)
	implicit := testenv.SMTP(t, testenv.ImplicitTLS())
	for _, tt := range []struct {
		name, url string
		reason    Reason // "" = works
		tls       bool
	}{
		{"mandatory, unknown authority", "smtp://" + starttls.Addr() + "?tls=mandatory", ReasonTLS, false},
		{"mandatory, known authority", "smtp://" + starttls.Addr() + "?tls=mandatory&ca=" + starttls.CAFile(), "", true},
		{"mandatory, not offered", "smtp://" + plain.Addr() + "?tls=mandatory", ReasonTLS, false},
		{"opportunistic, unknown authority", "smtp://" + starttls.Addr(), "", true},
		{"opportunistic, wrong authority", "smtp://" + starttls.Addr() + "?ca=" + implicit.CAFile(), ReasonTLS, false},
		{"opportunistic, not offered", "smtp://" + plain.Addr(), "", false},
		{"none", "smtp://" + starttls.Addr() + "?tls=none", "", false},
		{"implicit", "smtps://" + implicit.Addr() + "?ca=" + implicit.CAFile(), "", true},
		{"implicit, unknown authority", "smtps://" + implicit.Addr(), ReasonTLS, false},
		{"implicit to a plain server", "smtps://" + plain.Addr(), ReasonTLS, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := newMailer(t, tt.url, func(c *Config) { c.ConnectTimeout = 5 * time.Second })
			r := m.Check(t.Context())[0]
			if tt.reason == "" {
				if !r.OK || r.Err != nil || (r.TLS != "") != tt.tls || r.Latency <= 0 {
					t.Fatalf("check = %+v, want OK with TLS %t", r, tt.tls)
				}
				return
			}
			e, ok := errors.AsType[*Error](r.Err)
			if !ok || e.Reason != tt.reason || e.Phase != PhaseTLS {
				t.Fatalf("check = %+v, want %s", r, tt.reason)
			}
			if e.Error() == "send mail: tls (provider 127.0.0.1)" {
				t.Errorf("%q does not say what to do", e)
			}
		})
	}
}

func TestMailer_neverAuthenticatesInClear(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{Providers: []Provider{{Host: "mail.example.com", TLS: TLSNone, Username: "u", Password: "p"}}}); err == nil {
		t.Error("New accepted credentials without TLS for a remote host")
	}
	// At run time the peer's address decides, whatever the name says.
	server, client := net.Pipe()
	defer server.Close()
	defer client.Close()
	p, err := newPool(Provider{Name: "x", Host: "localhost", Username: "u", Password: "p", MaxConns: 1}, &Config{})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = server.Write([]byte("220 hi\r\n")) }()
	c := &conn{wire: &wire{raw: client}}
	if c.client, err = smtpNewClient(client); err != nil {
		t.Fatal(err)
	}
	if err := p.authenticate(c); !errors.Is(err, errClearAuth) {
		t.Errorf("authenticate = %v, want %v", err, errClearAuth)
	}
}

func TestMailer_Check(t *testing.T) {
	t.Parallel()
	good := testenv.SMTP(t, testenv.STARTTLS(), testenv.Login("user", "secret"))
	bad := testenv.SMTP(t, testenv.Login("user", "secret"))
	badURL := strings.Replace(bad.URL(), "secret", "wrong", 1)
	m := newMailer(t, good.URL()+"&name=good,"+badURL+"?name=bad")
	r := m.Check(t.Context())
	if len(r) != 2 || !r[0].OK || r[0].Provider != "good" || r[0].TLS != "TLS 1.3" || r[0].Auth != "PLAIN" {
		t.Errorf("good: %+v", r[0])
	}
	e, ok := errors.AsType[*Error](r[1].Err)
	if r[1].OK || !ok || e.Code != 535 || e.Enhanced != "5.7.8" || e.Reason != ReasonAuth {
		t.Errorf("bad: %+v", r[1])
	}
	if c := good.Commands(); c[len(c)-1] != "QUIT" {
		t.Errorf("last command %q, want QUIT", c[len(c)-1])
	}
	good.WaitOpen(t, 0)
	bad.WaitOpen(t, 0)
}

func TestMailer_Close(t *testing.T) {
	t.Parallel()
	t.Run("waits for sends under way", func(t *testing.T) {
		t.Parallel()
		s := testenv.SMTP(t)
		m := newMailer(t, s.URL())
		committed, closing := make(chan struct{}), make(chan struct{})
		var wg sync.WaitGroup
		var sent error
		wg.Go(func() {
			_, sent = m.Send(t.Context(), testEnvelope(), Options{Commit: func(context.Context, string) error {
				close(committed)
				<-closing
				return nil
			}})
		})
		<-committed
		wg.Go(func() {
			if err := m.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		// Close has begun when a new send is refused.
		for {
			e := sendErr(t, t.Context(), m, testEnvelope(), Options{})
			if e != nil && errors.Is(e, ErrClosed) {
				break
			}
		}
		close(closing)
		wg.Wait()
		if sent != nil {
			t.Errorf("send under way: %v", sent)
		}
		s.WaitOpen(t, 0)
	})
	t.Run("cuts at the end of its context", func(t *testing.T) {
		t.Parallel()
		for _, stage := range []testenv.Stage{testenv.StageGreeting, testenv.StageMail, testenv.StageVerdict} {
			s := testenv.SMTP(t, testenv.Hang(stage))
			m := newMailer(t, s.URL()+"?conns=2")
			var wg sync.WaitGroup
			for range 4 { // two of them wait for a slot
				wg.Go(func() {
					e := sendErr(t, context.WithoutCancel(t.Context()), m, testEnvelope(), Options{})
					switch {
					case e == nil:
						t.Error("sent")
					case stage == testenv.StageVerdict && !e.Unknown() && !errors.Is(e, ErrClosed):
						t.Errorf("%s: %v, want unknown or closed", stage, e)
					case stage != testenv.StageVerdict && (e.Unknown() || !errors.Is(e, ErrClosed)):
						t.Errorf("%s: %v, want closed", stage, e)
					}
				})
			}
			s.WaitOpen(t, 2)
			if stage == testenv.StageVerdict {
				s.WaitCount(t, 2)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			if err := m.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: Close = %v, want the context's error", stage, err)
			}
			cancel()
			wg.Wait()
			s.WaitOpen(t, 0)
		}
	})
}

func TestNew_reportsAllProblems(t *testing.T) {
	t.Parallel()
	_, err := New(Config{
		Providers:   []Provider{{Host: "bad host"}, {Host: "example.com", Auth: "ntlm"}, {Host: "example.org", CAFile: "/nonexistent"}},
		MaxMessages: -1, MaxAge: -time.Second, HELO: "a b", DKIM: &DKIM{},
	})
	if err == nil {
		t.Fatal("New accepted it")
	}
	for _, want := range []string{"provider 1: host", "provider 2: AUTH", "example.org", "MaxMessages is -1", "MaxAge is -1s", "HELO", "DKIM"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in:\n%v", want, err)
		}
	}
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the missing CA file is not wrapped: %v", err)
	}
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "SMTP_URL") {
		t.Errorf("New without providers = %v, want a hint at SMTP_URL", err)
	}
}
