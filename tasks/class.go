package tasks

import "time"

// A Class is one word for how a message is treated. It sets the defaults which
// Policy lists; options of a job override them one by one.
type Class string

// The classes of a message.
const (
	// ClassOTP is a one-time code: worthless when late, harmful when doubled.
	ClassOTP Class = "otp"
	// ClassClinical is a message that care depends on.
	ClassClinical Class = "clinical"
	// ClassTransactional answers something that a person did. It is the default.
	ClassTransactional Class = "transactional"
	// ClassBulk is a mailing that a person can unsubscribe from. Many messages
	// at once are not yet bulk: appointment reminders sent from a file are
	// transactional.
	ClassBulk Class = "bulk"
)

// A PriorityLevel names one of the three queues of a job type.
type PriorityLevel string

// The priorities, most urgent first.
const (
	Critical PriorityLevel = "critical"
	Default  PriorityLevel = "default"
	Bulk     PriorityLevel = "bulk"
)

// An UnsubscribeRule says whether a message carries List-Unsubscribe.
type UnsubscribeRule string

// The rules for List-Unsubscribe (RFC 8058 and the bulk sender rules of the
// large mailbox providers: bulk mail must have it; a code or a diagnosis that a
// person could unsubscribe from by mistake must not).
const (
	UnsubscribeAllowed  UnsubscribeRule = "allowed"
	UnsubscribeRequired UnsubscribeRule = "required"
	UnsubscribeRefused  UnsubscribeRule = "refused"
)

// A Policy is the treatment of a class.
type Policy struct {
	// Priority is the queue of a job that names none.
	Priority PriorityLevel
	// Expiry is the age, counted from the process time, at which an unsent
	// message is dropped. Zero means never. Deadline overrides it.
	Expiry time.Duration
	// GiveUp is the age, counted from the process time, after which a worker
	// stops trying.
	GiveUp time.Duration
	// MaxRetry is the number of tries after the first. It suffices to reach
	// GiveUp with the schedule shortened by the worker's jitter, except for
	// ClassTransactional, which stops after 12.
	MaxRetry int
	// Schedule holds the waits before the first, second, … retry, before
	// jitter. The last one repeats.
	Schedule []time.Duration
	// ResendInDoubt says what happens when nobody can know whether the
	// provider took a message: true sends it again (a copy is better than
	// silence), false parks it for a person to decide.
	ResendInDoubt bool
	// Unsubscribe is the rule for List-Unsubscribe.
	Unsubscribe UnsubscribeRule
}

// Policy returns the treatment of c. The empty class and one that this version
// does not know are treated as ClassTransactional; Validate refuses the latter.
func (c Class) Policy() Policy {
	p := c.policy()
	p.Schedule = c.schedule()
	return p
}

const day = 24 * time.Hour

// policy is Policy without the schedule.
func (c Class) policy() Policy {
	switch c {
	case ClassOTP:
		return Policy{
			Priority:    Critical,
			Expiry:      10 * time.Minute,
			GiveUp:      10 * time.Minute,
			MaxRetry:    17,
			Unsubscribe: UnsubscribeRefused,
		}
	case ClassClinical:
		return Policy{
			Priority:      Default,
			GiveUp:        3 * day,
			MaxRetry:      19,
			ResendInDoubt: true,
			Unsubscribe:   UnsubscribeRefused,
		}
	case ClassBulk:
		return Policy{
			Priority:    Bulk,
			GiveUp:      5 * day,
			MaxRetry:    12,
			Unsubscribe: UnsubscribeRequired,
		}
	case ClassTransactional:
	}
	return Policy{
		Priority:      Default,
		GiveUp:        3 * day,
		MaxRetry:      12,
		ResendInDoubt: true,
		Unsubscribe:   UnsubscribeAllowed,
	}
}

func (c Class) schedule() []time.Duration {
	switch c {
	case ClassOTP:
		return []time.Duration{
			2 * time.Second, 5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second, time.Minute,
		}
	case ClassClinical:
		return []time.Duration{
			30 * time.Second, 2 * time.Minute, 6 * time.Minute, 15 * time.Minute, 30 * time.Minute,
			time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour,
		}
	case ClassBulk:
		return []time.Duration{
			6 * time.Minute, 30 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour, day,
		}
	case ClassTransactional:
	}
	return exponential(5*time.Second, time.Hour)
}

// Backoff returns the wait, before jitter, after a failure of a job that has
// been retried n times before.
func (p Policy) Backoff(n int) time.Duration {
	return p.Schedule[max(0, min(n, len(p.Schedule)-1))]
}

// exponential returns base·2ⁿ for n = 0, 1, … up to and including limit.
func exponential(base, limit time.Duration) []time.Duration {
	var waits []time.Duration
	for wait := base; wait < limit; wait *= 2 {
		waits = append(waits, wait)
	}
	return append(waits, limit)
}

// known reports whether c is a class of this version; the empty class is.
func (c Class) known() bool {
	switch c {
	case "", ClassOTP, ClassClinical, ClassTransactional, ClassBulk:
		return true
	}
	return false
}
