package tasks

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestDuration_JSON(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: `"0s"`, 10 * time.Minute: `"10m"`, time.Hour: `"1h"`, 90 * time.Second: `"1m30s"`, 90 * time.Minute: `"1h30m"`, 10 * time.Second: `"10s"`,
		time.Hour + time.Second: `"1h0m1s"`, 28 * day: `"672h"`, 1500 * time.Millisecond: `"1.5s"`, -time.Minute: `"-1m"`,
	} {
		got, err := json.Marshal(Duration(d))
		if err != nil || string(got) != want {
			t.Errorf("%v becomes %s (%v), want %s", d, got, err, want)
		}
	}
}

func TestDuration_RoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		want := Duration(rapid.Int64().Draw(t, "d"))
		text, _ := want.MarshalText()
		var got Duration
		if err := got.UnmarshalText(text); err != nil || got != want {
			t.Fatalf("%s comes back as %v (%v)", text, got, err)
		}
	})
}

func TestDuration_UnmarshalText_Refuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", canary, "10", "7d", "10 m", "9999999999h"} {
		d := Duration(7)
		err := d.UnmarshalText([]byte(text))
		if err == nil || strings.Contains(err.Error(), canary) || d != 7 {
			t.Errorf("UnmarshalText(%q) = %v, d is %v; want an error without the text, and d as it was", text, err, d)
		}
	}
}
