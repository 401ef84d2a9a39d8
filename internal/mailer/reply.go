package mailer

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"time"
)

const (
	// A reply may have many lines (RFC 5321 §4.2.1); a server that never stops is broken.
	maxReplyLines = 128
	// Text kept of a reply: enough for an enhanced code, a queue id or a waiting time.
	maxReplyText = 512
	// A waiting time beyond this in a reply is not believed.
	maxRetryAfter = time.Hour
)

// errReply: what came is not an SMTP reply.
const errReply problem = "not an SMTP reply"

// reply is a server's answer. Its text shares the connection's buffer, is
// untrusted in every way and must not outlive the next read.
type reply struct {
	code     int
	enhanced string
	text     []byte // last line's text, without code and enhanced code
}

func (r *reply) ok() bool { return r.code >= 200 && r.code < 300 }

// readReply reads one reply, of one or more lines. A line longer than the
// reader's buffer is a protocol error.
func readReply(br *bufio.Reader, r *reply) error {
	*r = reply{text: r.text[:0]}
	for n := range maxReplyLines {
		line, err := br.ReadSlice('\n')
		if err != nil {
			switch {
			case errors.Is(err, io.EOF) && len(line) > 0:
				return io.ErrUnexpectedEOF
			case errors.Is(err, bufio.ErrBufferFull):
				return errReply
			}
			return err
		}
		line = bytes.TrimRight(line, "\r\n")
		code, more, text, ok := splitReplyLine(line)
		if !ok || (n > 0 && code != r.code) {
			return errReply
		}
		r.code = code
		enhanced, text := cutEnhanced(code, text)
		if enhanced != "" {
			r.enhanced = enhanced
		}
		// Keep the first lines too: hints and limits are often there.
		if len(r.text) > 0 && len(r.text) < maxReplyText {
			r.text = append(r.text, ' ')
		}
		r.text = append(r.text, text[:min(len(text), maxReplyText-min(len(r.text), maxReplyText))]...)
		if !more {
			return nil
		}
	}
	return errReply
}

// splitReplyLine takes "250-text", "250 text" or "250" apart.
func splitReplyLine(line []byte) (code int, more bool, text []byte, ok bool) {
	if len(line) < 3 {
		return 0, false, nil, false
	}
	for _, c := range line[:3] {
		if c < '0' || c > '9' {
			return 0, false, nil, false
		}
		code = code*10 + int(c-'0')
	}
	if code < 200 || code > 599 {
		return 0, false, nil, false
	}
	if len(line) == 3 {
		return code, false, nil, true
	}
	switch line[3] {
	case ' ':
	case '-':
		more = true
	default:
		return 0, false, nil, false
	}
	return code, more, line[4:], true
}

// cutEnhanced splits an enhanced status code (RFC 3463) off the front of a
// reply's text, whether or not the server advertised ENHANCEDSTATUSCODES. One
// whose class contradicts the basic code is ignored.
func cutEnhanced(code int, text []byte) (enhanced string, rest []byte) {
	// class "." 1*3DIGIT "." 1*3DIGIT
	if len(text) < 5 || text[1] != '.' || int(text[0]-'0') != code/100 {
		return "", text
	}
	i := 2
	for range 2 {
		start := i
		for i < len(text) && text[i] >= '0' && text[i] <= '9' {
			i++
		}
		if i == start || i-start > 3 {
			return "", text
		}
		if start == 2 {
			if i >= len(text) || text[i] != '.' {
				return "", text
			}
			i++
		}
	}
	if i < len(text) && text[i] != ' ' && text[i] != '\t' {
		return "", text
	}
	rest = bytes.TrimLeft(text[i:], " \t")
	if string(text[:i]) == "2.0.0" { // nearly every success: no allocation
		return "2.0.0", rest
	}
	return string(text[:i]), rest
}

// queueID finds the id a server gave a message in the text of its 250, for
// support cases: "Ok: queued as ABC" (Postfix), "OK id=ABC" (Exim), "ABC
// Message accepted for delivery" (OpenSMTPD, Sendmail), "OK 17000 ABC - gsmtp"
// (Gmail), "Ok ABC" (Amazon SES). The server's text is not trusted: anything
// but a plain token is dropped.
func queueID(text []byte) string {
	if id, ok := bytes.CutSuffix(text, []byte(" Message accepted for delivery")); ok {
		return token(id)
	}
	text = bytes.TrimSuffix(text, []byte(" - gsmtp"))
	for _, mark := range []string{"queued as ", "id=", "Message-ID: "} {
		if _, after, ok := bytes.Cut(text, []byte(mark)); ok {
			return token(after)
		}
	}
	if i := bytes.LastIndexByte(text, ' '); i >= 0 {
		id := token(text[i+1:])
		if len(id) >= 6 && bytes.ContainsAny([]byte(id), "0123456789") {
			return id
		}
	}
	return ""
}

func token(b []byte) string {
	b = bytes.TrimLeft(b, "<")
	n := 0
	for n < len(b) && n < 128 {
		c := b[n]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' && c != '.' && c != '/' {
			break
		}
		n++
	}
	if n < len(b) && b[n] == '@' {
		return "" // an address
	}
	return string(bytes.TrimRight(b[:n], "."))
}

// retryHint finds "N seconds", "N min" or "N hours" in a reply's text (Postal
// and most greylisting servers write it), capped at an hour. 0 means none.
func retryHint(text []byte) time.Duration {
	for i := 0; i < len(text); i++ {
		if text[i] < '0' || text[i] > '9' {
			continue
		}
		start := i
		for i < len(text) && text[i] >= '0' && text[i] <= '9' {
			i++
		}
		if start > 0 && (text[start-1] == '.' || isLetter(text[start-1])) || i-start > 6 {
			continue
		}
		n, err := strconv.Atoi(string(text[start:i]))
		if err != nil {
			continue
		}
		j := i
		for j < len(text) && text[j] == ' ' {
			j++
		}
		k := j
		for k < len(text) && isLetter(text[k]) {
			k++
		}
		var unit time.Duration
		switch string(bytes.ToLower(text[j:k])) {
		case "s", "sec", "secs", "second", "seconds":
			unit = time.Second
		case "m", "min", "mins", "minute", "minutes":
			unit = time.Minute
		case "h", "hr", "hrs", "hour", "hours":
			unit = time.Hour
		default:
			continue
		}
		return min(time.Duration(n)*unit, maxRetryAfter)
	}
	return 0
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

// classify turns a refusal into an [*Error]: by phase first, then by the
// enhanced code, then by the basic code.
func classify(phase Phase, r *reply) *Error {
	e := &Error{Phase: phase, Code: r.code, Enhanced: r.enhanced}
	e.Reason = reasonFor(phase, r)
	if r.code < 500 || e.Reason == ReasonThrottled {
		e.retryAfter = retryHint(r.text)
	}
	if e.Reason == ReasonThrottled && e.retryAfter == 0 && containsFold(r.text, "quota") {
		e.retryAfter = maxRetryAfter // a daily quota does not come back within minutes
	}
	return e
}

func reasonFor(phase Phase, r *reply) Reason {
	if r.code < 400 { // a 2xx or 3xx where the other was due
		return ReasonProtocol
	}
	switch phase {
	case PhaseConnect:
		return ReasonProvider
	case PhaseTLS:
		return ReasonTLS
	case PhaseAuth:
		if r.code == 421 {
			return ReasonProvider
		}
		return ReasonAuth
	case PhaseBuild, PhaseMail, PhaseRcpt, PhaseData, PhaseBody, PhaseVerdict:
	}
	if r.code == 421 {
		if phase.beforeBody() {
			return ReasonProvider
		}
		return ReasonTemporary
	}
	if r.code >= 500 {
		return permanentReason(phase, r)
	}
	return temporaryReason(phase, r)
}

func temporaryReason(phase Phase, r *reply) Reason {
	throttled := containsFold(r.text, "throttl") || containsFold(r.text, "rate exceeded") || containsFold(r.text, "quota exceeded")
	switch {
	case phase == PhaseMail:
		if throttled || r.code == 454 {
			return ReasonThrottled
		}
		return ReasonProvider
	case r.enhanced == "4.2.2":
		return ReasonMailboxFull
	case r.code == 454 || (throttled && phase != PhaseRcpt):
		return ReasonThrottled
	case r.enhanced == "4.5.3":
		return ReasonTemporary // too many recipients: with one each, the server's own limit
	case phase == PhaseRcpt && r.code == 452 && r.enhanced != "4.3.1":
		if containsFold(r.text, "recipients") {
			return ReasonTemporary
		}
		return ReasonMailboxFull
	case r.enhanced == "4.2.0", len(r.enhanced) > 3 && r.enhanced[:4] == "4.7.":
		return ReasonGreylisted
	case phase == PhaseRcpt && (r.code == 450 || r.code == 451) && (r.enhanced == "" || r.enhanced == "4.2.1"):
		return ReasonGreylisted
	}
	return ReasonTemporary
}

func permanentReason(phase Phase, r *reply) Reason {
	switch r.code {
	case 530, 534, 535, 538: // authentication required or lost (RFC 4954)
		if phase != PhaseVerdict && phase != PhaseRcpt {
			return ReasonAuth
		}
	case 552:
		if r.enhanced == "5.5.3" || containsFold(r.text, "recipients") {
			return ReasonThrottled // RFC 5321 §4.5.3.1.10: to be treated as temporary
		}
	}
	switch r.enhanced {
	case "5.2.2":
		return ReasonMailboxFull
	case "5.3.4", "5.2.3":
		return ReasonTooBig
	case "5.1.7", "5.1.8": // about the sender's address
		return ReasonPolicy
	}
	if r.enhanced != "" {
		switch r.enhanced[:min(4, len(r.enhanced))] {
		case "5.1.", "5.2.":
			if phase == PhaseMail {
				return ReasonPolicy
			}
			return ReasonRefusedAddress
		case "5.5.":
			return ReasonProtocol
		case "5.6.":
			return ReasonInvalidMessage
		case "5.7.":
			return ReasonPolicy
		}
	}
	switch {
	case r.code == 552:
		if r.enhanced == "" && containsFold(r.text, "mailbox") {
			return ReasonMailboxFull
		}
		return ReasonTooBig
	case r.enhanced != "": // 5.0, 5.3, 5.4: systems and routes, not the person
		return ReasonPolicy
	case r.code >= 500 && r.code <= 504 && phase != PhaseRcpt, r.code == 503, r.code == 555:
		return ReasonProtocol
	case phase == PhaseRcpt && (r.code == 550 || r.code == 551 || r.code == 553):
		return ReasonRefusedAddress
	}
	return ReasonPolicy
}

// containsFold reports whether text holds the lower-case ASCII word, ignoring
// case; text may be in any charset.
func containsFold(text []byte, word string) bool {
	return bytes.Contains(bytes.ToLower(text), []byte(word))
}
