package tasks

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// fill sets every field of v to something that is not its zero value, so that a
// field which appendEmail does not know shows.
func fill(t *rapid.T, v reflect.Value) {
	text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[ -~]{1,20}`), rapid.SampledFrom([]string{"\u2028", "a\xffb", "<b>&\"'\\\x7f", "\r\n\t\b\f\x00", "ä"}))
	switch v.Kind() {
	case reflect.String:
		v.SetString(text.Draw(t, "text"))
	case reflect.Int:
		v.SetInt(int64(rapid.IntRange(0, 9).Draw(t, "number")))
	case reflect.Slice:
		n := rapid.IntRange(0, 3).Draw(t, "length")
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fill(t, v.Index(i))
		}
	case reflect.Uint8:
		v.SetUint(uint64(rapid.Byte().Draw(t, "byte")))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range rapid.IntRange(0, 4).Draw(t, "size") {
			value := reflect.New(v.Type().Elem()).Elem()
			fill(t, value)
			v.SetMapIndex(reflect.ValueOf(text.Draw(t, "key")), value)
		}
	case reflect.Interface:
		// Texts most of the time: they have a path of their own.
		if rapid.IntRange(0, 9).Draw(t, "kind") > 0 {
			v.Set(reflect.ValueOf(text.Draw(t, "value")))
		} else {
			v.Set(reflect.ValueOf(map[string]any{"a": []any{1, "<", nil, true, 1.5}}))
		}
	case reflect.Struct:
		for _, field := range v.Fields() {
			fill(t, field)
		}
	default:
		t.Fatalf("Email has a %v: teach this test, and appendEmail", v.Kind())
	}
}

func TestAppendEmail_WritesWhatEncodingJSONWrites(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var email Email
		fill(t, reflect.ValueOf(&email).Elem())
		var want bytes.Buffer
		enc := json.NewEncoder(&want)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(email); err != nil {
			t.Fatal(err)
		}
		got, err := appendEmail(nil, &email)
		if err != nil || string(got)+"\n" != want.String() {
			t.Fatalf("appendEmail() = %s (%v)\nwant %s", got, err, want.String())
		}
	})
}

func TestRecord_Encode_WritesWhatEncodingJSONWrites(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		at := time.Unix(0, rapid.Int64Range(0, 1<<62).Draw(t, "at")).UTC()
		r := record{
			ID: rapid.String().Draw(t, "id"), Queue: rapid.String().Draw(t, "queue"), EnqueuedAt: at, ProcessAt: at.Add(time.Minute),
			State: rapid.SampledFrom([]string{StatePending, StateScheduled}).Draw(t, "state"), Confirmed: rapid.Bool().Draw(t, "confirmed"),
		}
		var want bytes.Buffer
		enc := json.NewEncoder(&want)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(r); err != nil {
			t.Fatal(err)
		}
		if got := r.encode(); string(got)+"\n" != want.String() {
			t.Fatalf("encode() = %s\nwant %s", got, want.String())
		}
	})
}
