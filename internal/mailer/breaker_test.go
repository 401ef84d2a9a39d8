package mailer

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
)

func TestBreaker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &breaker{threshold: 3, base: 10 * time.Second, most: 30 * time.Second}
		allow := func(want, wantProbe bool) {
			t.Helper()
			if ok, probe := b.allow(); ok != want || probe != wantProbe {
				t.Fatalf("allow = %t, %t; want %t, %t", ok, probe, want, wantProbe)
			}
		}
		within := func(lo, hi time.Duration) time.Duration {
			t.Helper()
			d := b.wait()
			if d < lo || d > hi {
				t.Fatalf("wait = %s, want %s to %s", d, lo, hi)
			}
			return d
		}

		within(0, 0)
		for range 2 {
			allow(true, false)
			b.report(false, outcomeFault, 0)
		}
		within(8*time.Second, 12*time.Second)
		allow(true, false)
		b.report(false, outcomeAlive, 0) // a success in between starts the count anew
		for range 3 {
			allow(true, false)
			b.report(false, outcomeFault, 0)
		}
		allow(false, false)
		pause := within(8*time.Second, 12*time.Second)
		b.report(false, outcomeFault, 0) // a straggler does not lengthen the pause
		if again := b.wait(); again != pause {
			t.Errorf("wait = %s after a straggler, want %s", again, pause)
		}
		b.report(false, outcomeAlive, 0) // nor does a late success end it
		allow(false, false)

		time.Sleep(pause)
		allow(true, true)
		allow(false, false) // one probe at a time
		b.report(true, outcomeFault, 0)
		pause = within(16*time.Second, 24*time.Second)
		time.Sleep(pause)
		allow(true, true)
		b.report(true, outcomeFault, 0)
		pause = within(24*time.Second, 36*time.Second) // capped at 30 s, jittered
		time.Sleep(pause)
		allow(true, true)
		b.report(true, outcomeNeutral, 0) // the caller gave up: the next one probes
		allow(true, true)
		b.report(true, outcomeAlive, 0)
		within(0, 0)
		allow(true, false)
		b.report(false, outcomeTrip, time.Minute) // wrong password: at once, and for as long as asked
		allow(false, false)
		within(time.Minute, time.Minute)
	})
}

func TestMailer_Send_failover(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		faults []testenv.Fault
		moves  bool
	}{
		{"greeting", []testenv.Fault{testenv.Refuse(554, "no", testenv.StageGreeting)}, true},
		{"greeting cut", []testenv.Fault{testenv.Cut(testenv.StageGreeting)}, true},
		{"EHLO", []testenv.Fault{testenv.Refuse(421, "no", testenv.StageHello)}, true},
		{"STARTTLS", []testenv.Fault{testenv.STARTTLS(), testenv.Refuse(454, "4.7.0 no", testenv.StageSTARTTLS)}, true},
		{"AUTH", []testenv.Fault{testenv.Login("user", "secret"), testenv.Refuse(535, "5.7.8 no", testenv.StageAuth)}, true},
		{"MAIL 4xx", []testenv.Fault{testenv.Refuse(451, "4.3.0 no", testenv.StageMail)}, true},
		{"MAIL 421", []testenv.Fault{testenv.Refuse(421, "4.3.0 no", testenv.StageMail)}, true},
		{"RCPT 421", []testenv.Fault{testenv.Refuse(421, "4.3.0 no", testenv.StageRcpt)}, true},
		{"EOF at MAIL", []testenv.Fault{testenv.Cut(testenv.StageMail)}, true},
		{"EOF at DATA", []testenv.Fault{testenv.Cut(testenv.StageData)}, true},
		{"greylisted", []testenv.Fault{testenv.Greylist()}, false},
		{"address refused", []testenv.Fault{testenv.Refuse(550, "5.1.1 no", testenv.StageRcpt)}, false},
		{"sender refused", []testenv.Fault{testenv.Refuse(550, "5.7.1 no", testenv.StageMail)}, false},
		{"cut in the body", []testenv.Fault{testenv.CutBody(1)}, false},
		{"content refused", []testenv.Fault{testenv.Refuse(554, "5.7.1 no", testenv.StageVerdict)}, false},
		{"throttled after the dot", []testenv.Fault{testenv.Refuse(454, "Throttling failure", testenv.StageVerdict)}, false},
		{"unknown", []testenv.Fault{testenv.Cut(testenv.StageVerdict)}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			first, second := testenv.SMTP(t, tt.faults...), testenv.SMTP(t)
			m := newMailer(t, first.URL()+","+second.URL())
			env := testEnvelope()
			env.Raw = make([]byte, 0, 20<<20)
			for len(env.Raw) < 2<<20 { // the cut comes while it is being written
				env.Raw = append(env.Raw, testRaw...)
			}
			receipt, err := m.Send(t.Context(), env, Options{})
			if tt.moves {
				if err != nil || receipt.Provider != m.pools[1].name || second.Count() != 1 || first.Count() != 0 {
					t.Errorf("receipt %+v, error %v; want delivery by the second", receipt, err)
				}
				return
			}
			if err == nil || second.Total() != 0 {
				t.Errorf("error %v, %d connections to the second; want an error and none", err, second.Total())
			}
		})
	}
}

func TestMailer_Send_allProvidersAtFault(t *testing.T) {
	t.Parallel()
	one := testenv.SMTP(t, testenv.Refuse(421, "4.3.2 no", testenv.StageGreeting))
	two := testenv.SMTP(t, testenv.Refuse(451, "4.3.0 wait 20 seconds", testenv.StageMail))
	m := newMailer(t, one.URL()+"?name=one,"+two.URL()+"?name=two", func(c *Config) { c.BreakerThreshold, c.BreakerPause = 3, time.Minute })
	for i := range 5 {
		e := sendErr(t, t.Context(), m, testEnvelope(), Options{})
		if e == nil || !e.ProviderFault() || e.Permanent() || e.Unknown() {
			t.Fatalf("send %d: %v, want the provider's fault", i, e)
		}
		if e.RetryAfter() < 20*time.Second || e.RetryAfter() > 72*time.Second {
			t.Errorf("send %d: retry after %s", i, e.RetryAfter())
		}
		if i < 3 && (e.Provider != "two" || e.Code != 451) {
			t.Errorf("send %d: %v, want the last one's", i, e)
		}
	}
	if one.Total() != 3 || two.Total() > 3 {
		t.Errorf("%d and %d connections; the breakers let more than 3 through", one.Total(), two.Total())
	}
	// A third provider would still be used.
	three := testenv.SMTP(t)
	m = newMailer(t, one.URL()+"?name=one,"+three.URL()+"?name=three")
	if r, err := m.Send(t.Context(), testEnvelope(), Options{}); err != nil || r.Provider != "three" {
		t.Errorf("receipt %+v, %v", r, err)
	}
}

func TestMailer_Send_breakerRecovers(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t, testenv.Refuse(421, "4.3.2 no", testenv.StageGreeting).Times(2))
	m := newMailer(t, s.URL(), func(c *Config) { c.BreakerThreshold, c.BreakerPause = 1, time.Millisecond })
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, err := m.Send(t.Context(), testEnvelope(), Options{})
		if err == nil {
			break
		}
		e, ok := errors.AsType[*Error](err)
		if !ok || !e.ProviderFault() || time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(e.RetryAfter())
	}
	if s.Total() != 3 || s.Count() != 1 {
		t.Errorf("%d connections, %d messages; want two failures and a success", s.Total(), s.Count())
	}
}

// A wrong password is tried once, not by every worker.
func TestMailer_Send_wrongPasswordOpensBreaker(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t, testenv.Login("user", "secret"), testenv.Refuse(535, "5.7.8 no", testenv.StageAuth))
	m := newMailer(t, s.URL())
	for i := range 10 {
		e := sendErr(t, t.Context(), m, testEnvelope(), Options{})
		if e == nil || !e.ProviderFault() || e.RetryAfter() < 50*time.Second {
			t.Fatalf("send %d: %v, retry after %s", i, e, e.RetryAfter())
		}
	}
	if s.Total() != 1 {
		t.Errorf("%d logins, want 1", s.Total())
	}
}

func TestMailer_Send_onlyProvider(t *testing.T) {
	t.Parallel()
	one := testenv.SMTP(t)
	two := testenv.SMTP(t, testenv.Refuse(421, "no", testenv.StageGreeting))
	m := newMailer(t, one.URL()+"?name=one,"+two.URL()+"?name=two")
	if e := sendErr(t, t.Context(), m, testEnvelope(), Options{Provider: "two"}); e == nil || e.Provider != "two" || one.Total() != 0 {
		t.Errorf("error %v, %d connections to one", e, one.Total())
	}
	if r, err := m.Send(t.Context(), testEnvelope(), Options{Provider: "one"}); err != nil || r.Provider != "one" {
		t.Errorf("receipt %+v, %v", r, err)
	}
	if e := sendErr(t, t.Context(), m, testEnvelope(), Options{Provider: "three"}); e == nil || !errors.Is(e, ErrUnknownProvider) || e.Permanent() || e.Unknown() {
		t.Errorf("error %v, want ErrUnknownProvider", e)
	}
}

// The job pays for an unknown outcome, but the provider gets no more mail.
func TestMailer_Send_unknownOutcomesOpenBreaker(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t, testenv.Cut(testenv.StageVerdict))
	m := newMailer(t, s.URL(), func(c *Config) { c.BreakerThreshold, c.BreakerPause = 3, time.Minute })
	for i := range 5 {
		e := sendErr(t, t.Context(), m, testEnvelope(), Options{})
		if e == nil || e.Unknown() != (i < 3) || e.ProviderFault() != (i >= 3) {
			t.Fatalf("send %d: %v", i, e)
		}
	}
	if s.Total() != 3 {
		t.Errorf("%d connections, want 3", s.Total())
	}
}

// Recipients' refusals and callers' cancels never open a breaker.
func TestMailer_Send_breakerIgnoresRecipients(t *testing.T) {
	t.Parallel()
	s := testenv.SMTP(t, testenv.Refuse(550, "5.1.1 no", testenv.StageRcpt).For("b@example.com"))
	m := newMailer(t, s.URL(), func(c *Config) { c.BreakerThreshold = 2 })
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if e := sendErr(t, t.Context(), m, testEnvelope(), Options{}); e == nil || e.ProviderFault() {
				t.Errorf("refused: %v, want an error that is not the provider's", e)
			}
			if e := sendErr(t, cancelled, m, testEnvelope(), Options{}); e == nil || e.ProviderFault() {
				t.Errorf("cancelled: %v, want an error that is not the provider's", e)
			}
		})
	}
	wg.Wait()
	env := testEnvelope()
	env.To = "c@example.com"
	if _, err := m.Send(t.Context(), env, Options{}); err != nil {
		t.Error(err)
	}
}
