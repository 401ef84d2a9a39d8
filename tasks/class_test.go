package tasks

import (
	"reflect"
	"testing"
	"time"
)

func TestClass_Policy(t *testing.T) {
	t.Parallel()
	const s, m, h = time.Second, time.Minute, time.Hour
	tests := []struct {
		class Class
		want  Policy
	}{
		{ClassOTP, Policy{
			Priority: Critical, Expiry: 10 * m, GiveUp: 10 * m, MaxRetry: 17, Unsubscribe: UnsubscribeRefused,
			Schedule: []time.Duration{2 * s, 5 * s, 10 * s, 20 * s, 40 * s, 60 * s},
		}},
		{ClassClinical, Policy{
			Priority: Default, GiveUp: 72 * h, MaxRetry: 19, ResendInDoubt: true, Unsubscribe: UnsubscribeRefused,
			Schedule: []time.Duration{30 * s, 2 * m, 6 * m, 15 * m, 30 * m, h, 2 * h, 4 * h, 8 * h},
		}},
		{ClassTransactional, Policy{
			Priority: Default, GiveUp: 72 * h, MaxRetry: 12, ResendInDoubt: true, Unsubscribe: UnsubscribeAllowed,
			Schedule: []time.Duration{5 * s, 10 * s, 20 * s, 40 * s, 80 * s, 160 * s, 320 * s, 640 * s, 1280 * s, 2560 * s, h},
		}},
		{ClassBulk, Policy{
			Priority: Bulk, GiveUp: 120 * h, MaxRetry: 12, Unsubscribe: UnsubscribeRequired,
			Schedule: []time.Duration{6 * m, 30 * m, h, 3 * h, 6 * h, 12 * h, 24 * h},
		}},
	}
	for _, tt := range tests {
		t.Run(string(tt.class), func(t *testing.T) {
			t.Parallel()
			if got := tt.class.Policy(); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("Policy() = %+v\nwant %+v", got, tt.want)
			}
		})
	}
	for _, class := range []Class{"", "of-a-newer-version"} {
		if got, want := class.Policy(), ClassTransactional.Policy(); !reflect.DeepEqual(got, want) {
			t.Errorf("Class(%q).Policy() = %+v, want that of transactional", class, got)
		}
	}
}

// The worker shortens a wait by up to 20 %. A job must still reach the age at
// which its class gives up, and not have many tries left over.
func TestPolicy_MaxRetryReachesGiveUp(t *testing.T) {
	t.Parallel()
	for _, class := range []Class{ClassOTP, ClassClinical, ClassBulk} {
		p := class.Policy()
		var age time.Duration
		for n := range p.MaxRetry {
			if age >= p.GiveUp {
				t.Errorf("%s: %d retries reach %v, so MaxRetry %d is more than needed", class, n, p.GiveUp, p.MaxRetry)
				break
			}
			age += p.Backoff(n) * 8 / 10
		}
		if age < p.GiveUp {
			t.Errorf("%s: MaxRetry %d ends at %v, before the class gives up at %v", class, p.MaxRetry, age, p.GiveUp)
		}
	}
}

func TestPolicy_Backoff(t *testing.T) {
	t.Parallel()
	p := ClassOTP.Policy()
	for n, want := range map[int]time.Duration{-1: 2 * time.Second, 0: 2 * time.Second, 1: 5 * time.Second, 5: time.Minute, 500: time.Minute} {
		if got := p.Backoff(n); got != want {
			t.Errorf("Backoff(%d) = %v, want %v", n, got, want)
		}
	}
}
