package templates

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	_ "time/tzdata" // a container without a zone database must still know Europe/Berlin

	"golang.org/x/text/feature/plural"
	"golang.org/x/text/language"
)

// defaultLocale is what every template must be written in, and what a
// recipient gets whose own language a template lacks.
const defaultLocale = "en"

// localeData is one locales/<tag>.json: everything about a language that the
// code needs, so that adding a language takes no code.
type localeData struct {
	Name      string            `json:"name"`      // in its own language
	Direction string            `json:"direction"` // "ltr" or "rtl"
	Weekdays  []string          `json:"weekdays"`  // Sunday first
	Months    []string          `json:"months"`    // as they stand in a date
	AMPM      []string          `json:"am_pm"`     // only needed by a pattern with {am_pm}
	Date      string            `json:"date"`      // pattern, see patternTokens
	Time      string            `json:"time"`      // pattern
	Zones     map[string]string `json:"zones"`     // local names of zone abbreviations, such as CET: MEZ
	Durations map[string]forms  `json:"durations"` // second, minute, hour, day
	And       string            `json:"and"`       // joins two durations: "{a} and {b}"
	Words     map[string]string `json:"words"`     // texts of the layout, read by {{word "footer"}}
}

// forms holds a text per CLDR plural category (zero, one, two, few, many,
// other); {n} in it is the number. "other" is required.
type forms map[string]string

// locale is a checked and compiled localeData.
type locale struct {
	tag        language.Tag
	lang       string // the tag as text
	data       localeData
	date, time []patternPart
	zones      *zones
}

var patternTokens = []string{
	"weekday", "day", "day2", "month", "month_number", "year",
	"hour", "hour2", "hour12", "minute", "am_pm", "zone",
}

// patternPart is a literal text, or a token if token is not empty.
type patternPart struct {
	text, token string
}

var durationUnits = []struct {
	name string
	len  time.Duration
}{
	{"day", 24 * time.Hour},
	{"hour", time.Hour},
	{"minute", time.Minute},
	{"second", time.Second},
}

// parseLocale reads a locale file. The errors it joins have no position; a
// JSON syntax error has one, see jsonErrorLine.
func parseLocale(tag language.Tag, src []byte, z *zones) (*locale, error) {
	l := &locale{tag: tag, lang: tag.String(), zones: z}
	dec := json.NewDecoder(bytes.NewReader(src))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l.data); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}

	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	d := &l.data
	if d.Direction != "ltr" && d.Direction != "rtl" {
		bad(`direction must be "ltr" or "rtl"`)
	}
	if len(d.Weekdays) != 7 || slices.Contains(d.Weekdays, "") {
		bad("weekdays must name seven days, Sunday first")
	}
	if len(d.Months) != 12 || slices.Contains(d.Months, "") {
		bad("months must name twelve months")
	}
	l.date = parsePattern("date", d.Date, &problems)
	l.time = parsePattern("time", d.Time, &problems)
	usesAMPM := func(p patternPart) bool { return p.token == "am_pm" }
	if (slices.ContainsFunc(l.date, usesAMPM) || slices.ContainsFunc(l.time, usesAMPM)) && len(d.AMPM) != 2 {
		bad("am_pm must name two halves of the day, because a pattern uses {am_pm}")
	}
	for _, unit := range durationUnits {
		if !strings.Contains(d.Durations[unit.name]["other"], "{n}") {
			bad(`durations.%s needs a form "other" containing {n}`, unit.name)
		}
	}
	if !strings.Contains(d.And, "{a}") || !strings.Contains(d.And, "{b}") {
		bad("and must contain {a} and {b}")
	}
	return l, errors.Join(problems...)
}

func parsePattern(key, s string, problems *[]error) []patternPart {
	if s == "" {
		*problems = append(*problems, fmt.Errorf("%s must be a pattern of the tokens {%s}", key, strings.Join(patternTokens, "} {")))
	}
	var parts []patternPart
	for s != "" {
		text, rest, found := strings.Cut(s, "{")
		if text != "" {
			parts = append(parts, patternPart{text: text})
		}
		if !found {
			break
		}
		token, after, closed := strings.Cut(rest, "}")
		if !closed || !slices.Contains(patternTokens, token) {
			*problems = append(*problems, fmt.Errorf("%s has the unknown token {%s; known are {%s}", key, rest, strings.Join(patternTokens, "} {")))
			break
		}
		parts = append(parts, patternPart{token: token})
		s = after
	}
	return parts
}

// format words t by a pattern, in t's own location.
func (l *locale) format(parts []patternPart, t time.Time) string {
	b := make([]byte, 0, 64)
	for _, p := range parts {
		switch p.token {
		case "":
			b = append(b, p.text...)
		case "weekday":
			b = append(b, l.data.Weekdays[t.Weekday()]...)
		case "day":
			b = strconv.AppendInt(b, int64(t.Day()), 10)
		case "day2":
			b = appendTwo(b, t.Day())
		case "month":
			b = append(b, l.data.Months[t.Month()-1]...)
		case "month_number":
			b = appendTwo(b, int(t.Month()))
		case "year":
			b = strconv.AppendInt(b, int64(t.Year()), 10)
		case "hour":
			b = strconv.AppendInt(b, int64(t.Hour()), 10)
		case "hour2":
			b = appendTwo(b, t.Hour())
		case "hour12":
			b = strconv.AppendInt(b, int64((t.Hour()+11)%12+1), 10)
		case "minute":
			b = appendTwo(b, t.Minute())
		case "am_pm":
			b = append(b, l.data.AMPM[t.Hour()/12]...)
		case "zone":
			b = l.appendZone(b, t)
		}
	}
	return string(b)
}

func appendTwo(b []byte, n int) []byte {
	return append(b, byte('0'+n/10%10), byte('0'+n%10))
}

// appendZone names t's zone: its abbreviation where it has one, in the
// language's own form where the locale knows it, otherwise the distance from
// UTC. A time without a zone would be a guess, and a missed appointment.
func (l *locale) appendZone(b []byte, t time.Time) []byte {
	name, offset := t.Zone()
	if local, ok := l.data.Zones[name]; ok {
		return append(b, local...)
	}
	// The zone database writes "-03" where people have no abbreviation.
	if name != "" && name[0] != '+' && name[0] != '-' {
		return append(b, name...)
	}
	b = append(b, "UTC"...)
	if offset == 0 {
		return b
	}
	sign := byte('+')
	if offset < 0 {
		sign, offset = '-', -offset
	}
	b = append(b, sign)
	b = strconv.AppendInt(b, int64(offset/3600), 10)
	if m := offset / 60 % 60; m != 0 {
		b = append(b, ':')
		b = appendTwo(b, m)
	}
	return b
}

// duration words d with its two largest units: "1 hour and 30 minutes". Up to
// two days it counts in hours, because "24 hours" is how people say it.
func (l *locale) duration(d time.Duration) string {
	var words []string
	for _, unit := range durationUnits {
		if unit.name == "day" && d < 48*time.Hour {
			continue
		}
		n := int(d / unit.len)
		if n == 0 {
			if len(words) > 0 {
				break // "2 days and 5 seconds" would claim a precision nobody wants
			}
			continue
		}
		d %= unit.len
		words = append(words, l.count(unit.name, n))
		if len(words) == 2 {
			break
		}
	}
	if len(words) == 2 {
		return strings.NewReplacer("{a}", words[0], "{b}", words[1]).Replace(l.data.And)
	}
	return strings.Join(words, "")
}

var pluralNames = map[plural.Form]string{
	plural.Zero: "zero", plural.One: "one", plural.Two: "two",
	plural.Few: "few", plural.Many: "many", plural.Other: "other",
}

func (l *locale) count(unit string, n int) string {
	f := l.data.Durations[unit]
	// Whole numbers only, so the operands about fractions are zero.
	text, ok := f[pluralNames[plural.Cardinal.MatchPlural(l.tag, n, 0, 0, 0, 0)]]
	if !ok {
		text = f["other"]
	}
	return strings.ReplaceAll(text, "{n}", strconv.Itoa(n))
}

var (
	errNotATime     = valueError("is not an RFC 3339 date and time such as 2026-12-03T09:15:00Z")
	errNotAZone     = valueError("is not an IANA time zone such as Europe/Berlin")
	errNotADuration = valueError("must be longer than a second and at most a year")
)

// parseTime reads an RFC 3339 time and moves it to zone, if one is given.
func (z *zones) parseTime(value, zone string) (time.Time, error) {
	// Not time.Parse: that would put a time whose offset happens to be the
	// server's into the server's zone and so show its abbreviation.
	t, err := time.ParseInLocation(time.RFC3339, value, time.UTC)
	if err != nil {
		return time.Time{}, errNotATime
	}
	if zone == "" {
		return t, nil
	}
	loc, err := z.load(zone)
	if err != nil {
		return time.Time{}, err
	}
	return t.In(loc), nil
}

// zones caches time.LoadLocation, which reads and parses a file every time.
// Only zones that exist are kept, so it is bounded by the zone database.
type zones struct {
	known sync.Map // string -> *time.Location
}

func (z *zones) load(name string) (*time.Location, error) {
	if loc, ok := z.known.Load(name); ok {
		return loc.(*time.Location), nil // the only type stored
	}
	// "Local" is the server's zone, which says nothing about the recipient.
	if name == "" || name == "Local" {
		return nil, errNotAZone
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		return nil, errNotAZone
	}
	z.known.Store(name, loc)
	return loc, nil
}

const maxDuration = 366 * 24 * time.Hour

// parseDuration reads what a template may call a duration: minutes as a
// number or digits, or a Go duration. ok is false for any other text.
func parseDuration(v any) (d time.Duration, ok bool, err error) {
	const most = int64(maxDuration/time.Minute) + 1 // clamped, so that the product cannot overflow
	switch v := v.(type) {
	case string:
		if n, perr := strconv.ParseInt(v, 10, 64); perr == nil {
			d, ok = time.Duration(min(max(n, 0), most))*time.Minute, true
		} else if g, perr := time.ParseDuration(v); perr == nil {
			d, ok = g, true
		}
	case int64:
		d, ok = time.Duration(min(max(v, 0), most))*time.Minute, true
	case float64:
		d, ok = time.Duration(min(max(v, 0), float64(most))*float64(time.Minute)), true
	}
	if ok && (d < time.Second || d > maxDuration) {
		return 0, true, errNotADuration
	}
	return d, ok, nil
}

// matcher finds the locale a template is rendered in.
type matcher struct {
	matcher language.Matcher
	names   []string // in the matcher's order, default first
	known   sync.Map // locale as a job writes it -> name
	size    atomic.Int32
}

// A cache of answers, because parsing a tag and comparing it with the Unicode
// data takes as long as a tenth of a mail. Jobs choose the keys, so it is bounded.
const (
	maxKnownLocales = 1000
	maxKnownLength  = 35 // RFC 5646, 4.4.1: enough for any real tag
)

func newMatcher(tags []language.Tag) *matcher {
	m := &matcher{matcher: language.NewMatcher(tags)}
	for _, t := range tags {
		m.names = append(m.names, t.String())
	}
	return m
}

// match returns the best locale for the one a recipient asked for: itself,
// then its parents (pt-BR, pt), then a close relative the Unicode data vouches
// for, then the default. A malformed tag gets the default too: a mail in
// English is better than none.
func (m *matcher) match(want string) string {
	if name, ok := m.known.Load(want); ok {
		return name.(string) // the only type stored
	}
	name := m.find(want)
	if len(want) <= maxKnownLength && m.size.Load() < maxKnownLocales {
		m.size.Add(1)
		m.known.Store(strings.Clone(want), name)
	}
	return name
}

func (m *matcher) find(want string) string {
	tag, err := language.Parse(want)
	if err != nil {
		return m.names[0]
	}
	if _, i, confidence := m.matcher.Match(tag); confidence >= language.High {
		return m.names[i]
	}
	for tag = tag.Parent(); !tag.IsRoot(); tag = tag.Parent() {
		if i := slices.Index(m.names, tag.String()); i >= 0 {
			return m.names[i]
		}
	}
	return m.names[0]
}
