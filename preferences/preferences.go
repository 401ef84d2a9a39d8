package preferences

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"
	_ "time/tzdata" // a container without a zone database must still know Europe/Berlin

	"golang.org/x/text/language"

	"github.com/medicalink/postroom/tasks"
)

// AllCategories is the category whose switches hold where a category has none of its own.
const AllCategories = "*"

// MaxCategories bounds the categories that a user has switches for.
const MaxCategories = 100

// Preferences are the settings of one user. The zero value lets everything through.
type Preferences struct {
	// Locale is a BCP 47 tag: the language of notifications that name none.
	Locale string `json:"locale,omitempty"`
	// Zone is the IANA name of the user's time zone, such as Europe/Berlin. Quiet needs
	// it.
	Zone string `json:"zone,omitempty"`
	// Quiet are the hours in which nothing may ring; nil is none.
	Quiet *Hours `json:"quiet,omitempty"`
	// Switches says, for a category (or [AllCategories]) and a channel, whether the user
	// wants it. Absent means yes.
	Switches map[string]map[tasks.Channel]bool `json:"switches,omitempty"`
}

// Hours are the same every day. An end before the start is on the next day.
type Hours struct {
	// From and To are hours and minutes of the day in the user's zone, such as 22:00
	// and 07:00. They differ.
	From string `json:"from"`
	To   string `json:"to"`
}

// An InvalidError says what is wrong with one field. Its text never repeats the value.
type InvalidError struct {
	Field, Problem string
}

func (e *InvalidError) Error() string { return e.Field + ": " + e.Problem }

// Allows reports whether the user wants notifications of category on channel.
func (p Preferences) Allows(category string, channel tasks.Channel) bool {
	for _, name := range []string{category, AllCategories} {
		if wanted, said := p.Switches[name][channel]; said {
			return wanted
		}
	}
	return true
}

// QuietUntil returns the end of the quiet hours that t is in; ok is false outside of
// them. On the days when clocks change the hours are those that the clock on the wall
// shows.
func (p Preferences) QuietUntil(t time.Time) (end time.Time, ok bool) {
	if p.Quiet == nil {
		return time.Time{}, false
	}
	zone, err := time.LoadLocation(p.Zone)
	if err != nil {
		return time.Time{}, false // Validate refuses it; a zone can only be gone from the host since
	}
	from, errFrom := minutes(p.Quiet.From)
	to, errTo := minutes(p.Quiet.To)
	if errFrom != nil || errTo != nil || from == to {
		return time.Time{}, false
	}
	if to < from {
		to += 24 * 60
	}
	year, month, today := t.In(zone).Date()
	// Hours that began yesterday may still last.
	for _, day := range []int{today - 1, today} {
		start := time.Date(year, month, day, 0, from, 0, 0, zone)
		end := time.Date(year, month, day, 0, to, 0, 0, zone)
		if !t.Before(start) && t.Before(end) {
			return end, true
		}
	}
	return time.Time{}, false
}

// minutes returns the minutes of the day of a text such as 07:30.
func minutes(s string) (int, error) {
	t, err := time.Parse("15:04", s)
	if err != nil || len(s) != len("15:04") {
		return 0, errors.New("not a time of the day")
	}
	return t.Hour()*60 + t.Minute(), nil
}

var categoryName = regexp.MustCompile(`^([a-z0-9][a-z0-9_-]{0,63}|\*)$`)

// Validate reports everything that is wrong with p, as *[InvalidError] values joined
// into one error.
func (p Preferences) Validate() error {
	var errs []error
	wrong := func(field, format string, args ...any) {
		errs = append(errs, &InvalidError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	if p.Locale != "" {
		if _, err := language.Parse(p.Locale); err != nil || len(p.Locale) > 35 {
			wrong("locale", "must be a language tag such as en or pt-BR")
		}
	}
	switch _, err := time.LoadLocation(p.Zone); {
	case p.Zone == "" && p.Quiet != nil:
		wrong("zone", "is required for quiet hours: give the IANA name of the user's time zone, such as Europe/Berlin")
	case err != nil || p.Zone == "Local":
		wrong("zone", "must be the IANA name of a time zone, such as Europe/Berlin")
	}
	if p.Quiet != nil {
		from, err := minutes(p.Quiet.From)
		if err != nil {
			wrong("quiet.from", "must be hours and minutes such as 22:00")
		}
		to, errTo := minutes(p.Quiet.To)
		if errTo != nil {
			wrong("quiet.to", "must be hours and minutes such as 07:00")
		}
		if err == nil && errTo == nil && from == to {
			wrong("quiet.to", "must differ from quiet.from: to be told nothing at all, switch the channels off")
		}
	}
	if len(p.Switches) > MaxCategories {
		wrong("switches", "has %d categories, the limit is %d", len(p.Switches), MaxCategories)
	}
	for _, category := range slices.Sorted(maps.Keys(p.Switches)) {
		if !categoryName.MatchString(category) {
			wrong("switches", "has a category that is not 1 to 64 lower-case letters, digits, - and _, nor %s", AllCategories)
			continue
		}
		for channel := range p.Switches[category] {
			switch channel {
			case tasks.ChannelInApp, tasks.ChannelPush, tasks.ChannelEmail, tasks.ChannelSMS:
			default:
				wrong("switches."+category, "has a channel that is none of %s, %s, %s and %s",
					tasks.ChannelInApp, tasks.ChannelPush, tasks.ChannelEmail, tasks.ChannelSMS)
			}
		}
	}
	return errors.Join(errs...)
}
