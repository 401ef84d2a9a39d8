package main

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"sync"

	"github.com/medicalink/postroom/rediskit/cache"
)

// errNoUser is remembered by the cache for a while, like a user who is there.
var errNoUser = fmt.Errorf("user %w", cache.ErrNotFound)

// account is what the database knows: the User, and what nobody else may see.
type account struct {
	user       User
	salt, hash []byte
}

// store stands for the database. It forgets everything when the process ends.
type store struct {
	mu      sync.Mutex // owns both
	byID    map[string]*account
	byEmail map[string]*account
}

func newStore() *store {
	return &store{byID: make(map[string]*account), byEmail: make(map[string]*account)}
}

// hash takes as long as OWASP's Password Storage Cheat Sheet asks of PBKDF2 with
// SHA-256: 600,000 rounds.
func hash(password string, salt []byte) ([]byte, error) {
	return pbkdf2.Key(sha256.New, password, salt, 600_000, sha256.Size)
}

// add returns false if the address has an account.
func (s *store) add(email, name, password string) (User, bool, error) {
	salt := []byte(rand.Text())
	key, err := hash(password, salt)
	if err != nil {
		return User{}, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byEmail[email] != nil {
		return User{}, false, nil
	}
	a := &account{User{ID: rand.Text(), Name: name, Email: email}, salt, key}
	s.byID[a.user.ID], s.byEmail[email] = a, a
	return a.user, true, nil
}

func (s *store) remove(user User) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, user.ID)
	delete(s.byEmail, user.Email)
}

// login takes as long for an unknown address as for a wrong password.
func (s *store) login(email, password string) (id string, ok bool, err error) {
	s.mu.Lock()
	a := s.byEmail[email]
	s.mu.Unlock()
	if a == nil {
		a = &account{}
	}
	key, err := hash(password, a.salt)
	if err != nil {
		return "", false, err
	}
	return a.user.ID, subtle.ConstantTimeCompare(key, a.hash) == 1, nil
}

func (s *store) find(_ context.Context, id string) (User, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.byID[id]
	if a == nil {
		return User{}, errNoUser
	}
	return a.user, nil
}

func (s *store) rename(id, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.byID[id]
	if a == nil {
		return errNoUser
	}
	a.user.Name = name
	return nil
}
