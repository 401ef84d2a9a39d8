package preferences

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
)

func TestPreferences_Allows(t *testing.T) {
	t.Parallel()
	p := Preferences{Switches: map[string]map[tasks.Channel]bool{
		AllCategories: {tasks.ChannelSMS: false, tasks.ChannelEmail: false},
		"lab":         {tasks.ChannelSMS: true, tasks.ChannelPush: false},
	}}
	for _, tc := range []struct {
		category string
		channel  tasks.Channel
		want     bool
	}{
		{"lab", tasks.ChannelSMS, true}, // its own switch wins
		{"lab", tasks.ChannelEmail, false},
		{"lab", tasks.ChannelPush, false},
		{"lab", tasks.ChannelInApp, true},
		{"billing", tasks.ChannelSMS, false},
		{"billing", tasks.ChannelPush, true},
	} {
		if got := p.Allows(tc.category, tc.channel); got != tc.want {
			t.Errorf("Allows(%s, %s) = %v", tc.category, tc.channel, got)
		}
	}
	if !(Preferences{}).Allows("lab", tasks.ChannelSMS) {
		t.Error("a user without preferences is left out")
	}
}

func TestPreferences_QuietUntil(t *testing.T) {
	t.Parallel()
	night := &Hours{From: "22:00", To: "07:00"}
	noon := &Hours{From: "12:00", To: "13:30"}
	for _, tc := range []struct {
		name, zone string
		quiet      *Hours
		at, until  string // until empty: not quiet
	}{
		{"before the night", "Europe/Berlin", night, "2026-11-25T21:59:59+01:00", ""},
		{"the night begins", "Europe/Berlin", night, "2026-11-25T22:00:00+01:00", "2026-11-26T07:00:00+01:00"},
		{"after midnight", "Europe/Berlin", night, "2026-11-26T03:00:00+01:00", "2026-11-26T07:00:00+01:00"},
		{"the night is over", "Europe/Berlin", night, "2026-11-26T07:00:00+01:00", ""},
		{"another zone of the same moment", "America/New_York", night, "2026-11-26T03:00:00+01:00", ""},
		{"within a day", "Asia/Kolkata", noon, "2026-11-26T12:10:00+05:30", "2026-11-26T13:30:00+05:30"},
		{"clocks go forward in the night", "Europe/Berlin", night, "2026-03-28T23:00:00+01:00", "2026-03-29T07:00:00+02:00"},
		{"clocks go back in the night", "Europe/Berlin", night, "2026-10-24T23:00:00+02:00", "2026-10-25T07:00:00+01:00"},
		{"the last day of a year", "Europe/Berlin", night, "2026-12-31T23:30:00+01:00", "2027-01-01T07:00:00+01:00"},
		{"none", "Europe/Berlin", nil, "2026-11-26T03:00:00+01:00", ""},
	} {
		at, err := time.Parse(time.RFC3339, tc.at)
		if err != nil {
			t.Fatal(err)
		}
		end, quiet := Preferences{Zone: tc.zone, Quiet: tc.quiet}.QuietUntil(at)
		if quiet != (tc.until != "") {
			t.Errorf("%s: quiet is %v", tc.name, quiet)
			continue
		}
		if want, _ := time.Parse(time.RFC3339, tc.until); quiet && !end.Equal(want) {
			t.Errorf("%s: quiet until %v, want %v", tc.name, end, want)
		}
	}
}

func TestPreferences_Validate(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		field string // of the error; empty: valid
		p     Preferences
	}{
		{"", Preferences{}},
		{"", Preferences{
			Locale: "pt-BR", Zone: "Europe/Berlin", Quiet: &Hours{From: "22:00", To: "07:00"},
			Switches: map[string]map[tasks.Channel]bool{"*": {tasks.ChannelSMS: false}, "lab-results": {tasks.ChannelPush: true}},
		}},
		{"locale", Preferences{Locale: "secret value"}},
		{"zone", Preferences{Zone: "Secret/Value"}},
		{"zone", Preferences{Zone: "Local"}},
		{"zone", Preferences{Quiet: &Hours{From: "22:00", To: "07:00"}}},
		{"quiet.from", Preferences{Zone: "UTC", Quiet: &Hours{From: "secret", To: "07:00"}}},
		{"quiet.from", Preferences{Zone: "UTC", Quiet: &Hours{From: "24:00", To: "07:00"}}},
		{"quiet.to", Preferences{Zone: "UTC", Quiet: &Hours{From: "22:00", To: "7:00"}}},
		{"quiet.to", Preferences{Zone: "UTC", Quiet: &Hours{From: "22:00", To: "22:00"}}},
		{"switches", Preferences{Switches: map[string]map[tasks.Channel]bool{"Secret Value": nil}}},
		{"switches.lab", Preferences{Switches: map[string]map[tasks.Channel]bool{"lab": {"secret": true}}}},
		{"switches.lab", Preferences{Switches: map[string]map[tasks.Channel]bool{"lab": {tasks.ChannelWebhook: true}}}},
	} {
		err := tc.p.Validate()
		if tc.field == "" {
			if err != nil {
				t.Errorf("%+v: %v", tc.p, err)
			}
			continue
		}
		invalid, ok := errors.AsType[*InvalidError](err)
		if !ok || invalid.Field != tc.field || strings.Contains(strings.ToLower(err.Error()), "secret") {
			t.Errorf("%+v: %v, want one about %s that repeats no value", tc.p, err, tc.field)
		}
	}
}

func TestStore_KeepsPreferences(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		ctx := t.Context()
		store := NewStore(client, client.Service())
		if p, err := store.Get(ctx, "u-1"); err != nil || !reflect.DeepEqual(p, Preferences{}) {
			t.Fatalf("a user without preferences has %+v, %v", p, err)
		}
		want := Preferences{Zone: "UTC", Quiet: &Hours{From: "22:00", To: "07:00"}, Switches: map[string]map[tasks.Channel]bool{"lab": {tasks.ChannelSMS: false}}}
		if err := store.Set(ctx, "u-1", want); err != nil {
			t.Fatal(err)
		}
		if p, err := store.Get(ctx, "u-1"); err != nil || !reflect.DeepEqual(p, want) {
			t.Errorf("stored %+v, %v", p, err)
		}
		if p, err := NewStore(client, "").Get(ctx, "u-1"); err != nil || !reflect.DeepEqual(p, Preferences{}) {
			t.Errorf("another namespace has %+v, %v", p, err)
		}
		if err := store.Set(ctx, "u-1", Preferences{Zone: "nowhere"}); err == nil {
			t.Error("bad preferences were stored")
		}
		if err := store.Delete(ctx, "u-1"); err != nil {
			t.Fatal(err)
		}
		if p, err := store.Get(ctx, "u-1"); err != nil || !reflect.DeepEqual(p, Preferences{}) {
			t.Errorf("after Delete the user has %+v, %v", p, err)
		}
		for _, user := range []string{"", "ada@example.com", "a}b", strings.Repeat("a", 129)} {
			if _, err := store.Get(ctx, user); !errors.Is(err, ErrUser) {
				t.Errorf("Get(%q): %v", user, err)
			}
		}
	})
}

func TestStore_TellsOfWhatCannotBeRead(t *testing.T) {
	t.Parallel()
	client := testenv.Redis(t).Open(t)
	store := NewStore(client, "")
	if err := client.Set(t.Context(), "postroom:preferences:{:u-1}", "secret", 0).Err(); err != nil {
		t.Fatal(err)
	}
	// Sending to somebody who may have switched it off would be worse.
	if _, err := store.Get(t.Context(), "u-1"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("Get: %v", err)
	}
}
