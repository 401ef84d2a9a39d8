package rediskit

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9"
)

// ConnError says why Redis did not answer. Error() is for operators; Reason
// alone may be shown to anyone, since it names no host and no user.
type ConnError struct {
	Target string // what was tried: addresses, user, TLS, database
	Reason string // why it failed, in one phrase
	Hint   string // what to check or set
	Err    error  // the cause
}

// Error returns target, reason and hint.
func (e *ConnError) Error() string {
	return "connect to Redis at " + e.Target + ": " + e.Reason + "; " + e.Hint
}

// Unwrap returns the cause.
func (e *ConnError) Unwrap() error { return e.Err }

const (
	hintAddr   = "check REDIS_URL, or REDIS_HOST and REDIS_PORT"
	hintLogin  = "check the user and password in REDIS_URL, or REDIS_USERNAME and REDIS_PASSWORD"
	hintWatch  = "check REDIS_SENTINEL_USERNAME and REDIS_SENTINEL_PASSWORD: the sentinels have users of their own"
	hintCA     = "set REDIS_CA_FILE to the authority that signed the server's certificate"
	hintHost   = "connect with the name that the certificate is for (REDIS_URL or REDIS_HOST)"
	hintClient = "set REDIS_CERT_FILE and REDIS_KEY_FILE to a client certificate that the server accepts"
)

// explain turns the error of a first command into a ConnError.
func (c Config) explain(err error) error {
	e := &ConnError{Target: c.String(), Err: err}
	e.Reason, e.Hint = c.diagnose(err)
	return e
}

func (c Config) diagnose(err error) (reason, hint string) {
	if reason, hint = c.diagnoseTLS(err); reason != "" {
		return reason, hint
	}
	if reason, hint = c.diagnoseReply(err); reason != "" {
		return reason, hint
	}
	hintDown := hintAddr + ", and that the server is running there"
	if c.Master != "" {
		hintDown = "check REDIS_SENTINELS and REDIS_MASTER_NAME, and that the sentinels are running"
		if strings.Contains(err.Error(), "redis: nil") {
			return "the sentinels know no master of that name", "check REDIS_MASTER_NAME"
		}
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && !dns.IsTimeout {
		return "the host name does not resolve", hintAddr
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused", hintDown
	case errors.Is(err, os.ErrNotExist):
		return "no socket at that path", "check the path in REDIS_URL, and that the server is running"
	case errors.Is(err, os.ErrPermission):
		return "no permission to use that socket", "check the socket's owner and mode"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "host unreachable", hintAddr + ", and the route and firewall between here and there"
	case errors.Is(err, context.Canceled):
		return "cancelled before the server answered", "nothing to set: the program was asked to stop"
	case isTimeout(err):
		hint = hintAddr + ", and that no firewall drops the connection"
		if c.TLS {
			hint += "; a server without TLS on that port also stays silent: redis:// or REDIS_TLS=false"
		} else {
			hint += "; a server with TLS only also stays silent: rediss:// or REDIS_TLS=true"
		}
		return "no answer in time", hint
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.ErrUnexpectedEOF):
		if c.TLS {
			return "the server closed the connection", hintClient + "; is there a Redis server with TLS on that port?"
		}
		return "the server closed the connection", "if it speaks TLS, use rediss:// or REDIS_TLS=true"
	}
	return "the connection failed", hintAddr
}

func (c Config) diagnoseTLS(err error) (reason, hint string) {
	if !c.TLS {
		return "", ""
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "the server does not speak TLS on that port", "use redis:// or REDIS_TLS=false, or the server's TLS port"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "the server's certificate is signed by an unknown authority", hintCA
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the server's certificate is for another host", hintHost
	}
	if _, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		return "the server's certificate is not valid (expired, or not for servers)", "renew the server's certificate"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "the server's certificate could not be verified", hintCA
	}
	if alert, ok := errors.AsType[tls.AlertError](err); ok {
		return "the server refused the TLS handshake (" + alert.Error() + ")", hintClient
	}
	// An alert that arrives after a TLS 1.3 handshake is a net.OpError with op
	// "remote error" around an unexported alert.
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return "the server refused the TLS handshake (" + op.Err.Error() + ")", hintClient
	}
	return "", ""
}

func (c Config) diagnoseReply(err error) (reason, hint string) {
	reply, ok := errors.AsType[redis.Error](err)
	if !ok || errors.Is(err, redis.Nil) {
		return "", ""
	}
	text := reply.Error()
	if c.Master != "" && strings.Contains(err.Error(), "all sentinels") {
		for _, refused := range []string{"WRONGPASS", "NOAUTH", "NOPERM"} {
			if strings.Contains(text, refused) {
				return "the sentinels refuse the log-in (" + refused + ")", hintWatch
			}
		}
	}
	for _, known := range []struct{ sign, reason, hint string }{
		{"WRONGPASS", "wrong user name or password (WRONGPASS), or the user is disabled", hintLogin},
		{"invalid password", "wrong password", hintLogin},
		{"NOAUTH", "the server wants a password (NOAUTH)", "set REDIS_PASSWORD (and REDIS_USERNAME for an ACL user), or put them into REDIS_URL"},
		{"NOPERM", "the user may not run this command (NOPERM)", "grant the ACL user +ping and what it needs; ACL LOG on the server shows what was refused"},
		{"LOADING", "the server is still loading its data (LOADING)", "wait until it has finished"},
		{"MASTERDOWN", "the replica has lost its master (MASTERDOWN)", "connect to the master"},
		{"CLUSTERDOWN", "the cluster is down (CLUSTERDOWN)", "check CLUSTER INFO: every slot needs a master"},
		{"cluster support disabled", "that server is not part of a cluster", "remove REDIS_CLUSTER and use REDIS_URL"},
		{"DB index is out of range", "the server has no such database", "check the number after the host in REDIS_URL, or REDIS_DB"},
		{"max number of clients", "the server accepts no more clients", "raise its maxclients, or lower the number of workers"},
		{"DENIED", "the server is in protected mode (DENIED)", "set a password on the server and in REDIS_PASSWORD"},
	} {
		if strings.Contains(text, known.sign) {
			return known.reason, known.hint
		}
	}
	// Only the error's code: its text may repeat what was sent.
	code, _, _ := strings.Cut(text, " ")
	return "the server answered with an error (" + code + ")", "see the server's log"
}

func isTimeout(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}
