package inbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Defaults of the zero fields of [Config], and limits.
const (
	DefaultMaxEntries = 100
	DefaultMaxAge     = 30 * 24 * time.Hour

	// MaxEntries is the highest Config.MaxEntries: a script reads all entries of a user.
	MaxEntries = 1000
	// MaxRead is how many entries one call of [Store.Read] may name.
	MaxRead = 1000

	// maxRecords bounds the notifications of a user that are remembered after their
	// entries have gone. A user who gets more within MaxAge may be told twice.
	maxRecords = 10_000
)

// Start is the position before the first entry.
const Start = "0-0"

// ErrPosition is wrapped by the error about an id that cannot be one of an entry.
var ErrPosition = errors.New("not the id of an entry")

// Config holds the limits of every user's inbox.
type Config struct {
	// Namespace is QUEUE_NAMESPACE: environments that share a Redis have different ones.
	Namespace string

	// MaxEntries is how many entries of a user are kept. Default 100, at most 1,000. A
	// hundred entries with texts of 200 bytes take 55 kB of Redis' memory.
	MaxEntries int

	// MaxAge is how long an entry is kept, and how long is remembered that a
	// notification was delivered and whether it was read. Default 30 days. It must
	// outlast the delays of plans, or a step that waits for the user to read goes out
	// although they did.
	MaxAge time.Duration
}

// Store reads and writes inboxes. It is safe for concurrent use.
type Store struct {
	rdb redis.UniversalClient
	cfg Config
}

var (
	validNamespace = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,30}$`)
	// The alphabet of users and ids is that of the jobs. Nothing in it needs escaping in
	// JSON, which the scripts rely on, or in a key.
	validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$`)
)

// New returns the inboxes of cfg.Namespace in rdb. Those who only read and mark as read
// need no more of cfg than the namespace.
func New(rdb redis.UniversalClient, cfg Config) (*Store, error) {
	if rdb == nil {
		return nil, errors.New("make inbox: no client")
	}
	if cfg.MaxEntries == 0 {
		cfg.MaxEntries = DefaultMaxEntries
	}
	if cfg.MaxAge == 0 {
		cfg.MaxAge = DefaultMaxAge
	}
	var errs []error
	if cfg.Namespace != "" && !validNamespace.MatchString(cfg.Namespace) {
		errs = append(errs, fmt.Errorf("inbox config: Namespace is %q: "+
			"it must be 1 to 31 lower-case letters, digits, - and _, beginning with a letter", cfg.Namespace))
	}
	if cfg.MaxEntries < 1 || cfg.MaxEntries > MaxEntries {
		errs = append(errs, fmt.Errorf("inbox config: MaxEntries is %d: it must be between 1 and %d", cfg.MaxEntries, MaxEntries))
	}
	if cfg.MaxAge < time.Second {
		errs = append(errs, fmt.Errorf("inbox config: MaxAge is %s: it must be at least 1s", cfg.MaxAge))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &Store{rdb: rdb, cfg: cfg}, nil
}

// ChannelService is the service, in the sense of package pubsub, of [Topic].
const ChannelService = "postroom"

// Topic is the name of the topic on which the changes of all users of a namespace are
// published, each as an [Event]: one for all, so that a process needs one subscription.
func Topic(namespace string) string {
	if namespace == "" {
		return "inbox"
	}
	return "inbox:" + namespace
}

func (s *Store) channel() string { return ChannelService + ":" + Topic(s.cfg.Namespace) }

// key names the user's stream. The colon is there without a namespace too, so that a
// user called staging:ada is not the user ada of staging.
func (s *Store) key(user string) string {
	return "postroom:inbox:{" + s.cfg.Namespace + ":" + user + "}"
}

// keys returns those of an inbox, in the order of the scripts.
func (s *Store) keys(user string) []string {
	key := s.key(user)
	return []string{key, key + ":unread", key + ":seen"}
}

func (s *Store) dedupeKey(user, dedupe string) string {
	return s.key(user) + ":dedupe:" + hash(dedupe)
}

func (s *Store) collapseKey(user, collapse string) string {
	return s.key(user) + ":collapse:" + hash(collapse)
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// ValidUser reports whether user can be the id of a user: 1 to 128 letters, digits and
// any of ._:- beginning with a letter or digit.
func ValidUser(user string) bool { return validName.MatchString(user) }

// check does not quote what it refuses: nobody knows what it is.
func check(user string, ids ...string) error {
	if !ValidUser(user) {
		return errors.New("the id of the user must be 1 to 128 letters, digits and any of ._:-, beginning with a letter or digit")
	}
	for _, id := range ids {
		if !validName.MatchString(id) {
			return errors.New("the id of the notification must be 1 to 128 letters, digits and any of ._:-, beginning with a letter or digit")
		}
	}
	return nil
}

// Position returns id, the id of an entry, in the form that Redis gives it. Its error
// wraps [ErrPosition].
func Position(id string) (string, error) {
	ms, seq, ok := strings.Cut(id, "-")
	m, err1 := strconv.ParseUint(ms, 10, 63)
	n, err2 := strconv.ParseUint(seq, 10, 63)
	if !ok || err1 != nil || err2 != nil {
		return "", fmt.Errorf("%w: it has the form 1700000000000-0", ErrPosition)
	}
	return strconv.FormatUint(m, 10) + "-" + strconv.FormatUint(n, 10), nil
}

// An Entry is a notification as the app shows it.
type Entry struct {
	// ID is the id of the notification, a UUID of version 7.
	ID       string    `json:"-"`
	Kind     string    `json:"kind"`
	Title    string    `json:"title,omitempty"`
	Body     string    `json:"body,omitempty"`
	Action   string    `json:"action,omitempty"`
	Category string    `json:"category,omitempty"`
	Created  time.Time `json:"created_at"`
	// Collapse makes the newest entry of the same user and key replace an older one
	// that has not been read. Empty: it stands for itself.
	Collapse string `json:"-"`
}

// An Outcome says what became of a notification.
type Outcome int

// The outcomes.
const (
	// Accepted: it has been delivered, or may be.
	Accepted Outcome = iota
	// Duplicate: it, or one with the same dedupe key, was there before.
	Duplicate
	// Superseded: a newer one with the same collapse key was there before.
	Superseded
)

// String returns the outcome in lower case.
func (o Outcome) String() string {
	switch o {
	case Accepted:
		return "accepted"
	case Duplicate:
		return "duplicate"
	case Superseded:
		return "superseded"
	}
	return fmt.Sprintf("Outcome(%d)", int(o))
}

func outcome(text string) (Outcome, error) {
	for _, o := range []Outcome{Accepted, Duplicate, Superseded} {
		if o.String() == text {
			return o, nil
		}
	}
	return 0, fmt.Errorf("the script answered %q", text)
}

// Delivered is what [Store.Deliver] did.
type Delivered struct {
	Outcome Outcome
	// Position is the id of the new entry; empty unless Outcome is Accepted.
	Position string
	// Replaced is the id of the unread entry of the same collapse key that it took the
	// place of; empty if there was none.
	Replaced string
	// Unread is the user's number of unread entries.
	Unread int
}

// Deliver puts e into the inbox of user and tells who is listening. A notification that
// was delivered before, or that has a newer one of its collapse key before it, changes
// nothing and tells nobody. After an error it may have been delivered; calling again is
// safe.
func (s *Store) Deliver(ctx context.Context, user string, e Entry) (Delivered, error) {
	if err := check(user, e.ID); err != nil {
		return Delivered{}, fmt.Errorf("deliver to inbox: %w", err)
	}
	e.Created = e.Created.UTC().Truncate(time.Millisecond)
	content, err := json.Marshal(e)
	if err != nil {
		// The cause can quote the value, so it is not wrapped.
		return Delivered{}, errors.New("deliver to inbox: the entry cannot be written as JSON: its time lies outside the years 0 to 9999")
	}
	collapse := 0
	if e.Collapse != "" {
		collapse = 1
	}
	reply, err := deliverScript.Run(ctx, s.rdb, append(s.keys(user), s.collapseKey(user, e.Collapse)),
		e.ID, content, user, s.channel(), s.cfg.MaxEntries, s.cfg.MaxAge.Milliseconds(), maxRecords, collapse).Slice()
	if err != nil {
		return Delivered{}, fmt.Errorf("deliver to inbox: %w", err)
	}
	if len(reply) != 4 {
		return Delivered{}, fmt.Errorf("deliver to inbox: the script answered with %d fields", len(reply))
	}
	d := Delivered{Position: text(reply[1]), Unread: number(reply[2]), Replaced: text(reply[3])}
	if d.Outcome, err = outcome(text(reply[0])); err != nil {
		return Delivered{}, fmt.Errorf("deliver to inbox: %w", err)
	}
	return d, nil
}

func text(v any) string { s, _ := v.(string); return s }

func number(v any) int { n, _ := v.(int64); return int(n) }

// A Claim is what a notification asks for before any of its steps is carried out.
type Claim struct {
	// Dedupe is the key that only one notification may hold for DedupeFor; empty: none.
	Dedupe    string
	DedupeFor time.Duration
	// Collapse is the key of which the newest notification counts; empty: none. Keep is
	// how long that is remembered: until the last step of the plan.
	Collapse string
	Keep     time.Duration
}

// Claim asks whether the notification id may go to user, and takes its keys if so. It
// says [Duplicate] while another notification holds the dedupe key, and [Superseded] if
// a newer one has the collapse key; then it takes nothing. The answer to the same id
// stays the same, unless a newer notification came in between.
func (s *Store) Claim(ctx context.Context, user, id string, c Claim) (Outcome, error) {
	if err := check(user, id); err != nil {
		return 0, fmt.Errorf("claim notification: %w", err)
	}
	var dedupeFor, keep int64
	if c.Dedupe != "" {
		if dedupeFor = c.DedupeFor.Milliseconds(); dedupeFor < 1 {
			return 0, fmt.Errorf("claim notification: DedupeFor is %s: it must be at least 1ms", c.DedupeFor)
		}
	}
	if c.Collapse != "" {
		if keep = c.Keep.Milliseconds(); keep < 1 {
			return 0, fmt.Errorf("claim notification: Keep is %s: it must be at least 1ms", c.Keep)
		}
	}
	if dedupeFor == 0 && keep == 0 {
		return Accepted, nil
	}
	reply, err := claimScript.Run(ctx, s.rdb, []string{s.dedupeKey(user, c.Dedupe), s.collapseKey(user, c.Collapse)},
		id, dedupeFor, keep).Text()
	if err != nil {
		return 0, fmt.Errorf("claim notification: %w", err)
	}
	o, err := outcome(reply)
	if err != nil {
		return 0, fmt.Errorf("claim notification: %w", err)
	}
	return o, nil
}

// Superseded reports whether a newer notification than id has the collapse key.
func (s *Store) Superseded(ctx context.Context, user, collapse, id string) (bool, error) {
	if err := check(user, id); err != nil {
		return false, fmt.Errorf("read collapse key: %w", err)
	}
	newest, err := s.rdb.HGet(ctx, s.collapseKey(user, collapse), "newest").Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return false, fmt.Errorf("read collapse key: %w", err)
	}
	return newest > id, nil
}

// State reports whether the notification id has come into the inbox of user, and
// whether it has been read, for [Config].MaxAge after the delivery.
func (s *Store) State(ctx context.Context, user, id string) (delivered, read bool, err error) {
	if err := check(user, id); err != nil {
		return false, false, fmt.Errorf("read state of notification: %w", err)
	}
	at, err := s.rdb.ZScore(ctx, s.keys(user)[2], id).Result()
	if errors.Is(err, redis.Nil) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("read state of notification: %w", err)
	}
	return true, at != float64(int64(at)), nil
}

// Read marks entries as read, tells who is listening, and returns how many are unread
// now. Entries that are read already, or are no more, change nothing. The error about an
// id that cannot be one wraps [ErrPosition].
func (s *Store) Read(ctx context.Context, user string, ids ...string) (unread int, err error) {
	if err := check(user); err != nil {
		return 0, fmt.Errorf("mark as read: %w", err)
	}
	if len(ids) > MaxRead {
		return 0, fmt.Errorf("mark as read: %w: %d ids are too many, at most %d go into one call", ErrPosition, len(ids), MaxRead)
	}
	args := []any{user, s.channel()}
	for _, id := range ids {
		id, err := Position(id)
		if err != nil {
			return 0, fmt.Errorf("mark as read: %w", err)
		}
		args = append(args, id)
	}
	return s.mark(ctx, readScript, user, args)
}

// ReadAll is [Store.Read] for every entry up to upTo and that one itself. What arrives
// while the user reaches for the button stays unread.
func (s *Store) ReadAll(ctx context.Context, user, upTo string) (unread int, err error) {
	if err := check(user); err != nil {
		return 0, fmt.Errorf("mark as read: %w", err)
	}
	upTo, err = Position(upTo)
	if err != nil {
		return 0, fmt.Errorf("mark as read: %w", err)
	}
	return s.mark(ctx, readAllScript, user, []any{user, s.channel(), upTo})
}

func (s *Store) mark(ctx context.Context, script *redis.Script, user string, args []any) (int, error) {
	unread, err := script.Run(ctx, s.rdb, s.keys(user), args...).Int()
	if err != nil {
		return 0, fmt.Errorf("mark as read: %w", err)
	}
	return unread, nil
}

// Unread returns how many entries of user are unread.
func (s *Store) Unread(ctx context.Context, user string) (int, error) {
	if err := check(user); err != nil {
		return 0, fmt.Errorf("count unread: %w", err)
	}
	n, err := s.rdb.ZCard(ctx, s.keys(user)[1]).Result()
	if err != nil {
		return 0, fmt.Errorf("count unread: %w", err)
	}
	return int(n), nil
}

// An Item is an entry in its place.
type Item struct {
	// Position is the id of the entry, which grows from entry to entry.
	Position string
	Entry    Entry
	Read     bool
}

// A Page is what was in an inbox at one moment.
type Page struct {
	Items []Item
	// Unread is the number of unread entries of the inbox.
	Unread int
	// Last is the position of the newest entry of the inbox; [Start] if it is empty.
	Last string
	// Gap says that whoever was at the position asked for may have missed entries, or
	// have some that are no more: read the inbox again. Items is empty then.
	Gap bool
}

// List returns the newest entries, at most limit, the newest first.
func (s *Store) List(ctx context.Context, user string, limit int) (Page, error) {
	if err := check(user); err != nil {
		return Page{}, fmt.Errorf("list inbox: %w", err)
	}
	if limit < 1 {
		return Page{}, fmt.Errorf("list inbox: the limit is %d: it must be at least 1", limit)
	}
	page, err := s.page(ctx, listScript, user, min(limit, MaxEntries))
	if err != nil {
		return Page{}, fmt.Errorf("list inbox: %w", err)
	}
	return page, nil
}

// Since returns the entries after a position, the oldest first: all of them, since an
// inbox is bounded. The position [Start] has no gap. The error about something that
// cannot be a position wraps [ErrPosition].
func (s *Store) Since(ctx context.Context, user, after string) (Page, error) {
	if err := check(user); err != nil {
		return Page{}, fmt.Errorf("read inbox: %w", err)
	}
	after, err := Position(after)
	if err != nil {
		return Page{}, fmt.Errorf("read inbox: %w", err)
	}
	page, err := s.page(ctx, sinceScript, user, after)
	if err != nil {
		return Page{}, fmt.Errorf("read inbox: %w", err)
	}
	return page, nil
}

func (s *Store) page(ctx context.Context, script *redis.Script, user string, arg any) (Page, error) {
	reply, err := script.Run(ctx, s.rdb, s.keys(user)[:2], arg).Slice()
	if err != nil {
		return Page{}, err
	}
	if len(reply)%4 != 3 {
		return Page{}, fmt.Errorf("the script answered with %d fields", len(reply))
	}
	page := Page{Gap: number(reply[0]) == 1, Unread: number(reply[1]), Last: text(reply[2])}
	for i := 3; i < len(reply); i += 4 {
		entry, err := decode(text(reply[i+1]), []byte(text(reply[i+2])))
		if err != nil {
			continue // one that somebody spoilt must not hide the others
		}
		page.Items = append(page.Items, Item{Position: text(reply[i]), Entry: entry, Read: number(reply[i+3]) == 1})
	}
	return page, nil
}

// decode does not quote the content in its error.
func decode(id string, content []byte) (Entry, error) {
	e := Entry{ID: id}
	if err := json.Unmarshal(content, &e); err != nil {
		return Entry{}, errors.New("decode entry: its content is not that of an entry")
	}
	return e, nil
}

// An Event is a change of one inbox, as it is published. It is a delivery if Position is
// set; otherwise the entries in Read, or all up to UpTo, were marked as read.
type Event struct {
	User string `json:"user"`
	// Unread is the number of unread entries after the change.
	Unread int `json:"unread"`

	// Position is the id of the new entry, and Previous that of the newest entry before
	// it: [Start] if there was none.
	Position string `json:"id"`
	Previous string `json:"prev"`
	// Notification and Content make the entry: see [Event.Entry].
	Notification string          `json:"notification"`
	Content      json.RawMessage `json:"content"`
	// Replaces is the entry that was removed for this one; empty if there was none.
	Replaces string `json:"replaces"`

	Read []string `json:"read"`
	UpTo string   `json:"up_to"`
}

// Entry returns the entry that was delivered. It is decoded here because most processes
// that get the event have no use for it.
func (e *Event) Entry() (Entry, error) { return decode(e.Notification, e.Content) }

// After reports whether a is a later position than b. Both must be positions.
func After(a, b string) bool {
	am, as := parts(a)
	bm, bs := parts(b)
	return am > bm || am == bm && as > bs
}

func parts(id string) (ms, seq uint64) {
	m, s, _ := strings.Cut(id, "-")
	ms, _ = strconv.ParseUint(m, 10, 64)
	seq, _ = strconv.ParseUint(s, 10, 64)
	return ms, seq
}
