package webpush

import (
	"context"
	"crypto/ecdh"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// MaxPerUser is how many subscriptions a user has: one more ends the one that was
	// not added again for the longest time.
	MaxPerUser = 20
	// Retention is how long a subscription is kept after it was last added. A page adds
	// its own whenever it is opened, so that this is a browser unused for a year.
	Retention = 365 * 24 * time.Hour

	maxEndpoint = 2048 // bytes; those of the push services have 150 to 800
	authLen     = 16
)

var (
	// ErrNoSubscription means that the user has no such subscription: never had, or it
	// was removed, is over, or its endpoint has gone over to another user.
	ErrNoSubscription = errors.New("no such push subscription")
	// ErrInvalidSubscription is wrapped by the errors of a subscription that cannot be
	// used. It is for whoever sent it: 400.
	ErrInvalidSubscription = errors.New("invalid push subscription")
)

// A Subscription is one browser that a user agreed to be reached through. Its JSON is
// that of PushSubscription.toJSON in the browser. Endpoint, P256dh and Auth are secrets
// of the user; format verbs show the id only.
type Subscription struct {
	// ID is made of the endpoint: 32 hexadecimal digits. It is no secret.
	ID string
	// Endpoint is the URL of the push service for this browser.
	Endpoint string
	// P256dh is the browser's public key, an uncompressed point of the curve P-256.
	P256dh []byte
	// Auth is the secret of 16 bytes that the browser made for it.
	Auth []byte
	// Added is when it was last added.
	Added time.Time
	// Expires is when the push service ends it; the zero time is never, the usual case.
	Expires time.Time
}

type jsonSubscription struct {
	Endpoint string `json:"endpoint"`
	// ExpirationTime is in milliseconds since 1970, as in JavaScript.
	ExpirationTime *float64 `json:"expirationTime"`
	Keys           jsonKeys `json:"keys"`
}

type jsonKeys struct {
	P256dh string `json:"p256dh"`
	Auth   string `json:"auth"`
}

// ParseSubscription reads what PushSubscription.toJSON returned in a browser. Its errors
// wrap [ErrInvalidSubscription] and show nothing of text.
func ParseSubscription(text []byte) (*Subscription, error) {
	var s Subscription
	if err := json.Unmarshal(text, &s); err != nil {
		if errors.Is(err, ErrInvalidSubscription) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: want the JSON of PushSubscription.toJSON()", ErrInvalidSubscription)
	}
	return &s, nil
}

// UnmarshalJSON reads the browser's form. It sets every field but Added.
func (s *Subscription) UnmarshalJSON(text []byte) error {
	var j jsonSubscription
	if err := json.Unmarshal(text, &j); err != nil {
		return fmt.Errorf("%w: want the JSON of PushSubscription.toJSON()", ErrInvalidSubscription)
	}
	parsed := Subscription{Endpoint: j.Endpoint}
	var err error
	if parsed.P256dh, err = decode64(j.Keys.P256dh); err != nil {
		return fmt.Errorf("%w: keys.p256dh is not base64url", ErrInvalidSubscription)
	}
	if parsed.Auth, err = decode64(j.Keys.Auth); err != nil {
		return fmt.Errorf("%w: keys.auth is not base64url", ErrInvalidSubscription)
	}
	if ms := j.ExpirationTime; ms != nil {
		if *ms < 0 || *ms > 1e14 { // to the year 5138
			return fmt.Errorf("%w: expirationTime is not in milliseconds since 1970", ErrInvalidSubscription)
		}
		parsed.Expires = time.UnixMilli(int64(*ms))
	}
	if err := parsed.Validate(); err != nil {
		return err
	}
	parsed.ID = subscriptionID(parsed.Endpoint)
	*s = parsed
	return nil
}

// MarshalJSON writes the browser's form.
func (s Subscription) MarshalJSON() ([]byte, error) {
	j := jsonSubscription{
		Endpoint: s.Endpoint,
		Keys:     jsonKeys{P256dh: b64.EncodeToString(s.P256dh), Auth: b64.EncodeToString(s.Auth)},
	}
	if !s.Expires.IsZero() {
		j.ExpirationTime = new(float64(s.Expires.UnixMilli()))
	}
	return json.Marshal(j)
}

// Validate says whether s can be used. Its errors wrap [ErrInvalidSubscription]. Whether
// the endpoint's host may be called is decided when it is.
func (s *Subscription) Validate() error {
	if len(s.Endpoint) > maxEndpoint {
		return fmt.Errorf("%w: endpoint has %d bytes, at most %d", ErrInvalidSubscription, len(s.Endpoint), maxEndpoint)
	}
	u, err := url.Parse(s.Endpoint)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
		return fmt.Errorf("%w: endpoint is not an https URL", ErrInvalidSubscription)
	}
	if _, err := ecdh.P256().NewPublicKey(s.P256dh); err != nil {
		return fmt.Errorf("%w: keys.p256dh is no uncompressed point of the curve P-256", ErrInvalidSubscription)
	}
	if len(s.Auth) != authLen {
		return fmt.Errorf("%w: keys.auth has %d bytes, not %d", ErrInvalidSubscription, len(s.Auth), authLen)
	}
	return nil
}

// String returns the id.
func (s Subscription) String() string { return "push subscription " + s.ID }

// Format writes the id for every verb.
func (s Subscription) Format(w fmt.State, _ rune) { _, _ = io.WriteString(w, s.String()) }

func subscriptionID(endpoint string) string {
	sum := sha256.Sum256([]byte(endpoint))
	return hex.EncodeToString(sum[:16])
}

// Subscriptions is the registry of them in Redis. Each user has one hash, from the ids
// to "added expires JSON", both in Unix milliseconds; each endpoint has one key that
// names its user. Safe for concurrent use.
type Subscriptions struct {
	rdb       redis.UniversalClient
	namespace string
}

// NewSubscriptions returns the registry. namespace is that of the queues: it keeps
// environments apart that share a Redis, and may be empty.
func NewSubscriptions(rdb redis.UniversalClient, namespace string) (*Subscriptions, error) {
	if rdb == nil {
		return nil, errors.New("push subscriptions: no Redis client")
	}
	if strings.ContainsAny(namespace, "{}") {
		return nil, errors.New("push subscriptions: the namespace has a brace")
	}
	// The colon is there without a namespace too: the user staging:ada is not the user
	// ada of staging.
	return &Subscriptions{rdb: rdb, namespace: namespace + ":"}, nil
}

// userKey and ownerKey are never used in one script: they are in different slots.
func (s *Subscriptions) userKey(user string) string {
	return "postroom:push:{" + s.namespace + user + "}"
}

func (s *Subscriptions) ownerKey(id string) string {
	return "postroom:push:endpoint:{" + s.namespace + id + "}"
}

var (
	// KEYS: user. ARGV: id, expires, JSON, greatest number, retention in ms.
	add = redis.NewScript(`
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local live, all = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local added, expires = string.match(all[i + 1], '^(%d+) (%d+) ')
  added, expires = tonumber(added), tonumber(expires)
  if all[i] == ARGV[1] or not added or added + ARGV[5] <= now or (expires > 0 and expires <= now) then
    redis.call('HDEL', KEYS[1], all[i])
  else
    live[#live + 1] = {id = all[i], added = added}
  end
end
table.sort(live, function(a, b)
  if a.added ~= b.added then return a.added < b.added end
  return a.id < b.id
end)
for i = 1, #live + 1 - ARGV[4] do redis.call('HDEL', KEYS[1], live[i].id) end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %s %s', now, ARGV[2], ARGV[3]))
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return now`)

	// KEYS: owner. ARGV: user.
	disown = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0`)
)

// Add keeps sub for user, and returns it with ID and Added. One that is there already is
// kept as the newest. If the endpoint belonged to another user, it does no longer: the
// browser has changed hands. It returns an error that wraps [ErrInvalidSubscription] if
// sub cannot be used.
func (s *Subscriptions) Add(ctx context.Context, user string, sub Subscription) (Subscription, error) {
	if err := checkUser(user); err != nil {
		return Subscription{}, err
	}
	if err := sub.Validate(); err != nil {
		return Subscription{}, err
	}
	sub.ID = subscriptionID(sub.Endpoint)
	text, err := json.Marshal(sub)
	if err != nil {
		return Subscription{}, fmt.Errorf("encode push subscription: %w", err)
	}
	var expires int64
	if !sub.Expires.IsZero() {
		expires = sub.Expires.UnixMilli()
	}
	// First of all it stops to be another's, whatever becomes of the rest.
	former, err := s.rdb.SetArgs(ctx, s.ownerKey(sub.ID), user, redis.SetArgs{TTL: Retention, Get: true}).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return Subscription{}, fmt.Errorf("add push subscription: %w", err)
	}
	added, err := add.Run(
		ctx, s.rdb, []string{s.userKey(user)}, sub.ID, expires, text, MaxPerUser, Retention.Milliseconds(),
	).Int64()
	if err != nil {
		return Subscription{}, fmt.Errorf("add push subscription: %w", err)
	}
	sub.Added = time.UnixMilli(added)
	if former != "" && former != user {
		if err := s.rdb.HDel(ctx, s.userKey(former), sub.ID).Err(); err != nil {
			return Subscription{}, fmt.Errorf("take push subscription from its former user: %w", err)
		}
	}
	return sub, nil
}

// List returns the subscriptions of user, the last added first.
func (s *Subscriptions) List(ctx context.Context, user string) ([]Subscription, error) {
	if err := checkUser(user); err != nil {
		return nil, err
	}
	all, err := s.rdb.HGetAll(ctx, s.userKey(user)).Result()
	if err != nil {
		return nil, fmt.Errorf("list push subscriptions: %w", err)
	}
	if len(all) == 0 {
		return nil, nil
	}
	owners := make(map[string]*redis.StringCmd, len(all))
	_, err = s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for id := range all {
			owners[id] = p.Get(ctx, s.ownerKey(id))
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("list push subscriptions: %w", err)
	}
	var list []Subscription
	for id, text := range all {
		owner, err := owners[id].Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			return nil, fmt.Errorf("list push subscriptions: %w", err)
		}
		if sub, ok := parseStored(text, time.Now()); ok && owner == user {
			list = append(list, sub)
		}
	}
	slices.SortFunc(list, func(a, b Subscription) int {
		if c := b.Added.Compare(a.Added); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list, nil
}

// Get returns one subscription of user, or [ErrNoSubscription].
func (s *Subscriptions) Get(ctx context.Context, user, id string) (Subscription, error) {
	if !validUser(user) || !validID(id) {
		return Subscription{}, ErrNoSubscription
	}
	var stored, owner *redis.StringCmd
	_, err := s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		stored, owner = p.HGet(ctx, s.userKey(user), id), p.Get(ctx, s.ownerKey(id))
		return nil
	})
	if err == nil {
		if sub, ok := parseStored(stored.Val(), time.Now()); ok && owner.Val() == user {
			return sub, nil
		}
		return Subscription{}, ErrNoSubscription
	}
	for _, cmd := range []*redis.StringCmd{stored, owner} {
		if err := cmd.Err(); err != nil && !errors.Is(err, redis.Nil) {
			return Subscription{}, fmt.Errorf("get push subscription: %w", err)
		}
	}
	return Subscription{}, ErrNoSubscription
}

// Remove ends the subscription of user with this id. That there is none is not an
// error: the caller has what it wanted.
func (s *Subscriptions) Remove(ctx context.Context, user, id string) error {
	if !validUser(user) || !validID(id) {
		return nil // that there cannot be
	}
	if err := s.rdb.HDel(ctx, s.userKey(user), id).Err(); err != nil {
		return fmt.Errorf("remove push subscription: %w", err)
	}
	if err := disown.Run(ctx, s.rdb, []string{s.ownerKey(id)}, user).Err(); err != nil {
		return fmt.Errorf("remove push subscription: %w", err)
	}
	return nil
}

// parseStored reads the value of a hash's field. It reports false for what is over.
func parseStored(text string, now time.Time) (Subscription, bool) {
	added, rest, _ := strings.Cut(text, " ")
	_, form, _ := strings.Cut(rest, " ")
	ms, err := strconv.ParseInt(added, 10, 64)
	if err != nil {
		return Subscription{}, false
	}
	sub, err := ParseSubscription([]byte(form))
	if err != nil {
		return Subscription{}, false
	}
	sub.Added = time.UnixMilli(ms)
	over := now.Sub(sub.Added) >= Retention || !sub.Expires.IsZero() && !now.Before(sub.Expires)
	return *sub, !over
}

func validID(id string) bool {
	raw, err := hex.DecodeString(id)
	return err == nil && len(raw) == 16
}

// validUser holds the user to the form of the jobs, which has no brace in it: the key of
// one user cannot be made to be another's.
func validUser(user string) bool {
	ok := user != "" && len(user) <= 128
	for i, c := range []byte(user) {
		alnum := c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		ok = ok && (alnum || i > 0 && strings.IndexByte("._:-", c) >= 0)
	}
	return ok
}

func checkUser(user string) error {
	if !validUser(user) {
		return errors.New("push subscriptions: want a user of 1 to 128 letters, digits and ._:-, beginning with a letter or digit")
	}
	return nil
}
