package endpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/medicalink/postroom/internal/egress"
	"github.com/medicalink/postroom/rediskit"
)

const (
	// MaxEndpoints bounds a registry.
	MaxEndpoints = 10_000
	// MaxKeys bounds the keys of an endpoint: each signs every message.
	MaxKeys = 4
	// MaxAllow bounds the allow-list of an endpoint.
	MaxAllow = 16
	// DefaultConcurrency is the zero value of [Endpoint].Concurrency.
	DefaultConcurrency = 8
	// MaxConcurrency is its highest value.
	MaxConcurrency = 1000
	// MaxGrace is the longest time that an old key goes on signing.
	MaxGrace = 30 * 24 * time.Hour
)

// A Kind is what an endpoint understands.
type Kind string

// The kinds.
const (
	// Standard is a webhook as Standard Webhooks has it: the platform's JSON, signed.
	Standard Kind = "standard"
	// Slack, Teams and Discord are the incoming webhooks of these chats, JSON is one
	// that takes a plain object.
	Slack   Kind = "slack"
	Teams   Kind = "teams"
	Discord Kind = "discord"
	JSON    Kind = "json"
)

// ChatKinds are the kinds of chats.
func ChatKinds() []Kind { return []Kind{Slack, Teams, Discord, JSON} }

// A Key signs messages to an endpoint.
type Key struct {
	// Secret is the key as it was given out, such as whsec_….
	Secret rediskit.Secret
	// Created is when it began to sign, Retires when it ends; zero is never.
	Created, Retires time.Time
}

// Disabled says why nothing is sent to an endpoint.
type Disabled struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
}

// The reasons that postroom disables an endpoint for; an operator gives another.
const (
	// DisabledGone: the endpoint answered 410, which asks for it.
	DisabledGone = "it answered 410 Gone"
	// DisabledFailing: nothing was delivered for [FailingLimit].
	DisabledFailing = "it has failed for 5 days"
)

// An Endpoint is a URL to deliver to and how. Whoever got one reads it only.
type Endpoint struct {
	// ID is 1 to 64 lower-case letters, digits, - and _, beginning with a letter or
	// digit, as jobs have it.
	ID   string
	Kind Kind
	// URL is https on port 443, unless Allow has its address.
	URL rediskit.Secret
	// Keys sign, the newest first. Chats have none.
	Keys []Key
	// Allow are the private addresses that URL may lead to.
	Allow []netip.Prefix
	// Concurrency is how many messages each worker process sends it at once. Zero
	// means 8.
	Concurrency int
	// Created is when it was added.
	Created time.Time
	// Disabled is nil while messages are sent to it.
	Disabled *Disabled
	// FailingSince is when the first message of an unbroken row was not delivered;
	// zero if the last one was.
	FailingSince time.Time
}

// Live returns the keys that sign at the time now, the newest first.
func (e Endpoint) Live(now time.Time) []Key {
	var live []Key
	for _, k := range e.Keys {
		if k.Retires.IsZero() || now.Before(k.Retires) {
			live = append(live, k)
		}
	}
	return live
}

// Origin returns scheme and host of the URL, for an operator who wants to know which
// one it is. The rest of a URL is often a credential.
func (e Endpoint) Origin() string {
	u, err := egress.CheckURL(string(e.URL), e.Allow)
	if err != nil {
		return "-"
	}
	return u.Scheme + "://" + u.Host
}

var idForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// CheckID reports what is wrong with an id.
func CheckID(id string) error {
	if !idForm.MatchString(id) {
		return errors.New("endpoint id: want 1 to 64 lower-case letters, digits, - and _, beginning with a letter or digit")
	}
	return nil
}

// Validate reports everything that is wrong with e. What is wrong with its URL is a
// *[egress.ForbiddenError].
func (e Endpoint) Validate() error {
	errs := []error{CheckID(e.ID)}
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf("endpoint "+format, args...)) }
	switch e.Kind {
	case Standard:
		if len(e.Keys) == 0 {
			add("has no key: a receiver could not tell it from a forgery")
		}
	case Slack, Teams, Discord, JSON:
		if len(e.Keys) > 0 {
			add("of kind %s has keys: chats verify none", e.Kind)
		}
	default:
		add("kind: want standard, slack, teams, discord or json")
	}
	if len(e.Keys) > MaxKeys {
		add("has %d keys, the limit is %d", len(e.Keys), MaxKeys)
	}
	for _, k := range e.Keys {
		if k.Secret == "" || strings.ContainsAny(string(k.Secret), " \r\n") {
			add("key: want a secret without spaces")
		}
	}
	if len(e.Allow) > MaxAllow {
		add("allows %d prefixes, the limit is %d", len(e.Allow), MaxAllow)
	}
	for _, p := range e.Allow {
		if !p.IsValid() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			add("allow-list: want prefixes such as 10.1.2.0/24 or fd00::/64")
			break
		}
	}
	if e.Concurrency < 0 || e.Concurrency > MaxConcurrency {
		add("concurrency is %d: want 1 to %d, or 0 for %d", e.Concurrency, MaxConcurrency, DefaultConcurrency)
	}
	if _, err := egress.CheckURL(string(e.URL), e.Allow); err != nil {
		errs = append(errs, fmt.Errorf("endpoint URL: %w", err))
	}
	return errors.Join(errs...)
}

// stored is an endpoint as Redis has it: with its secrets, and without what scripts
// change, which has fields of its own.
type stored struct {
	Kind        Kind           `json:"kind"`
	URL         string         `json:"url"`
	Keys        []storedKey    `json:"keys,omitempty"`
	Allow       []netip.Prefix `json:"allow,omitempty"`
	Concurrency int            `json:"concurrency,omitempty"`
}

type storedKey struct {
	Secret  string    `json:"secret"`
	Created time.Time `json:"created"`
	Retires time.Time `json:"retires,omitzero"`
}

func encode(e Endpoint) (string, error) {
	s := stored{Kind: e.Kind, URL: string(e.URL), Allow: e.Allow, Concurrency: e.Concurrency}
	for _, k := range e.Keys {
		s.Keys = append(s.Keys, storedKey{Secret: string(k.Secret), Created: k.Created.UTC(), Retires: k.Retires.UTC()})
	}
	text, err := json.Marshal(s)
	if err != nil {
		return "", fmt.Errorf("encode endpoint: %w", err)
	}
	return string(text), nil
}

// decode does not wrap the error of package json, which can show a part of its input.
func decode(id, text string) (Endpoint, error) {
	var s stored
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return Endpoint{}, fmt.Errorf("decode endpoint %s: its record is damaged", id)
	}
	e := Endpoint{ID: id, Kind: s.Kind, URL: rediskit.Secret(s.URL), Allow: s.Allow, Concurrency: s.Concurrency}
	for _, k := range s.Keys {
		e.Keys = append(e.Keys, Key{Secret: rediskit.Secret(k.Secret), Created: k.Created, Retires: k.Retires})
	}
	return e, nil
}
