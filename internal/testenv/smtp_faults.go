package testenv

import "time"

// Stage is a point of an SMTP session at which a fault can strike.
type Stage string

// The stages. A fault at a command's stage replaces the answer to it.
const (
	StageGreeting Stage = "greeting"
	StageHello    Stage = "hello" // EHLO and HELO
	StageSTARTTLS Stage = "starttls"
	StageAuth     Stage = "auth"
	StageMail     Stage = "mail"
	StageRcpt     Stage = "rcpt"
	StageData     Stage = "data"    // the DATA command
	StageBody     Stage = "body"    // after the 354
	StageVerdict  Stage = "verdict" // after the final dot
	StageReset    Stage = "rset"
	StageNoop     Stage = "noop"
	StageQuit     Stage = "quit"
)

var stages = map[string]Stage{
	"EHLO": StageHello, "HELO": StageHello, "STARTTLS": StageSTARTTLS, "AUTH": StageAuth, "MAIL": StageMail,
	"RCPT": StageRcpt, "DATA": StageData, "RSET": StageReset, "NOOP": StageNoop, "QUIT": StageQuit,
}

type faultKind int

const (
	kindRefuse faultKind = iota + 1
	kindSay
	kindHang
	kindCut
	kindCutBody
	kindSlow
	kindDelay
	kindGreylist
	kindEvery421
	kindCloseAfterAccept
	kindDropIdle
	kindDataAnyway
	kindWithout
	kindSize
	kindSMTPUTF8
	kindSTARTTLS
	kindImplicitTLS
	kindLogin
	kindDiscard
)

// Fault is something the SMTP server does differently. Faults are combined
// freely; at one stage the first one that applies wins.
type Fault struct {
	kind  faultKind
	stage Stage
	code  int
	text  string
	user  string
	n     int
	pause time.Duration
	names []string
	to    string
	times int
}

// Times limits a fault at a stage to its first n uses. Without it, and for
// n < 1, a fault never ends.
func (f Fault) Times(n int) Fault {
	f.times = n
	return f
}

// For limits a fault to one recipient. It has a meaning from [StageRcpt] on.
func (f Fault) For(to string) Fault {
	f.to = to
	return f
}

// Refuse answers with a code and text, such as 550 and "5.1.1 no such user".
// A refused message is not kept. 421, a refused greeting and a refusal in the
// middle of the body ([StageBody]) end the connection.
func Refuse(code int, text string, at Stage) Fault {
	return Fault{kind: kindRefuse, code: code, text: text, stage: at}
}

// Say writes raw bytes instead of a reply. At [StageVerdict] the message is kept.
func Say(raw string, at Stage) Fault { return Fault{kind: kindSay, text: raw, stage: at} }

// Hang never answers. At [StageBody] it stops reading too; at [StageVerdict]
// the message is kept first.
func Hang(at Stage) Fault { return Fault{kind: kindHang, stage: at} }

// Cut resets the connection instead of answering. At [StageVerdict] the
// message is kept first.
func Cut(at Stage) Fault { return Fault{kind: kindCut, stage: at} }

// CutBody resets the connection after n bytes of a message's body.
func CutBody(n int) Fault { return Fault{kind: kindCutBody, stage: StageBody, n: n} }

// Delay waits for d before the answer at a stage, which is otherwise the usual one.
func Delay(d time.Duration, at Stage) Fault { return Fault{kind: kindDelay, stage: at, pause: d} }

// SlowReader rests for pause after each n bytes of a body.
func SlowReader(n int, pause time.Duration) Fault {
	return Fault{kind: kindSlow, stage: StageBody, n: max(n, 1), pause: pause}
}

// Greylist refuses the first attempt for each recipient with 450 4.7.1.
func Greylist() Fault { return Fault{kind: kindGreylist} }

// Every421 answers 421 to each n-th MAIL of a connection and closes it.
func Every421(n int) Fault { return Fault{kind: kindEvery421, n: max(n, 1)} }

// CloseAfterAccept closes the connection right after the 250 of a message.
func CloseAfterAccept() Fault { return Fault{kind: kindCloseAfterAccept, stage: StageVerdict} }

// DropIdle closes connections on which d passes between two messages.
func DropIdle(d time.Duration) Fault { return Fault{kind: kindDropIdle, pause: d} }

// DataAnyway answers DATA with 354 even if no recipient was accepted, which
// RFC 2920 allows; an ended message is then refused with 554.
func DataAnyway() Fault { return Fault{kind: kindDataAnyway} }

// Without hides extensions, such as "PIPELINING", from the answer to EHLO.
func Without(names ...string) Fault { return Fault{kind: kindWithout, names: names} }

// Size is the advertised size limit in octets; it is not enforced.
func Size(n int) Fault { return Fault{kind: kindSize, n: n} }

// SMTPUTF8 advertises the extension of that name.
func SMTPUTF8() Fault { return Fault{kind: kindSMTPUTF8} }

// STARTTLS offers STARTTLS with a self-signed certificate for loopback.
func STARTTLS() Fault { return Fault{kind: kindSTARTTLS} }

// ImplicitTLS speaks TLS from the first byte.
func ImplicitTLS() Fault { return Fault{kind: kindImplicitTLS} }

// Login demands AUTH PLAIN with these credentials, which must not need
// escaping in a URL.
func Login(user, password string) Fault { return Fault{kind: kindLogin, user: user, text: password} }

// Discard counts messages without keeping them, for benchmarks.
func Discard() Fault { return Fault{kind: kindDiscard} }
