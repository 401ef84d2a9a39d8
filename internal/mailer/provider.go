package mailer

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// TLSMode says how a connection to a provider is encrypted.
type TLSMode string

// The TLS modes.
const (
	// TLSMandatory demands STARTTLS with a verified certificate. The default.
	TLSMandatory TLSMode = "mandatory"
	// TLSOpportunistic uses STARTTLS where offered and does not insist on a
	// verifiable certificate unless a CA file is given. The default of smtp://
	// URLs whose host is loopback.
	TLSOpportunistic TLSMode = "opportunistic"
	// TLSNone never encrypts. Credentials are then only sent to loopback.
	TLSNone TLSMode = "none"
	// TLSImplicit speaks TLS from the first byte (RFC 8314), with a verified certificate.
	TLSImplicit TLSMode = "implicit"
)

// Provider is one SMTP server that accepts our mail.
type Provider struct {
	// Name is used in errors, metrics and the send ledger. Default: Host, with
	// the port added when two providers share a host. Must be unique.
	Name string
	// Host is a DNS name or an IP address. Required. The certificate must be valid for it.
	Host string
	// Port; default 587, or 465 with [TLSImplicit].
	Port int
	// Username and Password for AUTH; both empty means no AUTH. They are never
	// sent over an unencrypted or unverified connection except to loopback.
	Username string
	Password string `json:"-"`
	// TLS; default [TLSMandatory].
	TLS TLSMode
	// Auth is the SASL mechanism (plain, login, cram-md5, scram-sha-1,
	// scram-sha-256, xoauth2). Default: the strongest one the server offers,
	// without xoauth2, whose password is a token.
	Auth string
	// CAFile is a PEM file of authorities to trust instead of the system's.
	CAFile string
	// MaxConns is the number of simultaneous connections from this process.
	// Default: [Config.MaxConns]. Above the provider's own limit it answers 421.
	MaxConns int
}

// String describes the provider without its credentials.
func (p Provider) String() string {
	return fmt.Sprintf("%s (%s, tls %s, auth %t)", p.Name, p.addr(), p.TLS, p.Username != "")
}

// GoString is [Provider.String], so that %#v does not print the password either.
func (p Provider) GoString() string { return p.String() }

func (p Provider) addr() string { return net.JoinHostPort(p.Host, strconv.Itoa(p.Port)) }

// Mechanisms accepted in [Provider.Auth], in the order they are preferred.
var authMechanisms = [...]string{"SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2"}

// ParseProviders reads a comma-separated list of SMTP URLs, tried in order:
//
//	smtp://user:pass@host:587   STARTTLS, mandatory unless the host is loopback
//	smtps://user:pass@host:465  TLS from the first byte
//
// Reserved characters in user and password are percent-escaped (a comma is
// %2C). Parameters: tls=mandatory|opportunistic|none, conns=N, ca=/path,
// auth=MECHANISM, name=NAME. All problems are reported together; no message
// holds a password.
func ParseProviders(smtpURL string) ([]Provider, error) {
	var (
		list []Provider
		errs []error
	)
	for i, raw := range strings.Split(smtpURL, ",") {
		raw = strings.TrimSpace(raw)
		p, err := parseProvider(raw)
		if err != nil {
			errs = append(errs, fmt.Errorf("SMTP URL %d: %w", i+1, err))
			continue
		}
		list = append(list, p)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if err := nameProviders(list); err != nil {
		return nil, err
	}
	return list, nil
}

func parseProvider(raw string) (Provider, error) {
	const form = "want smtp://user:password@host:587 or smtps://user:password@host:465"
	if raw == "" {
		return Provider{}, problem("is empty; " + form)
	}
	u, err := url.Parse(raw)
	if err != nil {
		// url.Error repeats the URL, and with it the password.
		return Provider{}, problem("cannot be parsed; " + form + ", with special characters in user and password percent-escaped")
	}
	var p Provider
	switch u.Scheme {
	case "smtp":
		p.Port, p.TLS = 587, TLSMandatory
	case "smtps":
		p.Port, p.TLS = 465, TLSImplicit
	default:
		return Provider{}, problem("has an unknown scheme; " + form)
	}
	p.Host = u.Hostname()
	switch {
	case u.Opaque != "" || p.Host == "":
		return Provider{}, problem("has no host; " + form)
	case !validHost(p.Host):
		return Provider{}, problem("has an invalid host name; " + form)
	case u.Path != "" && u.Path != "/":
		return Provider{}, problem("has a path after the host; " + form)
	case u.Fragment != "":
		return Provider{}, problem("has a fragment (#); escape # in the password as %23")
	}
	if s := u.Port(); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > 65535 {
			return Provider{}, problem("has an invalid port; want 1 to 65535")
		}
		p.Port = n
	}
	if u.Scheme == "smtp" && isLoopbackHost(p.Host) {
		p.TLS = TLSOpportunistic
	}
	if u.User != nil {
		p.Username = u.User.Username()
		p.Password, _ = u.User.Password()
		switch {
		case p.Username == "" || p.Password == "":
			return Provider{}, problem("has a user without a password or a password without a user; " + form)
		case hasControl(p.Username) || hasControl(p.Password):
			return Provider{}, problem("has a control character in user or password")
		}
	}
	return p, p.applyQuery(u)
}

func (p *Provider) applyQuery(u *url.URL) error {
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return problem("has malformed parameters; want ?name=value&name=value")
	}
	for key, values := range query {
		if len(values) != 1 || values[0] == "" || hasControl(values[0]) {
			return problem("has a repeated, empty or unprintable parameter; give each of tls, conns, ca, auth, name once with a value")
		}
		value := values[0]
		switch key {
		case "tls":
			mode := TLSMode(value)
			if u.Scheme == "smtps" || (mode != TLSMandatory && mode != TLSOpportunistic && mode != TLSNone) {
				return problem("has an invalid tls parameter; smtp:// accepts mandatory, opportunistic, none; smtps:// is always encrypted")
			}
			p.TLS = mode
		case "conns":
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 || n > maxConnsLimit {
				return problem(fmt.Sprintf("has an invalid conns parameter; want 1 to %d", maxConnsLimit))
			}
			p.MaxConns = n
		case "ca":
			p.CAFile = value
		case "auth":
			mech := strings.ToUpper(value)
			if !slices.Contains(authMechanisms[:], mech) {
				return problem("has an unknown auth parameter; want one of " + strings.ToLower(strings.Join(authMechanisms[:], ", ")))
			}
			p.Auth = mech
		case "name":
			if !validLabel(value) {
				return problem("has an invalid name parameter; want 1 to 64 of a-z A-Z 0-9 . _ : -")
			}
			p.Name = value
		default:
			return problem("has an unknown parameter; known are tls, conns, ca, auth, name")
		}
	}
	return nil
}

// nameProviders fills in missing names and checks that all are distinct.
func nameProviders(list []Provider) error {
	hosts := make(map[string]int, len(list))
	for _, p := range list {
		hosts[p.Host]++
	}
	seen := make(map[string]bool, len(list))
	for i := range list {
		p := &list[i]
		if p.Name == "" {
			p.Name = p.Host
			if hosts[p.Host] > 1 {
				p.Name = p.addr()
			}
		}
		if seen[p.Name] {
			return fmt.Errorf("SMTP URL %d: %w", i+1, problem("names the same provider as an earlier one; tell them apart with ?name="))
		}
		seen[p.Name] = true
	}
	return nil
}

// maxConnsLimit bounds MaxConns: more sockets than this to one provider is a typing error.
const maxConnsLimit = 1000

func validLabel(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._:-", r)
	})
}

// validHost accepts IP addresses and names of letters, digits, dots, hyphens
// and underscores. An IDN is written in its ASCII form here.
func validHost(h string) bool {
	if net.ParseIP(h) != nil {
		return true
	}
	return validDomain(h)
}

func isLoopbackHost(h string) bool {
	if strings.EqualFold(h, "localhost") {
		return true
	}
	ip := net.ParseIP(h)
	return ip != nil && ip.IsLoopback()
}
