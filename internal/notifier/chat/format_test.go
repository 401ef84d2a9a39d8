package chat

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/endpoint"
)

const (
	someID = "0198c7a2-52a1-7b3c-9d5e-2f6a8b1c3d4e"
	link   = "https://app.example/results/7?a=b&c=|d"
)

// nasty is what would ring, link or format somewhere.
const nasty = "<!channel> @everyone <@U123> <https://evil.example|here> [x](https://evil.example) *b* _i_ ~s~ `c` # h & <at>Ada</at>"

func decoded(t *testing.T, kind endpoint.Kind, m *notifier.Message) map[string]any {
	t.Helper()
	text, err := format(kind, m)
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func wantJSON(t *testing.T, got map[string]any, want string) {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(want), &v); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, v) {
		text, _ := json.Marshal(got)
		t.Errorf("got  %s\nwant %s", text, want)
	}
}

func TestFormat(t *testing.T) {
	t.Parallel()
	m := &notifier.Message{ID: someID, Kind: "lab.result.ready", User: "u-1", Title: "New result & more", Body: "One.\r\n\nTwo-three.", Action: link}
	wantJSON(t, decoded(t, endpoint.Slack, m), `{"text":"New result &amp; more","unfurl_links":false,"unfurl_media":false,"blocks":[
		{"type":"section","text":{"type":"plain_text","emoji":false,"text":"New result & more\nOne.\n\nTwo-three."}},
		{"type":"section","text":{"type":"mrkdwn","verbatim":true,"text":"<https://app.example/results/7?a=b&amp;c=%7Cd>"}}]}`)
	wantJSON(t, decoded(t, endpoint.Teams, m), `{"type":"message","attachments":[{
		"contentType":"application/vnd.microsoft.card.adaptive","contentUrl":null,"content":{
			"$schema":"http://adaptivecards.io/schemas/adaptive-card.json","type":"AdaptiveCard","version":"1.4",
			"body":[
				{"type":"RichTextBlock","inlines":[{"type":"TextRun","text":"New result & more","weight":"Bolder"}]},
				{"type":"RichTextBlock","inlines":[{"type":"TextRun","text":"One.","weight":"Default"}]},
				{"type":"RichTextBlock","inlines":[{"type":"TextRun","text":"Two-three.","weight":"Default"}]}],
			"actions":[{"type":"Action.OpenUrl","title":"app.example","url":"https://app.example/results/7?a=b&c=|d"}]}}]}`)
	wantJSON(t, decoded(t, endpoint.Discord, m), `{"allowed_mentions":{"parse":[]},
		"content":"**New result & more**\nOne.\n\nTwo\\-three.\n<https://app.example/results/7?a=b&c=%7Cd>"}`)
	wantJSON(t, decoded(t, endpoint.JSON, m), `{"id":"`+someID+`","kind":"lab.result.ready","title":"New result & more",
		"body":"One.\n\nTwo-three.","action":"https://app.example/results/7?a=b&c=|d"}`)

	m = &notifier.Message{ID: someID, Title: "T"}
	wantJSON(t, decoded(t, endpoint.Slack, m), `{"text":"T","unfurl_links":false,"unfurl_media":false,"blocks":[
		{"type":"section","text":{"type":"plain_text","emoji":false,"text":"T"}}]}`)
	wantJSON(t, decoded(t, endpoint.Discord, m), `{"allowed_mentions":{"parse":[]},"content":"**T**"}`)
	wantJSON(t, decoded(t, endpoint.JSON, m), `{"id":"`+someID+`","kind":"","title":"T","body":"","action":""}`)
	if v := decoded(t, endpoint.Teams, m); strings.Contains(mustText(t, v), "OpenUrl") {
		t.Errorf("a card without a link has an action: %v", v)
	}
	for _, kind := range []endpoint.Kind{endpoint.Standard, "irc", ""} {
		if _, err := format(kind, m); err == nil {
			t.Errorf("kind %q: no error", kind)
		}
	}
}

func mustText(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestFormat_textStaysText(t *testing.T) {
	t.Parallel()
	m := &notifier.Message{ID: someID, Title: nasty, Body: nasty + "\n> q\n- l\n\u202eevil\x07"}

	slack := decoded(t, endpoint.Slack, m)
	if text := slack["text"].(string); strings.ContainsAny(text, "<>") {
		t.Errorf("Slack's notification: %s", text)
	}
	for _, block := range slack["blocks"].([]any) {
		if kind := block.(map[string]any)["text"].(map[string]any)["type"]; kind != "plain_text" {
			t.Errorf("Slack formats a block of type %v", kind)
		}
	}
	if text := mustText(t, slack); strings.ContainsAny(text, "\u202e") || strings.Contains(text, `\u0007`) {
		t.Errorf("controls are left: %s", text)
	}

	teams := mustText(t, decoded(t, endpoint.Teams, m))
	if strings.Contains(teams, `"type":"TextBlock"`) || strings.Contains(teams, "entities") {
		t.Errorf("Teams would format: %s", teams)
	}

	discord := decoded(t, endpoint.Discord, m)
	content := discord["content"].(string)
	content = strings.TrimPrefix(content, "**")
	head, body, _ := strings.Cut(content, "**\n")
	for _, text := range []string{head, body} {
		for i, r := range text {
			if strings.ContainsRune("`*_~|<>#[]()@:-", r) && text[i-1] != '\\' {
				t.Fatalf("Discord would act on %q in %s", r, text[:i+1])
			}
		}
	}
	if mentions := mustText(t, discord["allowed_mentions"]); mentions != `{"parse":[]}` {
		t.Errorf("mentions: %s", mentions)
	}
}

func TestFormat_limits(t *testing.T) {
	t.Parallel()
	for _, unit := range []string{"a", "*", "🩺", "a\n", "é_"} {
		m := &notifier.Message{ID: someID, Title: strings.Repeat("T", 200), Body: strings.Repeat(unit, 4096/len(unit)), Action: link}
		text := decoded(t, endpoint.Slack, m)["blocks"].([]any)[0].(map[string]any)["text"].(map[string]any)["text"].(string)
		if n := len(utf16.Encode([]rune(text))); n > slackText || n < slackText*2/3 {
			t.Errorf("%q: Slack gets %d units", unit, n)
		}
		content := decoded(t, endpoint.Discord, m)["content"].(string)
		if n := len(utf16.Encode([]rune(content))); n > discordText || n < discordText-3 || !strings.HasSuffix(content, "…\n<https://app.example/results/7?a=b&c=%7Cd>") {
			t.Errorf("%q: Discord gets %d units, ending in %q", unit, n, content[len(content)-60:])
		}
		if text := mustText(t, decoded(t, endpoint.Teams, m)); len(text) > 28<<10 {
			t.Errorf("%q: Teams gets %d bytes", unit, len(text))
		}
	}
	m := &notifier.Message{Title: strings.Repeat("*", 5000), Body: "b", Action: "https://app.example/" + strings.Repeat("x", 2000)}
	if content := decoded(t, endpoint.Discord, m)["content"].(string); len(content) > discordText+2 || strings.Contains(content, "app.example") {
		t.Errorf("what nobody may hand in: %d bytes", len(content))
	}
}

func FuzzFormat(f *testing.F) {
	f.Add(nasty, "body", link)
	f.Add("\xff\\", "**\n\u202e🩺", "https://a/<b> |\n")
	f.Fuzz(func(t *testing.T, title, body, link string) {
		m := &notifier.Message{ID: someID, Title: title, Body: body, Action: link}
		for _, kind := range endpoint.ChatKinds() {
			text, err := format(kind, m)
			if err != nil || !json.Valid(text) {
				t.Fatalf("%s: %v", kind, err)
			}
		}
		content := decoded(t, endpoint.Discord, m)["content"].(string)
		if n := len(utf16.Encode([]rune(content))); n > discordText {
			t.Fatalf("%d units", n)
		}
		slack := decoded(t, endpoint.Slack, m)
		if strings.ContainsAny(slack["text"].(string), "<>") {
			t.Fatalf("Slack's notification: %v", slack["text"])
		}
		if link != "" {
			shown := slack["blocks"].([]any)[1].(map[string]any)["text"].(map[string]any)["text"].(string)
			if strings.ContainsAny(shown[1:len(shown)-1], "<>|") {
				t.Fatalf("Slack's link: %s", shown)
			}
		}
	})
}
