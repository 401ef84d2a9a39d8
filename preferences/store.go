package preferences

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"

	"github.com/redis/go-redis/v9"
)

// Store keeps the preferences in Redis, the one of the queues. It is safe for
// concurrent use.
type Store struct {
	rdb    redis.UniversalClient
	prefix string
}

// NewStore returns the store in rdb. namespace is the QUEUE_NAMESPACE of the workers
// that read it, or empty.
func NewStore(rdb redis.UniversalClient, namespace string) *Store {
	// The colon is there without a namespace too: the user staging:ada is not the user
	// ada of staging.
	return &Store{rdb: rdb, prefix: "postroom:preferences:{" + namespace + ":"}
}

// ErrUser is returned for a user id that no notification can have, see
// tasks.Notification.
var ErrUser = errors.New("a user's id has 1 to 128 letters, digits and any of ._:- and begins with a letter or digit")

var userID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$`)

func (s *Store) key(user string) (string, error) {
	if !userID.MatchString(user) {
		return "", ErrUser
	}
	return s.prefix + user + "}", nil
}

// Get returns the preferences of user; the zero value if there are none.
func (s *Store) Get(ctx context.Context, user string) (Preferences, error) {
	key, err := s.key(user)
	if err != nil {
		return Preferences{}, fmt.Errorf("get preferences: %w", err)
	}
	raw, err := s.rdb.Get(ctx, key).Bytes()
	if errors.Is(err, redis.Nil) {
		return Preferences{}, nil
	}
	if err != nil {
		return Preferences{}, fmt.Errorf("get preferences: %w", err)
	}
	var p Preferences
	if json.Unmarshal(raw, &p) != nil { // its error would quote a value
		return Preferences{}, fmt.Errorf("get preferences: what is stored is not the JSON of preferences: set them anew")
	}
	return p, nil
}

// Set replaces the preferences of user. The error of bad ones is that of
// [Preferences.Validate].
func (s *Store) Set(ctx context.Context, user string, p Preferences) error {
	key, err := s.key(user)
	if err == nil {
		err = p.Validate()
	}
	if err != nil {
		return fmt.Errorf("set preferences: %w", err)
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("set preferences: %w", err)
	}
	if err := s.rdb.Set(ctx, key, raw, 0).Err(); err != nil {
		return fmt.Errorf("set preferences: %w", err)
	}
	return nil
}

// Delete forgets the preferences of user, who then gets everything.
func (s *Store) Delete(ctx context.Context, user string) error {
	key, err := s.key(user)
	if err == nil {
		err = s.rdb.Del(ctx, key).Err()
	}
	if err != nil {
		return fmt.Errorf("delete preferences: %w", err)
	}
	return nil
}
