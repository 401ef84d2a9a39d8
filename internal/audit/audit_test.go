package audit

import (
	"testing"

	"github.com/medicalink/postroom/internal/testenv"
)

func TestLog_Append(t *testing.T) {
	t.Parallel()
	redis := testenv.Redis(t)
	client := redis.Open(t)
	log := NewLog(client)
	want := Entry{
		Action: QuietOverridden, Actor: "lab-service", Object: "019-1", Reason: "transplant offer",
		Details: map[string]string{"channel": "sms"},
	}
	if err := log.Append(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	entries, err := client.XRange(t.Context(), Key, "-", "+").Result()
	if err != nil || len(entries) != 1 {
		t.Fatalf("the record has %v, %v", entries, err)
	}
	for field, value := range map[string]string{
		"action": "quiet_hours_overridden", "actor": want.Actor, "object": want.Object, "reason": want.Reason, "channel": "sms",
	} {
		if got := entries[0].Values[field]; got != value {
			t.Errorf("%s is %v", field, got)
		}
	}
	redis.Kill()
	if err := log.Append(t.Context(), want); err == nil {
		t.Error("no error without Redis: an override would go unrecorded")
	}
}
