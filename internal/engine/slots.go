package engine

import (
	"sync"
	"time"
)

// slots counts the jobs that hold asynq's slots, by queue: from the moment that
// a job is taken until its end goes to Redis.
type slots struct {
	total int

	mu   sync.Mutex
	held map[job]time.Time
	busy map[string]int // by queue
}

// job names a job: ids are unique per queue only.
type job struct{ queue, id string }

func newSlots(total int) *slots {
	return &slots{total: total, held: make(map[job]time.Time, total), busy: make(map[string]int)}
}

func (s *slots) take(j job, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.held[j]; !ok {
		s.busy[j.queue]++
	}
	s.held[j] = now
}

func (s *slots) release(ends []*ending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range ends {
		s.drop(e.job)
	}
}

func (s *slots) drop(j job) {
	if _, ok := s.held[j]; ok {
		delete(s.held, j)
		s.busy[j.queue]--
	}
}

// asked is called when asynq asks for a job, which it does with a slot in hand. If
// none is free here, an end went by unseen, and the job that has run the longest
// is taken for the one that ended.
func (s *slots) asked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.held) < s.total {
		return
	}
	var oldest job
	var since time.Time
	for j, at := range s.held {
		if since.IsZero() || at.Before(since) {
			oldest, since = j, at
		}
	}
	s.drop(oldest)
}

// free returns the number of free slots.
func (s *slots) free() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total - len(s.held)
}

// running returns the number of jobs of queue that hold a slot.
func (s *slots) running(queue string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy[queue]
}

// settled is how long a job that asynq's heartbeat does not list can be on its
// way into it or out of it.
const settled = 10 * time.Second

// reconcile frees the slots of jobs that ended without a word to Redis: those
// that asynq could not decode, or whose lease was lost. listed are the ids that
// asynq says are running.
func (s *slots) reconcile(listed map[string]bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for j, since := range s.held {
		if !listed[j.id] && now.Sub(since) > settled {
			s.drop(j)
		}
	}
}
