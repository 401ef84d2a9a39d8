package templates

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/text/language"
)

// TestLocale_Plural adds a language with four plural forms by data alone.
func TestLocale_Plural(t *testing.T) {
	t.Parallel()
	data := strings.NewReplacer(
		`"minute": {"one": "{n} minuto", "other": "{n} minutos"}`,
		`"minute": {"one": "{n} minuta", "few": "{n} minuty", "many": "{n} minut", "other": "{n} minuty"}`,
	).Replace(portuguese)
	l, err := parseLocale(language.Polish, []byte(data), &zones{})
	if err != nil {
		t.Fatal(err)
	}
	for minutes, want := range map[int]string{1: "1 minuta", 2: "2 minuty", 5: "5 minut", 12: "12 minut", 22: "22 minuty", 25: "25 minut"} {
		if got := l.duration(time.Duration(minutes) * time.Minute); got != want {
			t.Errorf("%d minutes are %q, want %q", minutes, got, want)
		}
	}
}

func TestLocale_Format(t *testing.T) {
	t.Parallel()
	data := strings.NewReplacer(
		`"{weekday}, {day} de {month} de {year}"`, `"{year}-{month_number}-{day2} {weekday}"`,
		`"{hour}h{minute} ({zone})"`, `"{hour2}|{hour12}|{minute}|{am_pm}|{zone}"`,
		`"direction"`, `"am_pm": ["a", "p"], "direction"`,
	).Replace(portuguese)
	l, err := parseLocale(language.Portuguese, []byte(data), &zones{})
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string][2]string{
		"2026-03-01T00:04:00Z":      {"2026-03-01 domingo", "00|12|04|a|UTC"},
		"2026-12-31T12:59:00+14:00": {"2026-12-31 quinta-feira", "12|12|59|p|UTC+14"},
		"2026-12-05T23:00:00-09:30": {"2026-12-05 sábado", "23|11|00|p|UTC-9:30"},
	} {
		tm, err := new(zones).parseTime(at, "")
		if err != nil {
			t.Fatal(err)
		}
		if got := [2]string{l.format(l.date, tm), l.format(l.time, tm)}; got != want {
			t.Errorf("%s is %q, want %q", at, got, want)
		}
	}
}

// TestParseTime_ServerZone: a time whose offset is the server's own must not
// be shown with the name of the server's zone.
//
// It is not parallel: it pretends that the server stands in Berlin.
func TestZones_ParseTime_ServerZone(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	local := time.Local
	time.Local = berlin
	defer func() { time.Local = local }()

	m := render(t, "appointment-reminder", "en", map[string]any{
		"first_name": "Ada", "last_name": "", "clinic": "C", "confirm_url": "https://example.com/",
		"appointment_at": "2026-12-03T09:15:00+01:00",
	})
	if !strings.Contains(m.Text, "9:15 AM (UTC+1)\n") {
		t.Errorf("the server's zone shows in\n%s", m.Text)
	}
}
