package mailer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

// Phase is the part of a delivery in which something happened.
type Phase string

// The phases in the order of a delivery. Up to and including [PhaseBody] the
// server does not have the message; in [PhaseVerdict] only a reply can tell.
const (
	PhaseBuild   Phase = "build"   // making the bytes, before any connection
	PhaseConnect Phase = "connect" // waiting for a slot, dial, greeting, EHLO
	PhaseTLS     Phase = "tls"     // STARTTLS or implicit TLS
	PhaseAuth    Phase = "auth"    // AUTH
	PhaseMail    Phase = "mail"    // MAIL FROM
	PhaseRcpt    Phase = "rcpt"    // RCPT TO
	PhaseData    Phase = "data"    // DATA up to its 354
	PhaseBody    Phase = "body"    // after the 354, before the final dot
	PhaseVerdict Phase = "verdict" // after the final dot
)

// beforeBody reports whether nothing of the message itself was sent.
func (p Phase) beforeBody() bool { return p != PhaseBody && p != PhaseVerdict }

// Reason says why a delivery failed. It is a closed set, fit for a metric label.
type Reason string

// The reasons. Which of them count against the provider and which end the
// job is told by [Error.ProviderFault] and [Error.Permanent].
const (
	ReasonRefusedAddress Reason = "refused_address" // the recipient does not exist (any more): suppress it
	ReasonMailboxFull    Reason = "mailbox_full"    // 4.2.2, 5.2.2, 452
	ReasonPolicy         Reason = "policy"          // 5.7.x and other refusals of us or our content; never suppress the person
	ReasonTooBig         Reason = "too_big"         // above the server's or the mailbox's size limit
	ReasonThrottled      Reason = "throttled"       // the provider says we send too fast or too much
	ReasonGreylisted     Reason = "greylisted"      // come back in some minutes
	ReasonTemporary      Reason = "temporary"       // any other 4xx about this message
	ReasonAuth           Reason = "auth"            // the provider refuses our credentials
	ReasonTLS            Reason = "tls"             // no STARTTLS, or the certificate does not fit
	ReasonConnect        Reason = "connect"         // dial failed, or the connection was lost
	ReasonTimeout        Reason = "timeout"         // a deadline passed
	ReasonProtocol       Reason = "protocol"        // the server or we broke the protocol
	ReasonInvalidMessage Reason = "invalid_message" // cannot be built or carried; a fault of ours
	ReasonProvider       Reason = "provider"        // the provider is not working: greeting refused, 421, MAIL 4xx, breaker open
	ReasonAborted        Reason = "aborted"         // stopped by the caller (cancel, Commit error, Close) before the dot
	ReasonUnknownOutcome Reason = "unknown_outcome" // the connection failed after the final dot
)

// Reasons lists every [Reason], so that metrics can create their series up front.
func Reasons() []Reason {
	return []Reason{
		ReasonRefusedAddress, ReasonMailboxFull, ReasonPolicy, ReasonTooBig, ReasonThrottled, ReasonGreylisted,
		ReasonTemporary, ReasonAuth, ReasonTLS, ReasonConnect, ReasonTimeout, ReasonProtocol, ReasonInvalidMessage,
		ReasonProvider, ReasonAborted, ReasonUnknownOutcome,
	}
}

var (
	// ErrClosed is wrapped by the error of a send that came after [Mailer.Close].
	ErrClosed = errors.New("mailer is closed")
	// ErrUnknownProvider is wrapped by the error of a send whose
	// [Options.Provider] names no configured provider.
	ErrUnknownProvider = errors.New("no provider has this name")
)

// Error is the failure of a build or a delivery.
//
// Its text holds phase, codes, reason and provider only. The server's words
// are not kept at all: they often repeat the recipient's address, in any
// charset, and job queues store error texts.
type Error struct {
	Phase    Phase
	Code     int    // basic reply code, 0 if the server did not reply
	Enhanced string // enhanced status code (RFC 3463) such as "5.1.1", "" if none
	Provider string // name of the provider, "" before one was chosen
	Reason   Reason
	Err      error // cause: context, network or local error; never holds server text; may be nil

	retryAfter time.Duration
}

// Error tells phase, codes, reason, provider and, for local causes, the cause.
// The text is valid UTF-8 and free of addresses and message content.
func (e *Error) Error() string {
	b := make([]byte, 0, 96)
	b = append(b, "send mail: "...)
	b = append(b, e.Phase...)
	if string(e.Reason) != string(e.Phase) {
		b = append(b, ": "...)
		b = append(b, e.Reason...)
	}
	if e.Code != 0 {
		b = append(b, ' ')
		b = strconv.AppendInt(b, int64(e.Code), 10)
		if e.Enhanced != "" {
			b = append(b, ' ')
			b = append(b, e.Enhanced...)
		}
	}
	if d := safeDetail(e.Err); d != "" {
		b = append(b, ": "...)
		b = append(b, d...)
	}
	if e.Provider != "" {
		b = append(b, " (provider "...)
		b = append(b, e.Provider...)
		b = append(b, ')')
	}
	return string(b)
}

// Unwrap gives the cause, so that errors.Is finds context and network errors.
func (e *Error) Unwrap() error { return e.Err }

// Permanent reports whether trying again cannot help: the message is unusable,
// or the recipient's side refused it for good (5xx).
func (e *Error) Permanent() bool {
	switch e.Reason {
	case ReasonInvalidMessage:
		return true
	case ReasonTooBig:
		return e.Code == 0 || e.Code >= 500
	case ReasonRefusedAddress, ReasonMailboxFull, ReasonPolicy, ReasonProtocol:
		return e.Code >= 500
	case ReasonThrottled, ReasonGreylisted, ReasonTemporary, ReasonAuth, ReasonTLS, ReasonConnect, ReasonTimeout,
		ReasonProvider, ReasonAborted, ReasonUnknownOutcome:
	}
	return false
}

// Unknown reports whether the message may or may not have been accepted: the
// exchange failed after the final dot and before its reply.
func (e *Error) Unknown() bool { return e.Reason == ReasonUnknownOutcome }

// ProviderFault reports whether the provider, not the message or its
// recipient, is to blame, so that the failure should not use up one of the
// job's attempts. The message was definitely not sent.
func (e *Error) ProviderFault() bool {
	switch e.Reason {
	case ReasonAuth, ReasonTLS, ReasonProvider, ReasonThrottled:
		return true
	case ReasonConnect, ReasonTimeout:
		return e.Phase.beforeBody() && e.Phase != PhaseBuild && !errors.Is(e.Err, errNoSlot)
	case ReasonProtocol:
		return e.Code < 500 && e.Phase.beforeBody()
	case ReasonRefusedAddress, ReasonMailboxFull, ReasonPolicy, ReasonTooBig, ReasonGreylisted, ReasonTemporary,
		ReasonInvalidMessage, ReasonAborted, ReasonUnknownOutcome:
	}
	return false
}

// RetryAfter is how long to wait before the next attempt: what the server
// asked for, or when the circuit breaker of the first usable provider lets a
// probe through. 0 means no hint.
func (e *Error) RetryAfter() time.Duration { return e.retryAfter }

// problem is an error text of our own that names a field or a rule but never
// holds a value, and is therefore safe to print.
type problem string

func (p problem) Error() string { return string(p) }

const (
	// errNoSlot: every connection of the provider was busy until the context ended.
	errNoSlot problem = "all connections are busy; raise the provider's connection limit or lower the concurrency"
	// errBreakerOpen: nothing was tried, the provider is resting.
	errBreakerOpen problem = "skipped after repeated failures until its next probe"
)

// safeDetail renders the kinds of cause whose text is known to be harmless.
func safeDetail(err error) string {
	if err == nil {
		return ""
	}
	if p, ok := errors.AsType[problem](err); ok {
		return string(p)
	}
	for _, known := range []error{ErrClosed, ErrUnknownProvider, context.DeadlineExceeded, context.Canceled} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		if dns.IsNotFound {
			return "host not found"
		}
		return "name resolution failed"
	}
	if isTLSError(err) {
		return tlsDetail(err)
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "no answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed by the server"
	}
	return ""
}

func isTLSError(err error) bool { return tlsDetail(err) != "" }

// tlsDetail describes a certificate or handshake failure in fixed words.
func tlsDetail(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "certificate signed by an unknown authority; set ca= in the URL"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "certificate is not valid for this host name"
	}
	if c, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if c.Reason == x509.Expired {
			return "certificate has expired or is not yet valid"
		}
		return "certificate is invalid"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "certificate verification failed"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "server does not speak TLS on this port"
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return "TLS handshake refused"
	}
	return ""
}
