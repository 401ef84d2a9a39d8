package tasks

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"time"
)

// appendEmail appends e as encoding/json writes it, without escapes for HTML. It
// writes texts itself: reflection on this type would be a third of the work of
// enqueuing.
func appendEmail(b []byte, e *Email) ([]byte, error) {
	b = strconv.AppendInt(append(b, `{"v":`...), int64(e.V), 10)
	b = appendText(append(b, `,"to":`...), e.To)
	text := func(name, value string) {
		if value != "" {
			b = appendText(append(b, name...), value)
		}
	}
	text(`,"from":`, e.From)
	text(`,"reply_to":`, e.ReplyTo)
	text(`,"subject":`, e.Subject)
	text(`,"body":`, e.Body)
	text(`,"html":`, e.HTML)
	text(`,"template":`, e.Template)
	text(`,"locale":`, e.Locale)
	var err error
	value := func(name string, n int, v any) {
		if n > 0 && err == nil {
			b, err = appendJSON(append(b, name...), v)
		}
	}
	if keys, ok := textKeys(e.Data); ok {
		b = append(b, `,"data":`...)
		before := byte('{')
		for _, key := range keys {
			b = appendText(append(b, before), key)
			b = appendText(append(b, ':'), e.Data[key].(string)) //nolint:forcetypeassert // textKeys has looked
			before = ','
		}
		b = append(b, '}')
	} else {
		value(`,"data":`, len(e.Data), e.Data)
	}
	value(`,"attachments":`, len(e.Attachments), e.Attachments)
	value(`,"headers":`, len(e.Headers), e.Headers)
	text(`,"list_unsubscribe":`, e.ListUnsubscribe)
	value(`,"tags":`, len(e.Tags), e.Tags)
	text(`,"class":`, string(e.Class))
	return append(b, '}'), err
}

// textKeys returns the keys of data in their order, if there are any and all
// values are texts.
func textKeys(data map[string]any) (keys []string, ok bool) {
	if len(data) == 0 {
		return nil, false
	}
	keys = make([]string, 0, len(data))
	for key, value := range data {
		if _, isText := value.(string); !isText {
			return nil, false
		}
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys, true
}

// appendText appends s as a JSON string.
func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			b, _ = appendJSON(b, s) // a string cannot fail
			return b
		}
	}
	b = append(append(b, '"'), s...)
	return append(b, '"')
}

// appendTime appends t as a JSON string.
func appendTime(b []byte, t time.Time) []byte {
	b = t.AppendFormat(append(b, '"'), time.RFC3339Nano)
	return append(b, '"')
}

// appendJSON appends v. HTML escaping would write every < of an HTML body in six
// bytes.
func appendJSON(b []byte, v any) ([]byte, error) {
	buf := bytes.NewBuffer(b)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}
