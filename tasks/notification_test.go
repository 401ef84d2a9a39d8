package tasks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// note returns a valid notification.
func note() Notification {
	return Notification{Kind: "lab.result.ready", User: "u-1", Title: "Your results are ready"}
}

func fullNotification() Notification {
	return Notification{
		Kind: "lab.result.ready", User: "patient:4711", Template: "lab-result-ready", Locale: "pt-BR",
		Data:   map[string]any{"clinic": "Riverside <Family> Health", "count": 1000000, "id": int64(9007199254740993), "price": 12.5, "list": []any{1, "two"}},
		Action: "/results/17?tab=all#top",
		Plan: []Step{
			{Channel: ChannelInApp},
			{Channel: ChannelPush},
			{Channel: ChannelEmail, After: Duration(10 * time.Minute), OnlyIf: OnlyIfUnread},
			{Channel: ChannelSMS, After: Duration(90 * time.Minute), OnlyIf: OnlyIfUnsent},
			{Channel: ChannelChat, After: Duration(28 * day)},
			{Channel: ChannelWebhook, After: Duration(28 * day)},
		},
		Email: "Ada Lovelace <ada@example.com>", Phone: "+4930123456", Webhook: "ehr", Chat: "front-desk",
		Category: "results", Critical: "ordered by the physician", Quiet: QuietDrop,
		Digest: &Digest{Key: "results", Window: Duration(time.Hour), Max: 20},
		Dedupe: "result 17", DedupeFor: Duration(12 * time.Hour), Sensitivity: SensitivityPersonal, Tags: []string{"lab"}, Class: ClassClinical,
	}
}

func TestNotification_Validate(t *testing.T) {
	t.Parallel()
	plan := func(steps ...Step) func(*Notification) { return func(n *Notification) { n.Plan = steps } }
	after := func(c Channel, d time.Duration, if_ Condition) Step { return Step{c, Duration(d), if_} }
	type test struct {
		name   string
		change func(*Notification)
		want   []string // fields
	}
	tests := []test{
		{"least", func(*Notification) {}, nil},
		{"everything", func(n *Notification) { *n = fullNotification() }, nil},
		{"nothing", func(n *Notification) { *n = Notification{} }, []string{"kind", "user", "title"}},
		{"all at once", func(n *Notification) {
			*n = Notification{
				Kind: "x", User: "a@b", Locale: "?", Channels: []Channel{"fax"}, Category: "A", Quiet: "q", Sensitivity: "s", Class: "c", V: 2, Tags: []string{""},
				Dedupe: "\n", DedupeFor: -1, Collapse: "\n", Critical: " ", Action: "x", Email: "x", Digest: &Digest{},
			}
		}, []string{
			"kind", "user", "title", "locale", "action", "channels[0]", "email", "category", "critical", "quiet", "digest.key", "digest.window", "collapse",
			"collapse", "collapse", "dedupe", "dedupe", "dedupe_for", "sensitivity", "tags[0]", "class", "v",
		}},
		{"kind of 96", func(n *Notification) { n.Kind = "a." + strings.Repeat("b", 94) }, nil},
		{"kind of 97", func(n *Notification) { n.Kind = "a." + strings.Repeat("b", 95) }, []string{"kind"}},
		{"kind with a long first word", func(n *Notification) { n.Kind = strings.Repeat("b", 65) + ".a" }, []string{"category"}},
		{"the same with a category", func(n *Notification) { n.Kind, n.Category = strings.Repeat("b", 65)+".a", "c" }, nil},
		{"user of 128", func(n *Notification) { n.User = strings.Repeat("a", 128) }, nil},
		{"user of 129", func(n *Notification) { n.User = strings.Repeat("a", 129) }, []string{"user"}},
		{"template", func(n *Notification) { n.Title, n.Template = "", "welcome" }, nil},
		{"template and title", func(n *Notification) { n.Template = "welcome" }, []string{"template"}},
		{"template and body", func(n *Notification) { n.Title, n.Body, n.Template = "", "x", "welcome" }, []string{"template"}},
		{"template path", func(n *Notification) { n.Title, n.Template = "", "../secret" }, []string{"template"}},
		{"body alone", func(n *Notification) { n.Title, n.Body = "", "x" }, []string{"title"}},
		{"blank title", func(n *Notification) { n.Title = " " }, []string{"title"}},
		{"title of 200", func(n *Notification) { n.Title = strings.Repeat("é", 100) }, nil},
		{"title of 201", func(n *Notification) { n.Title = strings.Repeat("a", 201) }, []string{"title"}},
		{"title of two lines", func(n *Notification) { n.Title = "a\nb" }, []string{"title"}},
		{"title not UTF-8", func(n *Notification) { n.Title = "a\xff" }, []string{"title"}},
		{"body", func(n *Notification) { n.Body = "a\n\tb" + strings.Repeat("c", 4092) }, nil},
		{"body of 4097", func(n *Notification) { n.Body = strings.Repeat("a", 4097) }, []string{"body"}},
		{"body with a bell", func(n *Notification) { n.Body = "a\ab" }, []string{"body"}},
		{"body with CR", func(n *Notification) { n.Body = "a\r\nb" }, []string{"body"}},
		{"body not UTF-8", func(n *Notification) { n.Body = "a\xff" }, []string{"body"}},
		{"data of 8 KiB", func(n *Notification) { n.Data = map[string]any{"a": strings.Repeat("b", 8<<10-8)} }, nil},
		{"data of more", func(n *Notification) { n.Data = map[string]any{"a": strings.Repeat("b", 8<<10-7)} }, []string{"data"}},
		{"data not JSON", func(n *Notification) { n.Data = map[string]any{"a": func() {}} }, []string{"data"}},
		{"locale", func(n *Notification) { n.Locale = "de_DE\n" }, []string{"locale"}},
		{"channels", func(n *Notification) { n.Channels = []Channel{ChannelInApp, ChannelPush} }, nil},
		{"channels and plan", func(n *Notification) { n.Channels, n.Plan = []Channel{ChannelPush}, []Step{{Channel: ChannelPush}} }, []string{"plan"}},
		{"unknown channel", func(n *Notification) { n.Channels = []Channel{ChannelPush, "fax"} }, []string{"channels[1]"}},
		{"channel twice", func(n *Notification) { n.Channels = []Channel{ChannelPush, ChannelPush} }, []string{"channels[1]"}},
		{"six steps", plan(after(ChannelPush, 0, ""), after(ChannelPush, 1, ""), after(ChannelPush, 2, ""), after(ChannelPush, 3, ""), after(ChannelPush, 4, ""), after(ChannelPush, 5, "")), nil},
		{"seven steps", plan(after(ChannelPush, 0, ""), after(ChannelPush, 1, ""), after(ChannelPush, 2, ""), after(ChannelPush, 3, ""), after(ChannelPush, 4, ""), after(ChannelPush, 5, ""), after(ChannelPush, 6, "")), []string{"plan"}},
		{"unknown channel of a step", plan(after(ChannelPush, 0, ""), after("fax", 0, "")), []string{"plan[1].channel"}},
		{"step twice", plan(after(ChannelPush, 0, ""), after(ChannelPush, 0, "")), []string{"plan[1]"}},
		{"28 days", plan(after(ChannelPush, 28*day, "")), nil},
		{"more than 28 days", plan(after(ChannelPush, 28*day+1, "")), []string{"plan[0].after"}},
		{"before now", plan(after(ChannelPush, -1, "")), []string{"plan[0].after"}},
		{"out of order", plan(after(ChannelInApp, time.Hour, ""), after(ChannelPush, time.Minute, "")), []string{"plan[1].after"}},
		{"unread", plan(after(ChannelInApp, 0, ""), after(ChannelPush, 1, OnlyIfUnread)), nil},
		{"unread at once", plan(after(ChannelInApp, 0, ""), after(ChannelPush, 0, OnlyIfUnread)), []string{"plan[1].only_if"}},
		{"unread of nothing", plan(after(ChannelPush, 1, OnlyIfUnread), after(ChannelInApp, 1, "")), []string{"plan[0].only_if"}},
		{"unread of itself", plan(after(ChannelInApp, 1, OnlyIfUnread)), []string{"plan[0].only_if"}},
		{"unsent", plan(after(ChannelPush, 0, ""), after(ChannelInApp, 1, OnlyIfUnsent)), nil},
		{"unsent at once", plan(after(ChannelPush, 0, ""), after(ChannelInApp, 0, OnlyIfUnsent)), []string{"plan[1].only_if"}},
		{"unsent of nothing", plan(after(ChannelPush, 1, OnlyIfUnsent)), []string{"plan[0].only_if"}},
		{"always", plan(after(ChannelPush, 0, Always), after(ChannelInApp, 1, Always)), nil},
		{"unknown condition", plan(after(ChannelInApp, 0, ""), after(ChannelPush, 1, "liked")), []string{"plan[1].only_if"}},
		{"email without address", plan(after(ChannelEmail, 0, "")), []string{"email"}},
		{"email with a bad one", func(n *Notification) { n.Channels, n.Email = []Channel{ChannelEmail}, "a@b@c" }, []string{"email"}},
		{"address without email", func(n *Notification) { n.Email = "ada@example.com" }, []string{"email"}},
		{"SMS without number", plan(after(ChannelSMS, 0, "")), []string{"phone"}},
		{"number without SMS", func(n *Notification) { n.Phone = "+4930123456" }, []string{"phone"}},
		{"webhook without id", plan(after(ChannelWebhook, 0, "")), []string{"webhook"}},
		{"webhook with a URL", func(n *Notification) { n.Channels, n.Webhook = []Channel{ChannelWebhook}, "https://example.com/" }, []string{"webhook"}},
		{"id without webhook", func(n *Notification) { n.Webhook = "ehr" }, []string{"webhook"}},
		{"chat without id", plan(after(ChannelChat, 0, "")), []string{"chat"}},
		{"chat with a long id", func(n *Notification) { n.Channels, n.Chat = []Channel{ChannelChat}, strings.Repeat("a", 65) }, []string{"chat"}},
		{"id without chat", func(n *Notification) { n.Chat = "desk" }, []string{"chat"}},
		{"category", func(n *Notification) { n.Category = "a.b" }, []string{"category"}},
		{"critical of 201", func(n *Notification) { n.Critical = strings.Repeat("a", 201) }, []string{"critical"}},
		{"critical of two lines", func(n *Notification) { n.Critical = "a\nb" }, []string{"critical"}},
		{"quiet", func(n *Notification) { n.Quiet = "send" }, []string{"quiet"}},
		{"digest", func(n *Notification) { n.Digest = &Digest{Key: "k", Window: Duration(7 * day), Max: 200} }, nil},
		{"digest of templates", func(n *Notification) { n.Title, n.Template, n.Digest = "", "t", &Digest{Key: "k", Window: 1} }, nil},
		{"digest without key", func(n *Notification) { n.Digest = &Digest{Window: 1} }, []string{"digest.key"}},
		{"digest with a long key", func(n *Notification) { n.Digest = &Digest{Key: strings.Repeat("a", 129), Window: 1} }, []string{"digest.key"}},
		{"digest without window", func(n *Notification) { n.Digest = &Digest{Key: "k"} }, []string{"digest.window"}},
		{"digest of more than a week", func(n *Notification) { n.Digest = &Digest{Key: "k", Window: Duration(7*day + 1)} }, []string{"digest.window"}},
		{"digest of 201", func(n *Notification) { n.Digest = &Digest{Key: "k", Window: 1, Max: 201} }, []string{"digest.max"}},
		{"digest of less than none", func(n *Notification) { n.Digest = &Digest{Key: "k", Window: 1, Max: -1} }, []string{"digest.max"}},
		{"digest and collapse", func(n *Notification) { n.Digest, n.Collapse = &Digest{Key: "k", Window: 1}, "c" }, []string{"collapse"}},
		{"collapse of 65", func(n *Notification) { n.Collapse = strings.Repeat("a", 65) }, []string{"collapse"}},
		{"dedupe", func(n *Notification) { n.Dedupe, n.DedupeFor = strings.Repeat("a", 128), Duration(7*day) }, nil},
		{"dedupe of 129", func(n *Notification) { n.Dedupe = strings.Repeat("a", 129) }, []string{"dedupe"}},
		{"dedupe for more than a week", func(n *Notification) { n.Dedupe, n.DedupeFor = "a", Duration(7*day+1) }, []string{"dedupe_for"}},
		{"dedupe for less than no time", func(n *Notification) { n.Dedupe, n.DedupeFor = "a", -1 }, []string{"dedupe_for"}},
		{"dedupe of nothing", func(n *Notification) { n.DedupeFor = 1 }, []string{"dedupe_for"}},
		{"sensitivity", func(n *Notification) { n.Sensitivity = "secret" }, []string{"sensitivity"}},
		{"tags", func(n *Notification) { n.Tags = slices.Repeat([]string{"a"}, 9) }, []string{"tags"}},
		{"bulk without unsubscribe", func(n *Notification) { n.Class = ClassBulk }, nil},
		{"class", func(n *Notification) { n.Class = "vip" }, []string{"class"}},
		{"version", func(n *Notification) { n.V = Version + 1 }, []string{"v"}},
	}
	for _, kind := range []string{"result", "Lab.result", "lab..result", ".lab", "lab.", "lab.result\n", "lab result.ready", "läb.result"} {
		tests = append(tests, test{"kind " + kind, func(n *Notification) { n.Kind = kind }, []string{"kind"}})
	}
	for _, user := range []string{"-a", "ada@example.com", "a b", "a/b", "a\n", "ä", "{a}"} {
		tests = append(tests, test{"user " + user, func(n *Notification) { n.User = user }, []string{"user"}})
	}
	for _, user := range []string{"1", "A.b_c:d-9", "018f3a6e-0000-7000-8000-000000000000"} {
		tests = append(tests, test{"user " + user, func(n *Notification) { n.User = user }, nil})
	}
	for phone, good := range map[string]bool{
		"+4930123456": true, "+1234567": true, "+123456789012345": true,
		"4930123456": false, "+0123456789": false, "+123456": false, "+1234567890123456": false, "+49 30 123456": false, "+4930123456\n": false, "+493012345a": false,
	} {
		want := map[bool][]string{false: {"phone"}}[good]
		tests = append(tests, test{"phone " + phone, func(n *Notification) { n.Channels, n.Phone = []Channel{ChannelSMS}, phone }, want})
	}
	for action, good := range map[string]bool{
		"/": true, "/results/17": true, "/a?b=//c&d=..": true, "/a#/../b": true, "/a%20b": true, "/.well-known/x": true, "/...": true,
		"/?next=%2F%2Fevil.example": true, "https://example.com": true, "https://example.com:8443/a?b": true, "https://sub.example.com/.../x": true,
		"/" + strings.Repeat("a", MaxAction-1): true,
		"/" + strings.Repeat("a", MaxAction):   false,
		"results":                              false, "//evil.example": false, "///evil.example": false, `/\evil.example`: false, `\\evil.example`: false, "/a\\b": false,
		"/a/../b": false, "/..": false, "/./a": false, "/%2e%2e/a": false, "/%2E./a": false, "/..;/a": false, "/a%2fb": false, "/a%5Cb": false, "/a%0Ab": false,
		"/\tevil": false, "/\n/evil.example": false, "/a b": false, "/ü": false, "/<script>": false, "/%zz": false, "?a": false, "#a": false, ".": false, "/a%00": false,
		"http://example.com/": false, "HTTPS://example.com/": false, "https:example.com": false, "https://": false, "https:///a": false, "https://localhost.": false,
		"https://user@example.com/": false, "https://user:pw@example.com/": false, "https://@example.com/": false, "https://example.com\\@evil.example/": false,
		"https://10.0.0.1/": false, "https://[::1]/": false, "https://intranet/": false, "https://example.com:port/": false, "https://example.com/../a": false,
		"javascript:alert(1)": false, "mailto:a@example.com": false, " /a": false,
	} {
		want := map[bool][]string{false: {"action"}}[good]
		tests = append(tests, test{"action " + action, func(n *Notification) { n.Action = action }, want})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := note()
			tt.change(&n)
			err := n.Validate()
			if got := fields(err); !slices.Equal(got, tt.want) {
				t.Errorf("Validate() complains about %q, want %q: %v", got, tt.want, err)
			}
			if err != nil {
				return
			}
			// A worker reads what a producer accepts.
			payload, err := n.encode()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := DecodeNotification(payload); err != nil {
				t.Errorf("a worker refuses what a producer accepts: %v", err)
			}
		})
	}
}

// Whatever the fields hold, a valid notification is far from the limit of decoding.
func TestNotification_Largest(t *testing.T) {
	t.Parallel()
	n := fullNotification()
	const widest = `"` // two bytes in JSON
	n.Template, n.Title, n.Body = "", strings.Repeat(widest, MaxNotificationTitle), strings.Repeat("\n", MaxNotificationBody)
	n.Data = map[string]any{"a": strings.Repeat("b", MaxNotificationData-8)}
	n.Kind, n.User, n.Category = "a."+strings.Repeat("b", 94), strings.Repeat("a", 128), strings.Repeat("a", 64)
	n.Action = "/" + strings.Repeat("a", MaxAction-1)
	n.Email = `"` + strings.Repeat("é", 128) + `" <` + strings.Repeat("a", 64) + "@" + strings.Repeat(strings.Repeat("a", 45)+".", 4) + "com>"
	n.Critical, n.Dedupe, n.Digest.Key = strings.Repeat(widest, 200), strings.Repeat(widest, 128), strings.Repeat(widest, 128)
	n.Tags = slices.Repeat([]string{strings.Repeat(widest, 64)}, MaxTags)
	if err := n.Validate(); err != nil {
		t.Fatal(err)
	}
	payload, err := n.encode()
	if err != nil || len(payload) > MaxNotificationBytes/2 {
		t.Fatalf("the payload has %d bytes (%v), the limit is %d", len(payload), err, MaxNotificationBytes)
	}
	if _, err := DecodeNotification(payload); err != nil {
		t.Error(err)
	}
}

// stuff sets every text, list and map in v, so that no field is forgotten.
func stuff(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			stuff(v.Index(i), text)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		if v.Type().Elem().Kind() == reflect.String {
			v.SetMapIndex(reflect.ValueOf(text+"@"), reflect.ValueOf(text)) // a name of a field is told
		} else {
			v.SetMapIndex(reflect.ValueOf(text), reflect.ValueOf(func() {}))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		stuff(v.Elem(), text)
	case reflect.Struct:
		for _, field := range v.Fields() {
			if field.CanSet() {
				stuff(field, text)
			}
		}
	default:
	}
}

// No text of an error repeats a value, of whatever field.
func TestValidate_TellsNoValue(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{canary + "\n", canary, "/../" + canary} {
		var n Notification
		var d Delivery
		var c DigestClose
		stuff(reflect.ValueOf(&n).Elem(), bad)
		stuff(reflect.ValueOf(&d).Elem(), bad)
		stuff(reflect.ValueOf(&c).Elem(), bad)
		for _, err := range []error{n.Validate(), d.Validate(), c.Validate()} {
			if len(fields(err)) == 0 && bad != canary || err != nil && strings.Contains(err.Error(), canary) {
				t.Errorf("error repeats a value, or is none: %v", err)
			}
		}
		for _, job := range []any{n, d, c} {
			// The encoder of the standard library cannot express the function.
			v := reflect.New(reflect.TypeOf(job)).Elem()
			v.Set(reflect.ValueOf(job))
			for _, name := range []string{"Data", "Payload", "Mail"} {
				if field := v.FieldByName(name); field.IsValid() {
					field.SetZero()
				}
			}
			v.FieldByName("V").SetInt(1)
			payload, err := json.Marshal(v.Interface())
			if err != nil {
				t.Fatal(err)
			}
			for _, err := range decodeAll(payload) {
				if err != nil && strings.Contains(err.Error(), canary) {
					t.Errorf("error repeats a value: %v", err)
				}
			}
		}
	}
}

// decodeAll returns what the decoders say to payload.
func decodeAll(payload []byte) map[string]error {
	_, n := DecodeNotification(payload)
	_, d := DecodeDelivery(payload)
	_, c := DecodeDigestClose(payload)
	return map[string]error{"notification": n, "delivery": d, "digest": c}
}

func TestNotification_Steps(t *testing.T) {
	t.Parallel()
	plan := []Step{{Channel: ChannelPush}, {Channel: ChannelInApp, After: 1}}
	for name, tt := range map[string]struct {
		n    Notification
		want []Step
	}{
		"default":  {Notification{}, []Step{{Channel: ChannelInApp}}},
		"channels": {Notification{Channels: []Channel{ChannelPush, ChannelSMS}}, []Step{{Channel: ChannelPush}, {Channel: ChannelSMS}}},
		"plan":     {Notification{Plan: plan}, plan},
	} {
		if got := tt.n.Steps(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: Steps() = %v, want %v", name, got, tt.want)
		}
	}
}

func TestNotification_WireFormat(t *testing.T) {
	t.Parallel()
	payload, err := fullNotification().encode()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "notification.json", append(payload, '\n'))
}

func TestDecodeNotification_RoundTrip(t *testing.T) {
	t.Parallel()
	want := fullNotification()
	payload, err := want.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeNotification(payload)
	if err != nil {
		t.Fatal(err)
	}
	want.V = Version
	want.Data = map[string]any{"clinic": "Riverside <Family> Health", "count": int64(1000000), "id": int64(9007199254740993), "price": 12.5, "list": []any{int64(1), "two"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("DecodeNotification() = %+v\nwant %+v", got, want)
	}
}

func TestDecodeNotification_Defaults(t *testing.T) {
	t.Parallel()
	got, err := DecodeNotification([]byte(`{"v":1,"kind":"lab.result.ready","user":"u-1","title":"t","of_a_newer_producer":{"a":[1]},"dedupe":"d","digest":{"key":"k","window":"1h"}}` + "\n"))
	want := Notification{
		V: 1, Kind: "lab.result.ready", User: "u-1", Title: "t", Category: "lab", Class: ClassTransactional, Quiet: QuietDefer, Sensitivity: SensitivityHealth,
		Dedupe: "d", DedupeFor: Duration(24 * time.Hour), Digest: &Digest{Key: "k", Window: Duration(time.Hour), Max: 200},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("DecodeNotification() = %+v (%v)\nwant %+v", got, err, want)
	}
	got, err = DecodeNotification([]byte(`{"v":1,"kind":"lab.result.ready","user":"u-1","title":"t"}`))
	if err != nil || got.DedupeFor != 0 || got.Digest != nil {
		t.Errorf("DecodeNotification() = %+v (%v), want neither dedupe nor digest", got, err)
	}
}

// What holds for one decoder holds for all.
func TestDecode_Refuses(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, payload, want string }{
		{"empty", ``, "ends too early"},
		{"cut", `{"v":1,"user":"` + canary, "ends too early"},
		{"not JSON", canary, "not valid JSON"},
		{"null", `null`, "no version"},
		{"array", `[1]`, "not a JSON object"},
		{"no version", `{"user":"u"}`, "no version"},
		{"newer version", `{"v":2}`, "deploy newer workers"},
		{"newer version of another shape", `{"v":2,"user":["` + canary + `"]}`, "deploy newer workers"},
		{"field type", `{"v":1,"user":12345}`, "field user "},
		{"two objects", `{"v":1}{}`, "goes on"},
		{"invalid", `{"v":1,"user":"` + canary + ` "}`, "user: "},
		{"huge", `{"v":1,"user":"` + strings.Repeat("a", 2<<20) + `"}`, "the limit is"},
	}
	for _, tt := range tests {
		for job, err := range decodeAll([]byte(tt.payload)) {
			decodeErr, ok := errors.AsType[*DecodeError](err)
			switch {
			case !ok || !decodeErr.Permanent():
				t.Errorf("%s, %s: %v is no permanent *DecodeError", job, tt.name, err)
			case !strings.HasPrefix(err.Error(), "decode "+job+": ") || !strings.Contains(err.Error(), tt.want):
				t.Errorf("%s, %s: error %q does not say %q", job, tt.name, err, tt.want)
			case strings.Contains(err.Error(), canary), strings.Contains(err.Error(), "12345"):
				t.Errorf("%s, %s: error repeats a value: %v", job, tt.name, err)
			}
		}
	}
	for name, tt := range map[string]struct{ payload, want string }{
		"duration":      {`{"v":1,"plan":[{"channel":"push","after":"` + canary + `"}]}`, "a duration must be a text such as"},
		"number":        {`{"v":1,"plan":[{"channel":"push","after":600}]}`, "field plan.after has the wrong JSON type"},
		"over 64 KiB":   {`{"v":1,"of_a_newer_producer":"` + strings.Repeat("a", MaxNotificationBytes) + `"}`, "the limit is 65536"},
		"invalid parts": {`{"v":1,"kind":"a.b","user":"u","title":"t","plan":[{"channel":"` + canary + `"}]}`, "plan[0].channel: "},
	} {
		if _, err := DecodeNotification([]byte(tt.payload)); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v, want an error that says %q", name, err, tt.want)
		}
	}
	if _, err := DecodeDelivery([]byte(`{"v":1,"created":"` + canary + `"}`)); err == nil || !strings.Contains(err.Error(), "RFC 3339") || strings.Contains(err.Error(), canary) {
		t.Errorf("time: %v, want an error about RFC 3339", err)
	}
}

// fuzzDecode checks that no payload makes a decoder panic, and that what it returns can
// be sent on.
func fuzzDecode[T any](f *testing.F, name string, decode func([]byte) (T, error), encode func(T) ([]byte, error)) {
	f.Helper()
	payload, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload)
	f.Fuzz(func(t *testing.T, payload []byte) {
		job, err := decode(payload)
		if err != nil {
			return
		}
		again, err := encode(job)
		if err != nil {
			t.Fatalf("decoded from %q, but cannot be encoded: %v", payload, err)
		}
		second, err := decode(again)
		if err != nil {
			t.Fatalf("decoded from %q, encoded as %q: %v", payload, again, err)
		}
		third, err := encode(second)
		if err != nil || !bytes.Equal(again, third) {
			t.Errorf("%q\nbecomes %q (%v)", again, third, err)
		}
	})
}

func FuzzDecodeNotification(f *testing.F) {
	f.Add([]byte(`{"v":1,"kind":"a.b","user":"u","title":"t","data":{"a":1e999,"b":[-0,0.1,1E3]},"channels":[],"digest":{"key":"k","window":"1.5h"}}`))
	fuzzDecode(f, "notification.json", DecodeNotification, Notification.encode)
}

// Whatever is accepted stays in the app or names its host in the clear.
func FuzzNotification_Action(f *testing.F) {
	for _, action := range []string{"/results/17", "//evil.example", "/\\evil.example", "/%2e%2e/a", "https://example.com/a", "https://a@example.com"} {
		f.Add(action)
	}
	f.Fuzz(func(t *testing.T, action string) {
		n := note()
		n.Action = action
		if action == "" || n.Validate() != nil {
			return
		}
		host, isURL := strings.CutPrefix(action, "https://")
		host = host[:len(host)-len(strings.TrimLeft(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-"))]
		rest := strings.TrimPrefix(action, "https://"+host)
		path, _, _ := strings.Cut(rest, "?")
		path, _, _ = strings.Cut(path, "#")
		switch {
		case isURL && (host == "" && !strings.Contains(rest, "%") || strings.HasPrefix(rest, "@")),
			!isURL && (action[0] != '/' || strings.HasPrefix(action, "//")),
			strings.ContainsAny(action, "\\ \t\r\n\x00"),
			slices.Contains(strings.Split(strings.ToLower(strings.ReplaceAll(strings.ToLower(path), "%2e", ".")), "/"), ".."):
			t.Errorf("accepted %q", action)
		}
	})
}

func TestNotification_ValidateOrder(t *testing.T) {
	t.Parallel()
	n := Notification{Data: map[string]any{}}
	for i := range 10 {
		n.Data[fmt.Sprint(i)] = func() {}
	}
	first := n.Validate().Error()
	for range 20 {
		n.Data = maps.Clone(n.Data)
		if again := n.Validate().Error(); again != first {
			t.Fatalf("the same notification gives different texts:\n%s\n%s", first, again)
		}
	}
}
