package rediskit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
)

// Causes that a test cannot provoke on loopback; the others are provoked on a
// real server in TestOpen_errorSaysWhatWhyAndWhatToSet.
func TestConfig_explain(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "redis", IsNotFound: true}}, "does not resolve"},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "i/o timeout", Name: "redis", IsTimeout: true}}, "no answer in time"},
		{&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}, "host unreachable"},
		{&net.OpError{Op: "dial", Err: syscall.EACCES}, "no permission"},
		{context.Canceled, "cancelled"},
		{io.EOF, "closed the connection"},
		{errors.New("strange"), "the connection failed"},
	} {
		cause := fmt.Errorf("wrapped: %w", tt.err)
		err := Config{}.explain(cause)
		if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("explain(%v) = %v, want %q", tt.err, err, tt.want)
		}
		if !errors.Is(err, cause) {
			t.Errorf("explain(%v) does not wrap its cause", tt.err)
		}
	}
}
