package sms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"github.com/medicalink/postroom/internal/egress"
	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/exchange"
	"github.com/medicalink/postroom/rediskit"
)

var (
	accountSID = regexp.MustCompile(`^AC[0-9a-fA-F]{32}$`)
	serviceSID = regexp.MustCompile(`^MG[0-9a-fA-F]{32}$`)
	// A sender is a number in international form, a short code, or a name.
	sender = regexp.MustCompile(`^(\+[1-9][0-9]{6,14}|[0-9]{3,8}|[A-Za-z0-9 ]{0,10}[A-Za-z][A-Za-z0-9 ]{0,10})$`)
	phone  = regexp.MustCompile(`^\+[1-9][0-9]{6,14}$`)
)

// loopback is where http without TLS is allowed: a fake of the API in a test.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// Config is an account at Twilio. Every format verb shows its host only.
type Config struct {
	// AccountSID is AC and 32 hexadecimal digits, AuthToken its password.
	AccountSID string
	AuthToken  rediskit.Secret
	// From is whom the messages come from: a number such as +15551234567, a short code,
	// or a name of at most 11 letters, digits and spaces.
	From string
	// Service is a messaging service, MG and 32 hexadecimal digits, which chooses the
	// sender. Exactly one of From and Service is set.
	Service string
	// Host is api.twilio.com, or that of a region.
	Host string
	// Plain uses http instead of https, which only a loopback host may.
	Plain bool
}

// ParseURL reads an account from a URL:
//
//	twilio://ACCOUNT_SID:AUTH_TOKEN@api.twilio.com?from=+15551234567
//
// service=MG… instead of from names a messaging service. The scheme twilio+http is for a
// fake of the API on a loopback host. Errors show nothing of the URL.
func ParseURL(raw rediskit.Secret) (Config, error) {
	u, err := url.Parse(string(raw))
	if err != nil {
		return Config{}, errors.New("parse SMS URL: not a URL; want twilio://ACCOUNT_SID:AUTH_TOKEN@api.twilio.com?from=NUMBER")
	}
	if u.Scheme != "twilio" && u.Scheme != "twilio+http" {
		return Config{}, errors.New("parse SMS URL: want the scheme twilio: it is the only provider")
	}
	if u.Path != "" && u.Path != "/" || u.Opaque != "" || u.Fragment != "" {
		return Config{}, errors.New("parse SMS URL: after the host only ?from= or ?service= is allowed; percent-encode / and # in the token")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Config{}, errors.New("parse SMS URL: what follows the ? is not of the form name=value")
	}
	for name, values := range query {
		if name != "from" && name != "service" || len(values) != 1 {
			return Config{}, errors.New("parse SMS URL: after the ? want either from or service, once")
		}
	}
	token, _ := u.User.Password()
	cfg := Config{
		AccountSID: u.User.Username(), AuthToken: rediskit.Secret(token),
		From: query.Get("from"), Service: query.Get("service"),
		Host: u.Host, Plain: u.Scheme == "twilio+http",
	}
	if number, ok := strings.CutPrefix(cfg.From, " "); ok {
		cfg.From = "+" + number // a plus sign means a space there, but no sender begins with one
	}
	if err := cfg.validate(); err != nil {
		return Config{}, err
	}
	return cfg, nil
}

func (c Config) validate() error {
	var errs []error
	bad := func(text string) { errs = append(errs, errors.New("SMS config: "+text)) }
	if !accountSID.MatchString(c.AccountSID) {
		bad("want the account's SID, AC and 32 hexadecimal digits, as the user")
	}
	if c.AuthToken == "" {
		bad("want the account's auth token as the password")
	}
	switch {
	case (c.From == "") == (c.Service == ""):
		bad("want either from, the sender, or service, a messaging service")
	case c.From != "" && (!sender.MatchString(c.From) || !strings.HasPrefix(c.From, "+") && len(c.From) > 11):
		bad("from: want a number such as +15551234567, a short code, or a name of at most 11 letters, digits and spaces")
	case c.Service != "" && !serviceSID.MatchString(c.Service):
		bad("service: want MG and 32 hexadecimal digits")
	}
	allow := []netip.Prefix(nil)
	if c.Plain {
		allow = loopback
	}
	base, err := egress.CheckURL(c.base(), allow)
	if err == nil && c.Plain {
		if ip, parseErr := netip.ParseAddr(base.Hostname()); parseErr != nil || !ip.IsLoopback() {
			err = errors.New("http is for loopback addresses only")
		}
	}
	if err != nil {
		bad("host: " + err.Error())
	}
	return errors.Join(errs...)
}

func (c Config) base() string {
	if c.Plain {
		return "http://" + c.Host
	}
	return "https://" + c.Host
}

// String returns the URL without account, token and sender.
func (c Config) String() string {
	scheme := "twilio"
	if c.Plain {
		scheme = "twilio+http"
	}
	return scheme + "://<secret>:<secret>@" + c.Host
}

// Format writes [Config.String] for every verb.
func (c Config) Format(w fmt.State, _ rune) { _, _ = io.WriteString(w, c.String()) }

// Twilio is the [Provider] of that name.
type Twilio struct {
	cfg    Config
	client *http.Client
	url    string
}

// NewTwilio returns the provider. It does not talk to it.
func NewTwilio(cfg Config, client *egress.Client) (*Twilio, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if client == nil {
		return nil, errors.New("SMS config: no client")
	}
	var allow []netip.Prefix
	if cfg.Plain {
		allow = loopback
	}
	return &Twilio{
		cfg: cfg, client: client.HTTP(allow),
		url: cfg.base() + "/2010-04-01/Accounts/" + cfg.AccountSID + "/Messages.json",
	}, nil
}

// Send has text sent to a number.
func (t *Twilio) Send(ctx context.Context, to, text string) error {
	form := url.Values{"To": {to}, "Body": {text}}
	if t.cfg.Service != "" {
		form.Set("MessagingServiceSid", t.cfg.Service)
	} else {
		form.Set("From", t.cfg.From)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, strings.NewReader(form.Encode()))
	if err != nil {
		return &notifier.Error{Fault: notifier.Held, Reason: ReasonAccount} // its own error names the URL
	}
	req.SetBasicAuth(t.cfg.AccountSID, string(t.cfg.AuthToken))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	answer, err := exchange.Do(t.client, req)
	if err != nil {
		return err
	}
	return judge(answer)
}

// judge says what an answer means: by the code of Twilio if it is known, otherwise by
// the status.
func judge(answer *exchange.Answer) error {
	var said struct {
		Code      int `json:"code"`
		Status    any `json:"status"` // of the message; of HTTP, and a number, in errors
		ErrorCode int `json:"error_code"`
	}
	_ = json.Unmarshal(answer.Body, &said) // what cannot be read says nothing: the status does
	e := &notifier.Error{Code: answer.Code}
	if answer.Code >= 200 && answer.Code < 300 {
		if said.Status != "failed" && said.Status != "undelivered" && said.Status != "canceled" {
			return nil
		}
		if v, ok := meaning(said.ErrorCode); ok {
			e.Fault, e.Reason = v.fault, v.reason
			return e
		}
		e.Fault, e.Reason = notifier.Permanent, exchange.ReasonRejected
		return e
	}
	if v, ok := meaning(said.Code); ok {
		e.Fault, e.Reason = v.fault, v.reason
		if v.fault != notifier.Permanent {
			e.After = answer.RetryAfter()
		}
		return e
	}
	switch answer.Code {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		e.Fault, e.Reason = notifier.Held, ReasonAccount
		return e
	}
	return answer.Err()
}

type verdict struct {
	fault  notifier.Fault
	reason string
}

// meaning knows the codes of https://www.twilio.com/docs/api/errors that can come at
// once. What else there is comes later, in callbacks.
func meaning(code int) (verdict, bool) {
	switch code {
	case 20003, 20005, 20404, 30002: // authenticate; account not active, not found, suspended
		return verdict{notifier.Held, ReasonAccount}, true
	case 20429, 14107, 21611: // too many requests; queue of the sender full
		return verdict{notifier.Held, exchange.ReasonRateLimited}, true
	case 21212, 21603, 21606, 21659, 21660, 21701, 21703, 21705: // not a sender of ours; service without one
		return verdict{notifier.Held, ReasonSender}, true
	case 21211, 21217, 21421, 21614, 21635, 30005, 30006: // no number; cannot receive text
		return verdict{notifier.Permanent, ReasonNumber}, true
	case 21610:
		return verdict{notifier.Permanent, ReasonUnsubscribed}, true
	case 21408, 21612, 30004, 30007: // region not permitted; no route; blocked; filtered
		return verdict{notifier.Permanent, ReasonBlocked}, true
	case 21605, 21617: // more than 1,600 characters
		return verdict{notifier.Permanent, exchange.ReasonTooLarge}, true
	case 30001, 30003, 30008: // queue overflow; telephone out of reach; unknown error
		return verdict{notifier.Temporary, exchange.ReasonServerError}, true
	}
	return verdict{}, false
}
