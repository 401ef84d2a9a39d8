// Package digest gathers notifications of one user and key, to be delivered as one when
// a window is over.
//
// A digest has generations. The first item after a closed window opens the next one,
// and fixes its end. Whoever adds an item enqueues the job that closes its generation,
// under an id that only depends on the generation: all but the first find the id taken,
// and one that died before that is made up for by the next. Closing is claimed by one
// job and can be repeated by it until [Store.Done]; so a crash at any point neither
// loses an item nor delivers it twice.
//
// asynq's groups are not used: a crash between their enqueue and their delete repeats
// a batch, and every group costs a script call a tick.
package digest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// keep is how long the keys of a digest outlive its window: longer than any job that
// closes it is tried.
const keep = 8 * 24 * time.Hour

// remember is how long the id of an item is known, so that an item whose job runs again
// is not added to a later generation.
const remember = 24 * time.Hour

// Store keeps the digests in Redis. It is safe for concurrent use.
type Store struct {
	rdb    redis.UniversalClient
	prefix string
}

// NewStore returns the digests of a namespace in rdb.
func NewStore(rdb redis.UniversalClient, namespace string) *Store {
	// The colon is there without a namespace too: the user staging:ada is not the user
	// ada of staging.
	return &Store{rdb: rdb, prefix: "postroom:digest:{" + namespace + ":"}
}

// keys returns those of a digest: what it is at, its items, and the ids seen lately.
// Keys of digests are hashed, because services may have put anything into them.
func (s *Store) keys(user, key string) []string {
	sum := sha256.Sum256([]byte(key))
	base := s.prefix + user + "}:" + hex.EncodeToString(sum[:16])
	return []string{base, base + ":items", base + ":seen"}
}

// An Addition is what became of an item.
type Addition struct {
	// Generation is the window that the item is in.
	Generation int64
	// Ends is when that window is over.
	Ends time.Time
	// Queue is that of the item which opened the window: the job that closes it belongs
	// there, or another one with the same id could be in each queue.
	Queue string
	// Full is true if the window has as many items as it may: it is to be closed now.
	Full bool
}

// clock is Redis's time in milliseconds.
const clock = `
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
`

// KEYS: digest, items, seen. ARGV: id, item, window ms, max, remember ms, keep ms, queue.
// Returns generation, end, 1 if full, queue.
var addScript = redis.NewScript(clock + `
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[5])
local known = redis.call('HGET', KEYS[1], 'of:' .. ARGV[1])
if known and redis.call('ZSCORE', KEYS[3], ARGV[1]) then
	local n = tonumber(redis.call('HGET', KEYS[1], 'count:' .. known) or 0)
	return {known, redis.call('HGET', KEYS[1], 'ends:' .. known) or string.format('%.0f', now), n >= tonumber(ARGV[4]) and '1' or '0',
		redis.call('HGET', KEYS[1], 'queue:' .. known) or ARGV[7]}
end
local generation = tonumber(redis.call('HGET', KEYS[1], 'generation') or 0)
if redis.call('HGET', KEYS[1], 'open') ~= '1' then
	generation = generation + 1
	redis.call('HSET', KEYS[1], 'generation', generation, 'open', 1, 'ends:' .. generation, string.format('%.0f', now + ARGV[3]), 'queue:' .. generation, ARGV[7])
end
redis.call('HSET', KEYS[2], generation .. ':' .. ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], 'of:' .. ARGV[1], generation)
redis.call('ZADD', KEYS[3], now, ARGV[1])
local full = '0'
if redis.call('HINCRBY', KEYS[1], 'count:' .. generation, 1) >= tonumber(ARGV[4]) then
	redis.call('HSET', KEYS[1], 'open', 0)
	full = '1'
end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[6] + ARGV[3]) end
local of = redis.call('HMGET', KEYS[1], 'ends:' .. generation, 'queue:' .. generation)
return {tostring(generation), of[1], full, of[2]}`)

// Add puts item, called id, into the current window of the digest, or opens one of the
// given length, to be closed by a job in queue. A second call with the same id adds nothing and tells the same.
func (s *Store) Add(ctx context.Context, user, key, id string, item []byte, window time.Duration, most int, queue string) (Addition, error) {
	reply, err := addScript.Run(ctx, s.rdb, s.keys(user, key), id, item, window.Milliseconds(), most, remember.Milliseconds(), keep.Milliseconds(), queue).StringSlice()
	if err != nil {
		return Addition{}, fmt.Errorf("add to a digest: %w", err)
	}
	if len(reply) != 4 {
		return Addition{}, fmt.Errorf("add to a digest: the script answered %d values", len(reply))
	}
	generation, err := strconv.ParseInt(reply[0], 10, 64)
	if err != nil {
		return Addition{}, fmt.Errorf("add to a digest: read the generation: %w", err)
	}
	ends, err := strconv.ParseInt(reply[1], 10, 64)
	if err != nil {
		return Addition{}, fmt.Errorf("add to a digest: read the end of the window: %w", err)
	}
	return Addition{Generation: generation, Ends: time.UnixMilli(ends), Full: reply[2] == "1", Queue: reply[3]}, nil
}

// ErrClosed is returned by Close for a window that another job has closed, or that is
// done with.
var ErrClosed = errors.New("the window of this digest was closed before")

// KEYS: digest, items. ARGV: generation, job. Returns false if another closed it.
var closeScript = redis.NewScript(`
local closer = 'closer:' .. ARGV[1]
if redis.call('HEXISTS', KEYS[1], 'count:' .. ARGV[1]) == 0 then return false end
if redis.call('HSETNX', KEYS[1], closer, ARGV[2]) == 0 and redis.call('HGET', KEYS[1], closer) ~= ARGV[2] then return false end
if redis.call('HGET', KEYS[1], 'generation') == ARGV[1] then redis.call('HSET', KEYS[1], 'open', 0) end
local found, all = {}, redis.call('HGETALL', KEYS[2])
local prefix = ARGV[1] .. ':'
for i = 1, #all, 2 do
	if string.sub(all[i], 1, #prefix) == prefix then
		found[#found + 1] = all[i]
		found[#found + 1] = all[i + 1]
	end
end
return found`)

// Close ends a window for the job, and returns its items in the order of their ids. The
// same job may call it again until Done; any other gets ErrClosed.
func (s *Store) Close(ctx context.Context, user, key string, generation int64, job string) ([][]byte, error) {
	found, err := closeScript.Run(ctx, s.rdb, s.keys(user, key)[:2], generation, job).StringSlice()
	if errors.Is(err, redis.Nil) {
		return nil, ErrClosed
	}
	if err != nil {
		return nil, fmt.Errorf("close a digest: %w", err)
	}
	type named struct{ id, item string }
	pairs := make([]named, 0, len(found)/2)
	for i := 0; i+1 < len(found); i += 2 {
		pairs = append(pairs, named{found[i], found[i+1]})
	}
	slices.SortFunc(pairs, func(a, b named) int { return strings.Compare(a.id, b.id) })
	items := make([][]byte, len(pairs))
	for i, p := range pairs {
		items[i] = []byte(p.item)
	}
	return items, nil
}

// KEYS: digest, items, seen. ARGV: generation.
var doneScript = redis.NewScript(`
local prefix = ARGV[1] .. ':'
for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
	if string.sub(field, 1, #prefix) == prefix then
		redis.call('HDEL', KEYS[2], field)
	end
end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
	if string.sub(field, 1, 3) == 'of:' and redis.call('ZSCORE', KEYS[3], string.sub(field, 4)) == false then
		redis.call('HDEL', KEYS[1], field)
	end
end
redis.call('HDEL', KEYS[1], 'count:' .. ARGV[1], 'closer:' .. ARGV[1], 'ends:' .. ARGV[1], 'queue:' .. ARGV[1])
return 1`)

// Done forgets the items of a window that has been delivered.
func (s *Store) Done(ctx context.Context, user, key string, generation int64) error {
	if err := doneScript.Run(ctx, s.rdb, s.keys(user, key), generation).Err(); err != nil {
		return fmt.Errorf("finish a digest: %w", err)
	}
	return nil
}
