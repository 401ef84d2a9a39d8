package session

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/rediskit"
)

// Defaults of the zero fields of [Config], and the longest name of a user.
const (
	DefaultMaxPerUser = 20
	DefaultMaxData    = 4096 // bytes
	MaxUser           = 512  // bytes
)

const (
	randomLen = 32
	tagLen    = 16
)

// tokens end without unused bits, so no two spellings are one token.
var tokens = base64.RawURLEncoding

// ErrNotFound means that there is no such session: never was, revoked, rotated
// away or expired. Which of these is not told.
var ErrNotFound = errors.New("session not found")

// Config says how long sessions live.
type Config struct {
	// Idle is how long a session lives without a Renew, at least 1 s. Required.
	Idle time.Duration

	// Absolute is how long a session lives whatever happens, at least Idle.
	// Required.
	Absolute time.Duration

	// MaxPerUser is how many sessions one user has: one more ends the one that
	// was not renewed for the longest time. 1 to 1,000. Default 20.
	MaxPerUser int

	// MaxData is the greatest size of a session's data as JSON, in bytes. Default
	// 4096: it travels with every request.
	MaxData int
}

func (c Config) withDefaults() (Config, error) {
	c.MaxPerUser = cmp.Or(c.MaxPerUser, DefaultMaxPerUser)
	c.MaxData = cmp.Or(c.MaxData, DefaultMaxData)
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("session config: "+format, args...)) }
	if c.Idle < time.Second {
		bad("Idle %v: say after how long without a request a session ends, at least 1s", c.Idle)
	}
	if c.Absolute < c.Idle {
		bad("Absolute %v: say after how long a session ends in any case, at least Idle (%v)", c.Absolute, c.Idle)
	}
	if c.MaxPerUser < 1 || c.MaxPerUser > 1000 {
		bad("MaxPerUser %d: want 1 to 1000", c.MaxPerUser)
	}
	if c.MaxData < 1 {
		bad("MaxData %d: must not be negative", c.MaxData)
	}
	return c, errors.Join(errs...)
}

// Session is what is known of one login.
type Session[T any] struct {
	// ID names the session in [Store.List] and [Store.RevokeID]. It is no secret,
	// and [Store.Rotate] changes it.
	ID   string
	User string
	Data T

	Created  time.Time // when the user logged in; kept by Rotate
	LastSeen time.Time // the last Renew
	IdleEnds time.Time // when it ends unless it is renewed
	Ends     time.Time // when it ends in any case
}

// Stats counts what a store did since the process started. The numbers only
// grow.
type Stats struct {
	Created      uint64
	Rotated      uint64
	Evicted      uint64 // ended because of MaxPerUser
	Unknown      uint64 // tokens that belong to no live session
	DecodeErrors uint64 // sessions whose data is no T
}

// Store keeps sessions with data of type T. It is safe for concurrent use.
type Store[T any] struct {
	client *rediskit.Client
	cfg    Config

	created, rotated, evicted, unknown, decodeErrors atomic.Uint64
}

// New returns the sessions of the client's service. It does not talk to the
// server.
func New[T any](client *rediskit.Client, cfg Config) (*Store[T], error) {
	cfg, err := cfg.withDefaults()
	if client == nil || client.Service() == "" {
		err = errors.Join(err, errors.New("session config: the client has no service: set SERVICE_NAME (rediskit.Config.Service)"))
	}
	if err != nil {
		return nil, err
	}
	return &Store[T]{client: client, cfg: cfg}, nil
}

// Stats returns the counters.
func (s *Store[T]) Stats() Stats {
	return Stats{
		Created:      s.created.Load(),
		Rotated:      s.rotated.Load(),
		Evicted:      s.evicted.Load(),
		Unknown:      s.unknown.Load(),
		DecodeErrors: s.decodeErrors.Load(),
	}
}

// A session is stored as "created seen idle expires user data": four times in
// Unix milliseconds, the user in base64url, the data as JSON. Every script
// begins with these functions and has one key, the user's.
const prelude = `
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function parse(v)
  local created, seen, idle, expires, user, data = string.match(v or '', '^(%d+) (%d+) (%d+) (%d+) (%S+) (.*)$')
  if created and now < tonumber(idle) then
    return {created = tonumber(created), seen = tonumber(seen), expires = tonumber(expires), user = user, data = data}
  end
end
local function store(field, s, idle)
  local ends = math.min(now + idle, s.expires)
  local v = string.format('%.0f %.0f %.0f %.0f %s %s', s.created, now, ends, s.expires, s.user, s.data)
  redis.call('HSET', KEYS[1], field, v)
  if redis.call('PTTL', KEYS[1]) < ends - now then redis.call('PEXPIRE', KEYS[1], ends - now) end
  return v
end
`

var (
	// ARGV: field, user, data, idle, absolute, greatest number of sessions.
	create = redis.NewScript(prelude + `
local live, all = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local s = all[i] ~= ARGV[1] and parse(all[i + 1])
  if s then live[#live + 1] = {field = all[i], seen = s.seen} else redis.call('HDEL', KEYS[1], all[i]) end
end
table.sort(live, function(a, b)
  if a.seen ~= b.seen then return a.seen < b.seen end
  return a.field < b.field
end)
local evicted = math.max(0, #live + 1 - tonumber(ARGV[6]))
for i = 1, evicted do redis.call('HDEL', KEYS[1], live[i].field) end
store(ARGV[1], {created = now, expires = now + ARGV[5], user = ARGV[2], data = ARGV[3]}, ARGV[4])
return evicted`)

	// ARGV: field.
	read = redis.NewScript(prelude + `
local v = redis.call('HGET', KEYS[1], ARGV[1])
return parse(v) and v`)

	// ARGV: field, idle.
	renew = redis.NewScript(prelude + `
local s = parse(redis.call('HGET', KEYS[1], ARGV[1]))
return s and store(ARGV[1], s, ARGV[2])`)

	// ARGV: old field, new field, data, idle. A retry after a lost reply finds the
	// new one.
	rotate = redis.NewScript(prelude + `
if redis.call('HEXISTS', KEYS[1], ARGV[2]) == 1 then return 1 end
local s = parse(redis.call('HGET', KEYS[1], ARGV[1]))
if not s then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
s.data = ARGV[3]
store(ARGV[2], s, ARGV[4])
return 1`)

	list = redis.NewScript(prelude + `
local live, all = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if parse(all[i + 1]) then
    live[#live + 1] = all[i]
    live[#live + 1] = all[i + 1]
  else
    redis.call('HDEL', KEYS[1], all[i])
  end
end
return live`)
)

// Create begins a session of user and returns its token, 64 letters, digits, -
// and _ that belong into a cookie with Secure, HttpOnly and SameSite. user is 1
// to [MaxUser] bytes.
func (s *Store[T]) Create(ctx context.Context, user string, data T) (token string, err error) {
	if err := checkUser(user); err != nil {
		return "", err
	}
	raw, err := s.encode(data)
	if err != nil {
		return "", err
	}
	token, t := newToken(s.tag(user))
	evicted, err := create.Run(
		ctx, s.client, []string{s.key(t.tag)}, t.field, tokens.EncodeToString([]byte(user)), raw,
		s.cfg.Idle.Milliseconds(), s.cfg.Absolute.Milliseconds(), s.cfg.MaxPerUser,
	).Uint64()
	if err != nil {
		return "", fmt.Errorf("create session: %w", err)
	}
	s.created.Add(1)
	s.evicted.Add(evicted)
	return token, nil
}

// Read returns the session of token without renewing it: for requests that a
// browser makes by itself, such as polling. It returns [ErrNotFound] if there is
// no live session, or its data is no T (then counted).
func (s *Store[T]) Read(ctx context.Context, token string) (Session[T], error) {
	return s.lookup(ctx, "read session", read, token)
}

// Renew returns the session of token like [Store.Read], and lets it live for
// another [Config.Idle], but never beyond [Config.Absolute]: for requests that a
// person makes.
func (s *Store[T]) Renew(ctx context.Context, token string) (Session[T], error) {
	return s.lookup(ctx, "renew session", renew, token, s.cfg.Idle.Milliseconds())
}

func (s *Store[T]) lookup(ctx context.Context, what string, script *redis.Script, token string, args ...any) (Session[T], error) {
	t, ok := parseToken(token)
	if !ok {
		s.unknown.Add(1)
		return Session[T]{}, ErrNotFound
	}
	raw, err := script.Run(ctx, s.client, []string{s.key(t.tag)}, append([]any{t.field}, args...)...).Text()
	if errors.Is(err, redis.Nil) {
		s.unknown.Add(1)
		return Session[T]{}, ErrNotFound
	}
	if err != nil {
		return Session[T]{}, fmt.Errorf("%s: %w", what, err)
	}
	session, ok := s.decode(t.field, raw)
	if !ok {
		return Session[T]{}, ErrNotFound
	}
	return session, nil
}

// Rotate gives the session of token a new token, new data and another
// [Config.Idle]; the old token is dead at once. What [Config.Absolute] counts
// from stays. It returns [ErrNotFound] if there is no live session.
func (s *Store[T]) Rotate(ctx context.Context, token string, data T) (fresh string, err error) {
	raw, err := s.encode(data)
	if err != nil {
		return "", err
	}
	old, ok := parseToken(token)
	if !ok {
		s.unknown.Add(1)
		return "", ErrNotFound
	}
	fresh, t := newToken(old.tag)
	done, err := rotate.Run(ctx, s.client, []string{s.key(t.tag)}, old.field, t.field, raw, s.cfg.Idle.Milliseconds()).Bool()
	if err != nil {
		return "", fmt.Errorf("rotate session: %w", err)
	}
	if !done {
		s.unknown.Add(1)
		return "", ErrNotFound
	}
	s.rotated.Add(1)
	return fresh, nil
}

// Revoke ends the session of token. That there is none is not an error: the
// caller has what it wanted.
func (s *Store[T]) Revoke(ctx context.Context, token string) error {
	t, ok := parseToken(token)
	if !ok {
		return nil
	}
	return s.revoke(ctx, t.tag, t.field)
}

// RevokeID ends the session of user that [Store.List] shows with id, such as a
// lost telephone. That there is none is not an error.
func (s *Store[T]) RevokeID(ctx context.Context, user, id string) error {
	if err := checkUser(user); err != nil {
		return err
	}
	return s.revoke(ctx, s.tag(user), id)
}

func (s *Store[T]) revoke(ctx context.Context, tag [tagLen]byte, field string) error {
	if err := s.client.HDel(ctx, s.key(tag), field).Err(); err != nil {
		return fmt.Errorf("revoke session: %w", err)
	}
	return nil
}

// RevokeAll ends all sessions of user in one step.
func (s *Store[T]) RevokeAll(ctx context.Context, user string) error {
	if err := checkUser(user); err != nil {
		return err
	}
	if err := s.client.Del(ctx, s.key(s.tag(user))).Err(); err != nil {
		return fmt.Errorf("revoke all sessions: %w", err)
	}
	return nil
}

// List returns the live sessions of user, the last renewed first. A session
// whose data is no T (counted) is there with empty data, so that it can be
// revoked.
func (s *Store[T]) List(ctx context.Context, user string) ([]Session[T], error) {
	if err := checkUser(user); err != nil {
		return nil, err
	}
	raws, err := list.Run(ctx, s.client, []string{s.key(s.tag(user))}).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	sessions := make([]Session[T], 0, len(raws)/2)
	for pair := range slices.Chunk(raws, 2) {
		session, _ := s.decode(pair[0], pair[1])
		sessions = append(sessions, session)
	}
	slices.SortFunc(sessions, func(a, b Session[T]) int {
		return cmp.Or(b.LastSeen.Compare(a.LastSeen), b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return sessions, nil
}

// key holds the tag as a cluster's hash tag, so that whoever adds a key of the
// same user finds it in the same slot.
func (s *Store[T]) key(tag [tagLen]byte) string {
	return s.client.Key("session", "{"+tokens.EncodeToString(tag[:])+"}")
}

// tag differs between services, so that tokens of one user cannot be told to be
// of the same user by two services.
func (s *Store[T]) tag(user string) [tagLen]byte {
	sum := sha256.Sum256([]byte("session\x00" + s.client.Service() + "\x00" + user))
	return [tagLen]byte(sum[:tagLen])
}

func (s *Store[T]) encode(data T) ([]byte, error) {
	raw, err := json.Marshal(data)
	if err != nil {
		// The cause may quote the data.
		return nil, fmt.Errorf("encode session: %T has no JSON form", data)
	}
	if len(raw) > s.cfg.MaxData {
		return nil, fmt.Errorf("encode session: the data has %d bytes as JSON, at most %d are allowed (MaxData)", len(raw), s.cfg.MaxData)
	}
	return raw, nil
}

// decode reports whether the data is a T; the rest is filled in any case.
func (s *Store[T]) decode(id, raw string) (session Session[T], ok bool) {
	session.ID = id
	parts := strings.SplitN(raw, " ", 6)
	if len(parts) < 6 { // the scripts return nothing of the kind
		return session, false
	}
	for i, at := range []*time.Time{&session.Created, &session.LastSeen, &session.IdleEnds, &session.Ends} {
		ms, _ := strconv.ParseInt(parts[i], 10, 64) // digits: the scripts matched them
		*at = time.UnixMilli(ms)
	}
	user, _ := tokens.DecodeString(parts[4])
	session.User = string(user)
	if err := json.Unmarshal([]byte(parts[5]), &session.Data); err != nil {
		s.decodeErrors.Add(1)
		session.Data = *new(T) // it may be half filled
		return session, false
	}
	return session, true
}

// address is where Redis keeps the session of a token.
type address struct {
	tag   [tagLen]byte
	field string
}

func newToken(tag [tagLen]byte) (string, address) {
	var raw [randomLen + tagLen]byte
	_, _ = rand.Read(raw[:randomLen]) // never fails: it ends the program instead
	copy(raw[randomLen:], tag[:])
	return tokens.EncodeToString(raw[:]), locate(raw)
}

func parseToken(token string) (address, bool) {
	var raw [randomLen + tagLen]byte
	if len(token) != tokens.EncodedLen(len(raw)) {
		return address{}, false
	}
	n, err := tokens.Decode(raw[:], []byte(token))
	if err != nil || n != len(raw) { // shorter if there were line ends, which Decode skips
		return address{}, false
	}
	return locate(raw), true
}

func locate(raw [randomLen + tagLen]byte) address {
	sum := sha256.Sum256(raw[:])
	return address{tag: [tagLen]byte(raw[randomLen:]), field: tokens.EncodeToString(sum[:])}
}

func checkUser(user string) error {
	if user == "" || len(user) > MaxUser {
		return fmt.Errorf("session: the user has %d bytes, want 1 to %d", len(user), MaxUser)
	}
	return nil
}
