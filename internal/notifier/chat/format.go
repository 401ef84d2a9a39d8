package chat

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf16"

	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/endpoint"
)

// The limits of the services, in UTF-16 units: some count characters, which are fewer.
const (
	slackText   = 3000 // of a text object in a section
	discordText = 2000 // of content
	// Teams takes 28 KB in all. Each line is an object of its own.
	teamsLine, teamsLines = 4000, 40
)

// format returns m as the kind of chat takes it.
func format(kind endpoint.Kind, m *notifier.Message) ([]byte, error) {
	title, body := clean(m.Title), clean(m.Body)
	if title == "" {
		title, body = body, ""
	}
	var v any
	switch kind {
	case endpoint.Slack:
		v = slack(title, body, m.Action)
	case endpoint.Teams:
		v = teams(title, body, m.Action)
	case endpoint.Discord:
		v = discord(title, body, m.Action)
	case endpoint.JSON:
		v = plain{ID: m.ID, Kind: m.Kind, Title: title, Body: body, Action: m.Action}
	case endpoint.Standard:
		return nil, fmt.Errorf("format chat message: kind %q is no chat", kind)
	default:
		return nil, fmt.Errorf("format chat message: kind %q is unknown", kind)
	}
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("format chat message: %w", err)
	}
	return text, nil
}

// plain is the object of a service that is none of the known ones.
type plain struct {
	ID     string `json:"id"`
	Kind   string `json:"kind"`
	Title  string `json:"title"`
	Body   string `json:"body"`
	Action string `json:"action"`
}

type object = map[string]any

// slackEscapes are those of Slack's mrkdwn: nothing else can begin a mention or a link.
var slackEscapes = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// slack shows title and body as plain_text, which Slack does not format and in which it
// looks for no mentions. Top-level text is what its clients show in their notifications.
func slack(title, body, link string) object {
	blocks := []object{{
		"type": "section",
		"text": object{"type": "plain_text", "emoji": false, "text": shorten(strings.TrimSpace(title+"\n"+body), slackText)},
	}}
	if link != "" {
		blocks = append(blocks, object{
			"type": "section",
			"text": object{"type": "mrkdwn", "verbatim": true, "text": "<" + slackEscapes.Replace(encodeLink(link)) + ">"},
		})
	}
	return object{"text": slackEscapes.Replace(title), "blocks": blocks, "unfurl_links": false, "unfurl_media": false}
}

// teams shows title and body as runs of text, in which cards have no Markdown. A mention
// would have to be declared beside the card.
func teams(title, body, link string) object {
	line := func(text, weight string) object {
		return object{
			"type":    "RichTextBlock",
			"inlines": []object{{"type": "TextRun", "text": text, "weight": weight}},
		}
	}
	content := []object{line(title, "Bolder")}
	lines := strings.FieldsFunc(shorten(body, teamsLine), func(r rune) bool { return r == '\n' })
	if len(lines) > teamsLines {
		lines = append(lines[:teamsLines-1], strings.Join(lines[teamsLines-1:], " "))
	}
	for _, text := range lines {
		content = append(content, line(text, "Default"))
	}
	card := object{
		"$schema": "http://adaptivecards.io/schemas/adaptive-card.json", "type": "AdaptiveCard", "version": "1.4",
		"body": content,
	}
	if u, err := url.Parse(link); link != "" && err == nil {
		card["actions"] = []object{{"type": "Action.OpenUrl", "title": u.Host, "url": u.String()}}
	}
	return object{
		"type":        "message",
		"attachments": []object{{"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": nil, "content": card}},
	}
}

// discord escapes what Discord's Markdown would act on, the colon of links included, and
// allows no mentions in case anything is left. A link in angle brackets gets no preview.
func discord(title, body, link string) object {
	tail := ""
	if link != "" {
		tail = "\n<" + encodeLink(link) + ">"
		if units(tail) > discordText/2 {
			tail = "" // it would leave no room, and half a link leads nowhere
		}
	}
	const marks = 4 // ** around the title
	room := discordText - units(tail) - marks
	head := escapeDiscord(title, room)
	room -= units(head) + 1
	text := "**" + head + "**"
	if body != "" && room > 0 {
		text += "\n" + escapeDiscord(body, room)
	}
	return object{"content": text + tail, "allowed_mentions": object{"parse": []string{}}}
}

// escapeDiscord escapes s, and cuts it if it is longer than limit then.
func escapeDiscord(s string, limit int) string {
	var b strings.Builder
	left := limit
	for i, r := range s {
		n := utf16.RuneLen(r)
		special := strings.ContainsRune("\\`*_~|<>#[]()@:-+", r)
		if special {
			n++
		}
		// Room for the ellipsis has to be left, unless this is the end.
		if n > left-1 && (n > left || i+len(string(r)) < len(s)) {
			b.WriteRune('…')
			break
		}
		left -= n
		if special {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// encodeLink returns a URL without characters that would end it where it stands between
// angle brackets.
func encodeLink(link string) string {
	return strings.NewReplacer("<", "%3C", ">", "%3E", "|", "%7C", " ", "%20", "\n", "%0A").Replace(link)
}

// shorten cuts s at a character to at most limit units, an ellipsis included.
func shorten(s string, limit int) string {
	if units(s) <= limit {
		return s
	}
	left := limit - 1
	for i, r := range s {
		if left -= utf16.RuneLen(r); left < 0 {
			return s[:i] + "…"
		}
	}
	return s
}

func units(s string) int {
	n := 0
	for _, r := range s {
		n += utf16.RuneLen(r)
	}
	return n
}

// clean returns s as UTF-8 without controls, and without the characters that turn the
// direction of what follows them.
func clean(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\r\n", "\n")
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return r
		case unicode.IsControl(r):
			return ' '
		case unicode.Is(unicode.Bidi_Control, r):
			return -1
		}
		return r
	}, s))
}
