package monitor

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"

	"github.com/medicalink/postroom/tasks"
)

// Names are narrow, because a producer could write anything there.
var (
	templateName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)
	kindName     = regexp.MustCompile(`^[a-z0-9_-]+(\.[a-z0-9_-]+)+$`)
)

// summary is all that the dashboard shows of a payload or a result.
type summary struct {
	Type        string `json:"type,omitempty"`
	Kind        string `json:"kind,omitempty"`
	Channel     string `json:"channel,omitempty"`
	Template    string `json:"template,omitempty"`
	Class       string `json:"class,omitempty"`
	Attachments int    `json:"attachments,omitempty"`
	Bytes       int    `json:"bytes"`
}

func (s summary) String() string {
	text, _ := json.Marshal(s) // strings and numbers always encode
	return string(text)
}

func describePayload(taskType string, payload []byte) string {
	s := summary{Type: taskType, Bytes: len(payload)}
	switch taskType {
	case tasks.TypeEmail, tasks.TypeNotification, tasks.TypeDelivery:
		s.read(payload)
	}
	return s.String()
}

// read takes what may be shown from the payload of a job of ours.
func (s *summary) read(payload []byte) {
	var job struct {
		Kind        string            `json:"kind"`
		Channel     tasks.Channel     `json:"channel"`
		Template    string            `json:"template"`
		Class       tasks.Class       `json:"class"`
		Attachments []json.RawMessage `json:"attachments"`
	}
	if json.Unmarshal(payload, &job) != nil {
		return
	}
	s.Attachments = len(job.Attachments)
	if templateName.MatchString(job.Template) {
		s.Template = job.Template
	}
	if len(job.Kind) <= 96 && kindName.MatchString(job.Kind) {
		s.Kind = job.Kind
	}
	switch job.Channel {
	case tasks.ChannelInApp, tasks.ChannelPush, tasks.ChannelEmail, tasks.ChannelSMS, tasks.ChannelChat, tasks.ChannelWebhook:
		s.Channel = string(job.Channel)
	}
	switch job.Class {
	case tasks.ClassOTP, tasks.ClassClinical, tasks.ClassTransactional, tasks.ClassBulk:
		s.Class = string(job.Class)
	}
}

func describeResult(_ string, result []byte) string {
	if len(result) == 0 {
		return ""
	}
	return summary{Bytes: len(result)}.String()
}

// address is anything with an @ inside, also where it is not a valid address.
var address = regexp.MustCompile(`[^\s<>"'(),;:]+@[^\s<>"'(),;:]+`)

const redacted = "[address]"

// redactJSON replaces addresses in every string of a JSON text, or in the whole
// text if it is not JSON (an error message). The worker cleans error texts
// before it stores them; this is for jobs of others.
func redactJSON(text []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return address.ReplaceAll(text, []byte(redacted)), nil //nolint:nilerr // not JSON is not a failure
	}
	clean, err := json.Marshal(redactValue(v))
	if err != nil {
		return nil, fmt.Errorf("encode redacted answer: %w", err)
	}
	return append(clean, '\n'), nil
}

func redactValue(v any) any {
	switch v := v.(type) {
	case string:
		return address.ReplaceAllString(v, redacted)
	case []any:
		for i := range v {
			v[i] = redactValue(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = redactValue(v[k])
		}
	}
	return v
}
