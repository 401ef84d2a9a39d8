package tasks

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const notificationID = "01940000-0000-7000-8000-000000000000"

// parcel returns a valid delivery.
func parcel() Delivery {
	return Delivery{
		Notification: notificationID, Channel: ChannelPush, Kind: "lab.result.ready", User: "u-1", Title: "You have a message", Category: "lab",
		Created: time.Date(2026, 12, 1, 12, 0, 0, 500, time.UTC),
	}
}

func fullDelivery() Delivery {
	d := parcel()
	d.Step, d.Channel, d.Target, d.Replay = 5, ChannelEmail, "t", "again-1"
	d.Body, d.Action, d.Critical, d.Quiet, d.Collapse, d.OnlyIf, d.Class = "a\nb & c", "http://localhost:3000/a", "urgent", QuietIgnore, "c", OnlyIfUnsent, ClassClinical
	d.Mail = &Email{To: "ada@example.com", Template: "welcome", Data: map[string]any{"n": 1000000}}
	return d
}

func TestDelivery_Validate(t *testing.T) {
	t.Parallel()
	type test struct {
		name   string
		change func(*Delivery)
		want   []string
	}
	tests := []test{
		{"least", func(*Delivery) {}, nil},
		{"everything", func(d *Delivery) { *d = fullDelivery() }, nil},
		{"nothing", func(d *Delivery) { *d = Delivery{} }, []string{"notification", "channel", "kind", "user", "category", "created"}},
		{"in the app", func(d *Delivery) { d.Channel = ChannelInApp }, nil},
		{"SMS", func(d *Delivery) { d.Channel, d.Target = ChannelSMS, "+4930123456" }, nil},
		{"SMS to nobody", func(d *Delivery) { d.Channel, d.Target = ChannelSMS, "u-1" }, []string{"target"}},
		{"chat", func(d *Delivery) { d.Channel, d.Target = ChannelChat, "desk" }, nil},
		{"chat nowhere", func(d *Delivery) { d.Channel = ChannelChat }, []string{"target"}},
		{"webhook", func(d *Delivery) { d.Channel, d.Target, d.Payload = ChannelWebhook, "ehr", json.RawMessage(`{"a": 1}`) }, nil},
		{"webhook to a URL", func(d *Delivery) { d.Channel, d.Target, d.Payload = ChannelWebhook, "https://a", json.RawMessage(`{}`) }, []string{"target"}},
		{"webhook without payload", func(d *Delivery) { d.Channel, d.Target = ChannelWebhook, "ehr" }, []string{"payload"}},
		{"webhook with a broken payload", func(d *Delivery) { d.Channel, d.Target, d.Payload = ChannelWebhook, "ehr", json.RawMessage(`{"a"`) }, []string{"payload"}},
		{"payload of 20 KiB", func(d *Delivery) {
			d.Channel, d.Target, d.Payload = ChannelWebhook, "ehr", json.RawMessage(`"`+strings.Repeat("a", 20<<10-2)+`"`)
		}, nil},
		{"payload of more", func(d *Delivery) {
			d.Channel, d.Target, d.Payload = ChannelWebhook, "ehr", json.RawMessage(`"`+strings.Repeat("a", 20<<10-1)+`"`)
		}, []string{"payload"}},
		{"payload of a push", func(d *Delivery) { d.Payload = json.RawMessage(`{}`) }, []string{"payload"}},
		{"email without mail", func(d *Delivery) { d.Channel = ChannelEmail }, []string{"mail"}},
		{"mail of a push", func(d *Delivery) { d.Mail = fullDelivery().Mail }, []string{"mail"}},
		{"bad mail", func(d *Delivery) { d.Channel, d.Mail = ChannelEmail, &Email{To: "x", Subject: "s"} }, []string{"mail.to", "mail.body"}},
		{"mail not JSON", func(d *Delivery) {
			d.Channel, d.Mail = ChannelEmail, &Email{To: "ada@example.com", Template: "t", Data: map[string]any{"a": func() {}}}
		}, []string{"mail.data"}},
		{"mail of 1 MiB", func(d *Delivery) {
			d.Channel, d.Mail = ChannelEmail, &Email{To: "ada@example.com", Subject: "s", Body: strings.Repeat("a", MaxDeliveryBytes)}
		}, []string{"delivery"}},
		{"last step", func(d *Delivery) { d.Step = 5 }, nil},
		{"step too high", func(d *Delivery) { d.Step = 6 }, []string{"step"}},
		{"step too low", func(d *Delivery) { d.Step = -1 }, []string{"step"}},
		{"target", func(d *Delivery) { d.Target = "a\n" }, []string{"target"}},
		{"target of 129", func(d *Delivery) { d.Target = strings.Repeat("a", 129) }, []string{"target"}},
		{"replay of 65", func(d *Delivery) { d.Replay = strings.Repeat("a", 65) }, []string{"replay"}},
		{"text", func(d *Delivery) { d.Title, d.Body = strings.Repeat("a", 201), "\a" }, []string{"title", "body"}},
		{"link", func(d *Delivery) { d.Action = "https://intranet/" + strings.Repeat("a", MaxAction) }, nil},
		{"long link", func(d *Delivery) { d.Action = "/" + strings.Repeat("a", 2*MaxAction) }, []string{"action"}},
		{"script", func(d *Delivery) { d.Action = "javascript:alert(1)" }, []string{"action"}},
		{"link of two lines", func(d *Delivery) { d.Action = "/a\nb" }, []string{"action"}},
		{"other fields", func(d *Delivery) {
			d.Critical, d.Quiet, d.Collapse, d.OnlyIf, d.Class, d.V = "\n", "q", "\n", "c", "c", 2
		}, []string{"critical", "critical", "quiet", "collapse", "collapse", "only_if", "class", "v"}},
	}
	for _, id := range []string{"", "x", "01940000000070008000000000000000", "{" + notificationID + "}", strings.ToUpper("01940000-0000-7000-8000-00000000000a")} {
		tests = append(tests, test{"notification " + id, func(d *Delivery) { d.Notification = id }, []string{"notification"}})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := parcel()
			tt.change(&d)
			err := d.Validate()
			if got := fields(err); !slices.Equal(got, tt.want) {
				t.Errorf("Validate() complains about %q, want %q: %v", got, tt.want, err)
			}
			if err != nil {
				return
			}
			payload, err := d.encode()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := DecodeDelivery(payload); err != nil {
				t.Errorf("a worker refuses what a producer accepts: %v", err)
			}
		})
	}
}

func TestDigestClose_Validate(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		c    DigestClose
		want []string
	}{
		"valid":   {DigestClose{User: "u-1", Key: "k"}, nil},
		"nothing": {DigestClose{}, []string{"user", "key"}},
		"rest":    {DigestClose{User: "u-1", Key: strings.Repeat("a", 129), Generation: -1, V: 2}, []string{"key", "generation", "v"}},
	} {
		if got := fields(tt.c.Validate()); !slices.Equal(got, tt.want) {
			t.Errorf("%s: Validate() complains about %q, want %q", name, got, tt.want)
		}
	}
}

func TestDelivery_WireFormat(t *testing.T) {
	t.Parallel()
	payload, err := fullDelivery().encode()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "delivery.json", append(payload, '\n'))
	webhook := parcel()
	webhook.Channel, webhook.Target, webhook.Payload = ChannelWebhook, "ehr", json.RawMessage(`{"type":"a & b"}`)
	if payload, err = webhook.encode(); err != nil {
		t.Fatal(err)
	}
	golden(t, "delivery-webhook.json", append(payload, '\n'))
	if payload, err = (DigestClose{User: "u-1", Key: "messages", Generation: 17, Full: true}).encode(); err != nil {
		t.Fatal(err)
	}
	golden(t, "digest.json", append(payload, '\n'))
}

func TestDecodeDelivery(t *testing.T) {
	t.Parallel()
	want := fullDelivery()
	payload, err := want.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeDelivery(payload)
	want.V = Version
	want.Mail.Data["n"] = int64(1000000)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("DecodeDelivery() = %+v (%v)\nwant %+v", got, err, want)
	}
	if payload, err = parcel().encode(); err != nil {
		t.Fatal(err)
	}
	if got, err = DecodeDelivery(payload); err != nil || got.Class != ClassTransactional || got.Quiet != QuietDefer {
		t.Errorf("DecodeDelivery() = %+v (%v), want the defaults of class and quiet", got, err)
	}
	_, err = DecodeDelivery([]byte(`{"v":1,"notification":"x","mail":{"to":"` + canary + `"}}`))
	if got := fields(err); !slices.Contains(got, "notification") || !slices.Contains(got, "mail.to") || strings.Contains(err.Error(), canary) {
		t.Errorf("DecodeDelivery() complains about %q: %v", got, err)
	}
	if _, err := DecodeDelivery([]byte(`{"v":1,"mail":{"attachments":[{"content":"` + canary + `!"}]}}`)); !strings.Contains(err.Error(), "base64") {
		t.Errorf("DecodeDelivery() = %v, want an error about base64", err)
	}
}

func TestDecodeDigestClose(t *testing.T) {
	t.Parallel()
	want := DigestClose{V: 1, User: "u-1", Key: "k", Generation: 9007199254740993, Full: true}
	payload, err := want.encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeDigestClose(payload); err != nil || got != want {
		t.Errorf("DecodeDigestClose() = %+v (%v), want %+v", got, err, want)
	}
}

// The ids are as permanent as the wire format: another one would deliver twice what is
// on its way while workers are deployed.
func TestDelivery_ID(t *testing.T) {
	t.Parallel()
	base := Delivery{Notification: notificationID, Step: 1, Target: "a", Replay: "b"}
	if got, want := base.ID(), "afac6911-8940-5dfa-a778-10edbf376837"; got != want {
		t.Errorf("ID() = %s, want %s", got, want)
	}
	end := DigestClose{User: "u", Key: "k", Generation: 1}
	if got, want := end.ID(), "3457b2be-d351-5c79-9ce8-7eaee3d50cbb"; got != want {
		t.Errorf("ID() = %s, want %s", got, want)
	}
	ids := map[string]bool{}
	for _, id := range []string{
		base.ID(), Delivery{Notification: "01940000-0000-7000-8000-000000000001", Step: 1, Target: "a", Replay: "b"}.ID(),
		Delivery{Notification: notificationID, Step: 11, Target: "a", Replay: "b"}.ID(), Delivery{Notification: notificationID, Step: 1, Target: "ab"}.ID(),
		Delivery{Notification: notificationID, Step: 1, Replay: "ab"}.ID(), Delivery{Notification: notificationID, Step: 1, Target: `a" "b`}.ID(),
		end.ID(), DigestClose{User: "v", Key: "k", Generation: 1}.ID(), DigestClose{User: "u", Key: "l", Generation: 1}.ID(),
		DigestClose{User: "u", Key: "k", Generation: 2}.ID(), DigestClose{User: "u", Key: "k", Generation: 1, Full: true}.ID(),
	} {
		ids[id] = true
	}
	if len(ids) != 11 {
		t.Errorf("11 jobs have %d ids: %q", len(ids), slices.Sorted(maps.Keys(ids)))
	}
	other := base
	other.Title, other.Channel, other.V = "x", ChannelPush, 1
	if other.ID() != base.ID() {
		t.Error("the text is part of the id")
	}
}

func TestDecodeError_Text(t *testing.T) {
	t.Parallel()
	err := &DecodeError{Job: "digest", Err: errors.New("cause")}
	if err.Error() != "decode digest: cause" {
		t.Errorf("Error() = %q", err)
	}
}

func FuzzDecodeDelivery(f *testing.F) {
	f.Add([]byte(`{"v":1,"notification":"01940000-0000-7000-8000-000000000000","step":0,"channel":"webhook","target":"ehr","kind":"a.b","user":"u","category":"a","payload":{"a": "<\u2028>"},"created":"2026-12-01T12:00:00+01:00"}`))
	fuzzDecode(f, "delivery.json", DecodeDelivery, Delivery.encode)
}

func FuzzDecodeDigestClose(f *testing.F) {
	fuzzDecode(f, "digest.json", DecodeDigestClose, DigestClose.encode)
}
