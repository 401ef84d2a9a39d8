package mailer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/medicalink/postroom/internal/testenv"
)

func readOne(t testing.TB, s string) (reply, error) {
	t.Helper()
	var r reply
	err := readReply(bufio.NewReader(strings.NewReader(s)), &r)
	return r, err
}

func TestReadReply(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in       string
		code     int
		enhanced string
		text     string
		err      error
	}{
		{"250 Ok\r\n", 250, "", "Ok", nil},
		{"250\r\n", 250, "", "", nil},
		{"250 2.1.5 Ok\r\n", 250, "2.1.5", "Ok", nil},
		{"250 2.0.0\n", 250, "2.0.0", "", nil},
		{"550-5.1.1 no\r\n550 5.1.1 such user\r\n", 550, "5.1.1", "no such user", nil},
		{"550-not here\r\n550 5.7.1 blocked\r\n", 550, "5.7.1", "not here blocked", nil},
		{"550 4.1.1 class differs\r\n", 550, "", "4.1.1 class differs", nil},
		{"550 5.1111.1 x\r\n", 550, "", "5.1111.1 x", nil},
		{"550 5.1.10 x\r\n", 550, "5.1.10", "x", nil},
		{"550 5.7.515x\r\n", 550, "", "5.7.515x", nil},
		{"450 4.2 x\r\n", 450, "", "4.2 x", nil},
		{"", 0, "", "", io.EOF},
		{"250 Ok", 0, "", "", io.ErrUnexpectedEOF},
		{"hello\r\n", 0, "", "", errReply},
		{"25x hello\r\n", 0, "", "", errReply},
		{"250hello\r\n", 0, "", "", errReply},
		{"999 x\r\n", 0, "", "", errReply},
		{"100 x\r\n", 0, "", "", errReply},
		{"\r\n", 0, "", "", errReply},
		{"250-a\r\n550 b\r\n", 0, "", "", errReply},
		{strings.Repeat("250-x\r\n", 1000), 0, "", "", errReply},
		{"250 " + strings.Repeat("x", 10_000) + "\r\n", 0, "", "", errReply},
	} {
		r, err := readOne(t, tt.in)
		if !errors.Is(err, tt.err) || (tt.err == nil && err != nil) {
			t.Errorf("%.40q: error %v, want %v", tt.in, err, tt.err)
			continue
		}
		if err == nil && (r.code != tt.code || r.enhanced != tt.enhanced || string(r.text) != tt.text) {
			t.Errorf("%.40q: %d %q %q, want %d %q %q", tt.in, r.code, r.enhanced, r.text, tt.code, tt.enhanced, tt.text)
		}
	}
}

// Every class of the table of replies.
func TestClassify(t *testing.T) {
	t.Parallel()
	const (
		job       = 0
		permanent = 1 << iota
		provider
	)
	for _, tt := range []struct {
		phase  Phase
		reply  string
		reason Reason
		class  int
	}{
		// The provider.
		{PhaseConnect, "421 4.3.2 busy", ReasonProvider, provider},
		{PhaseConnect, "554 go away", ReasonProvider, provider},
		{PhaseTLS, "454 4.7.0 TLS not available", ReasonTLS, provider},
		{PhaseAuth, "535 5.7.8 bad credentials", ReasonAuth, provider},
		{PhaseAuth, "454 4.7.0 temporary failure", ReasonAuth, provider},
		{PhaseAuth, "421 4.7.0 too many errors", ReasonProvider, provider},
		{PhaseMail, "451 4.3.0 try later", ReasonProvider, provider},
		{PhaseMail, "421 4.3.2 closing", ReasonProvider, provider},
		{PhaseMail, "454 Throttling failure: Maximum sending rate exceeded.", ReasonThrottled, provider},
		{PhaseMail, "530 5.7.0 authentication required", ReasonAuth, provider},
		{PhaseRcpt, "421 4.3.2 closing", ReasonProvider, provider},
		{PhaseData, "421 4.3.2 closing", ReasonProvider, provider},
		{PhaseData, "454 Throttling failure: Maximum sending rate exceeded.", ReasonThrottled, provider},
		{PhaseVerdict, "454 Throttling failure: Daily message quota exceeded.", ReasonThrottled, provider},
		{PhaseRcpt, "552 too many recipients", ReasonThrottled, provider},
		{PhaseMail, "250 what", ReasonProtocol, provider},

		// Greylisting and other temporary refusals.
		{PhaseRcpt, "450 4.7.1 greylisted", ReasonGreylisted, job},
		{PhaseRcpt, "451 4.7.1 try again later", ReasonGreylisted, job},
		{PhaseRcpt, "450 4.2.0 greylisted", ReasonGreylisted, job},
		{PhaseRcpt, "450 try again", ReasonGreylisted, job},
		{PhaseRcpt, "451 try again", ReasonGreylisted, job},
		{PhaseVerdict, "451 4.7.1 try again", ReasonGreylisted, job},
		{PhaseVerdict, "451 4.3.0 internal error", ReasonTemporary, job},
		{PhaseVerdict, "421 4.3.2 closing", ReasonTemporary, job},
		{PhaseRcpt, "452 4.3.1 insufficient system storage", ReasonTemporary, job},
		{PhaseRcpt, "452 4.5.3 too many recipients", ReasonTemporary, job},
		{PhaseRcpt, "452 too many recipients", ReasonTemporary, job},

		// A full mailbox.
		{PhaseRcpt, "452 4.2.2 mailbox full", ReasonMailboxFull, job},
		{PhaseRcpt, "452 mailbox full", ReasonMailboxFull, job},
		{PhaseVerdict, "452 4.2.2 over quota", ReasonMailboxFull, job},
		{PhaseRcpt, "552 5.2.2 mailbox full", ReasonMailboxFull, permanent},
		{PhaseRcpt, "552 mailbox is full", ReasonMailboxFull, permanent},

		// A dead address.
		{PhaseRcpt, "550 5.1.1 no such user", ReasonRefusedAddress, permanent},
		{PhaseRcpt, "550 5.1.2 no such host", ReasonRefusedAddress, permanent},
		{PhaseRcpt, "553 5.1.3 bad address", ReasonRefusedAddress, permanent},
		{PhaseRcpt, "550 5.1.10 null MX", ReasonRefusedAddress, permanent},
		{PhaseRcpt, "550 5.2.1 disabled", ReasonRefusedAddress, permanent},
		{PhaseRcpt, "550 no such user", ReasonRefusedAddress, permanent},
		{PhaseVerdict, "550 5.1.1 no such user", ReasonRefusedAddress, permanent},

		// Ours: size, policy, bugs. Never the person's.
		{PhaseMail, "552 5.3.4 too big", ReasonTooBig, permanent},
		{PhaseRcpt, "552 5.2.3 too big for this mailbox", ReasonTooBig, permanent},
		{PhaseVerdict, "552 message too large", ReasonTooBig, permanent},
		{PhaseRcpt, "550 5.7.1 blocked", ReasonPolicy, permanent},
		{PhaseRcpt, "554 blocked", ReasonPolicy, permanent},
		{PhaseVerdict, "554 5.7.1 spam", ReasonPolicy, permanent},
		{PhaseVerdict, "550 5.7.515 not authenticated", ReasonPolicy, permanent},
		{PhaseVerdict, "550 looks like spam", ReasonPolicy, permanent},
		{PhaseVerdict, "554 5.3.0 refused", ReasonPolicy, permanent},
		{PhaseRcpt, "550 5.4.1 access denied", ReasonPolicy, permanent},
		{PhaseMail, "550 5.1.8 bad sender", ReasonPolicy, permanent},
		{PhaseMail, "550 5.1.0 sender rejected", ReasonPolicy, permanent},
		{PhaseMail, "553 sender rejected", ReasonPolicy, permanent},
		{PhaseMail, "501 syntax", ReasonProtocol, permanent},
		{PhaseVerdict, "550 5.5.2 bare LF", ReasonProtocol, permanent},
		{PhaseData, "503 5.5.1 bad sequence", ReasonProtocol, permanent},
		{PhaseVerdict, "550 5.6.0 bad MIME", ReasonInvalidMessage, permanent},
	} {
		r, err := readOne(t, tt.reply+"\r\n")
		if err != nil {
			t.Fatal(err)
		}
		e := classify(tt.phase, &r)
		class := job
		if e.Permanent() {
			class |= permanent
		}
		if e.ProviderFault() {
			class |= provider
		}
		if e.Reason != tt.reason || class != tt.class || e.Unknown() {
			t.Errorf("%s %q: %s class %d, want %s class %d", tt.phase, tt.reply, e.Reason, class, tt.reason, tt.class)
		}
	}
}

func TestClassify_retryAfter(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		reply string
		want  time.Duration
	}{
		{"450 4.7.1 greylisted, try again in 300 seconds", 5 * time.Minute},
		{"450 4.7.1 Greylisted for 5 minutes", 5 * time.Minute},
		{"451 4.7.1 please retry in 1 hour", time.Hour},
		{"450 wait 90s", 90 * time.Second},
		{"450 wait 3 MIN.", 3 * time.Minute},
		{"450 come back in 9 days or 20 hours", time.Hour},
		{"450 wait 99999999999999999999 seconds", 0},
		{"450 try 10.0.0.1 later", 0},
		{"450 id A77 seconds", 0},
		{"450 greylisted", 0},
		{"454 Throttling failure: Daily message quota exceeded.", time.Hour},
		{"454 Throttling failure: Maximum sending rate exceeded.", 0},
		{"550 5.1.1 gone since 5 minutes", 0},
	} {
		r, err := readOne(t, tt.reply+"\r\n")
		if err != nil {
			t.Fatal(err)
		}
		if got := classify(PhaseRcpt, &r).RetryAfter(); got != tt.want {
			t.Errorf("%q: %s, want %s", tt.reply, got, tt.want)
		}
	}
}

func TestQueueID(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Ok: queued as 4bX2Kd3F9Tz1":                  "4bX2Kd3F9Tz1",
		"OK id=1rABcd-000123-Xy":                      "1rABcd-000123-Xy",
		"Ok 0100018c2f9d1a2b-6c8b1f2e-000000":         "0100018c2f9d1a2b-6c8b1f2e-000000",
		"3f1a2b4c Message accepted for delivery":      "3f1a2b4c",
		"OK  1700000000 abc-20020a170902.123 - gsmtp": "abc-20020a170902.123",
		"Ok":                         "",
		"queued as jane@example.org": "",
		"Ok <jane1234@example.org>":  "",
		"queued as <script>":         "script",
		"queued as \xff\xfe":         "",
		"Ok: queued as " + strings.Repeat("a", 500):                    strings.Repeat("a", 128),
		"Message-ID: <0102@eu-west-1.amazonses.com>, delivered to box": "",
	} {
		if got := queueID([]byte(in)); got != want {
			t.Errorf("%.60q: %q, want %q", in, got, want)
		}
	}
}

// What the server says, in whatever charset, reaches no error text.
func TestError_holdsNoServerText(t *testing.T) {
	t.Parallel()
	const canary = "canary-jane"
	said := "5.7.1 <" + canary + "@m\xfcller.example>: sagt \xe4\xf6\xfc"
	for _, stage := range []testenv.Stage{
		testenv.StageGreeting, testenv.StageHello, testenv.StageSTARTTLS, testenv.StageAuth, testenv.StageMail,
		testenv.StageRcpt, testenv.StageData, testenv.StageVerdict,
	} {
		for _, fault := range []testenv.Fault{
			testenv.Refuse(550, said, stage),
			testenv.Refuse(421, said, stage),
			testenv.Say("what? "+said+"\r\n", stage),
			testenv.Say("299-"+said+"\r\n299 "+said+"\r\n", stage),
		} {
			s := testenv.SMTP(t, testenv.STARTTLS(), testenv.Login("user", "canary-password"), fault)
			m := newMailer(t, s.URL(), func(c *Config) { c.ConnectTimeout, c.CommandTimeout = 2*time.Second, 2*time.Second })
			env := testEnvelope()
			env.To = canary + "@example.com"
			e := sendErr(t, t.Context(), m, env, Options{})
			if e == nil {
				continue // a 299 where a 2xx is due
			}
			for err := error(e); err != nil; err = errors.Unwrap(err) {
				if text := err.Error(); strings.Contains(text, "canary") || !utf8.ValidString(text) {
					t.Errorf("%s: %q", stage, text)
				}
			}
			if text := fmt.Sprintf("%v %+v %s", e, e, e); strings.Contains(text, "canary") {
				t.Errorf("%s: %q", stage, text)
			}
		}
	}
}

func TestError_Error(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  *Error
		want string
	}{
		{&Error{Phase: PhaseRcpt, Code: 550, Enhanced: "5.1.1", Provider: "relay", Reason: ReasonRefusedAddress}, "send mail: rcpt: refused_address 550 5.1.1 (provider relay)"},
		{&Error{Phase: PhaseVerdict, Provider: "relay", Reason: ReasonUnknownOutcome, Err: io.EOF}, "send mail: verdict: unknown_outcome: connection closed by the server (provider relay)"},
		{&Error{Phase: PhaseConnect, Provider: "relay", Reason: ReasonProvider, Err: errBreakerOpen}, "send mail: connect: provider: skipped after repeated failures until its next probe (provider relay)"},
		{&Error{Phase: PhaseBody, Reason: ReasonAborted, Err: errors.New("canary")}, "send mail: body: aborted"},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

// Every reason has a decision, and unknown excludes all others.
func TestReasons(t *testing.T) {
	t.Parallel()
	label := regexp.MustCompile(`^[a-z_]+$`)
	seen := map[Reason]bool{}
	for _, reason := range Reasons() {
		if seen[reason] || !label.MatchString(string(reason)) {
			t.Errorf("reason %q is not a label of its own", reason)
		}
		seen[reason] = true
		for _, phase := range []Phase{PhaseBuild, PhaseConnect, PhaseTLS, PhaseAuth, PhaseMail, PhaseRcpt, PhaseData, PhaseBody, PhaseVerdict} {
			for _, code := range []int{0, 250, 421, 450, 550} {
				e := &Error{Phase: phase, Code: code, Reason: reason}
				if n := b2i(e.Permanent()) + b2i(e.Unknown()) + b2i(e.ProviderFault()); n > 1 {
					t.Errorf("%+v is permanent %t, unknown %t and the provider's fault %t", e, e.Permanent(), e.Unknown(), e.ProviderFault())
				}
			}
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func FuzzReadReply(f *testing.F) {
	for _, s := range []string{"250 2.1.5 Ok\r\n", "550-5.1.1 a\r\n550 b\r\n", "450 wait 5 minutes\r\n", "250-\r\n", "250 5.\r\n", "250 2.0.\xff\r\n", "250 Ok: queued as \xfc\r\n"} {
		f.Add([]byte(s))
	}
	enhanced := regexp.MustCompile(`^([245]\.\d{1,3}\.\d{1,3})?$`)
	f.Fuzz(func(t *testing.T, in []byte) {
		var r reply
		if err := readReply(bufio.NewReader(strings.NewReader(string(in))), &r); err != nil {
			return
		}
		if r.code < 200 || r.code > 599 || len(r.text) > maxReplyText+1 || !enhanced.MatchString(r.enhanced) {
			t.Fatalf("%+v from %q", r, in)
		}
		if id := queueID(r.text); strings.ContainsFunc(id, func(c rune) bool { return c <= ' ' || c > '~' || c == '@' }) {
			t.Fatalf("queue id %q", id)
		}
		for _, phase := range []Phase{PhaseConnect, PhaseTLS, PhaseAuth, PhaseMail, PhaseRcpt, PhaseData, PhaseVerdict} {
			e := classify(phase, &r)
			if b2i(e.Permanent())+b2i(e.ProviderFault())+b2i(e.Unknown()) > 1 || e.RetryAfter() < 0 || e.RetryAfter() > maxRetryAfter || !utf8.ValidString(e.Error()) {
				t.Fatalf("%s: %+v from %q", phase, e, in)
			}
		}
	})
}
