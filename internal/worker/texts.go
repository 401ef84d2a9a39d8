package worker

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/medicalink/postroom/preferences"
	"github.com/medicalink/postroom/tasks"
	"github.com/medicalink/postroom/templates"
)

// texts is what the channels show of a notification.
type texts struct {
	app, push, sms, chat templates.Text
	link                 string          // where the action leads from outside the app, or empty
	payload              json.RawMessage // of webhooks
	mail                 tasks.Email     // but for the recipient
}

// textsOf renders n for every channel. In the app everything is shown. Outside of it a
// health notification says no more than that there is something to read; another shows
// what its template has for the channel, or its own title and body.
func (w *Worker) textsOf(j *job, n tasks.Notification, prefs preferences.Preferences) (texts, *failure) {
	locale := cmp.Or(n.Locale, prefs.Locale)
	link, err := w.link(n.Action)
	if err != nil {
		return texts{}, fail(OutcomeRejected, reasonInvalid, err)
	}
	own := templates.Notification{Text: templates.Text{Title: n.Title, Body: n.Body}}
	if n.Template != "" {
		if own, err = w.templates.RenderNotification(n.Template, locale, n.Data); err != nil {
			return texts{}, fail(OutcomeRejected, reasonTemplate, err)
		}
	}
	t := texts{app: own.Text, link: link}
	if !slices.ContainsFunc(n.Steps(), func(s tasks.Step) bool { return s.Channel != tasks.ChannelInApp }) {
		return t, nil
	}
	data := map[string]any{}
	if link != "" {
		data["action_url"] = link
	}
	generic, err := w.templates.RenderNotification(templates.Generic, locale, data)
	if err != nil {
		return texts{}, fail(OutcomeRejected, reasonTemplate, err)
	}
	t.push, t.sms, t.chat = generic.Push, generic.SMS, generic.Chat
	open := n.Sensitivity != tasks.SensitivityHealth
	switch {
	case open && n.Template == "":
		t.push, t.sms, t.chat = own.Text, own.Text, own.Text
	case open:
		t.push, t.sms, t.chat = cmp.Or(own.Push, t.push), cmp.Or(own.SMS, t.sms), cmp.Or(own.Chat, t.chat)
	}
	t.mail = w.mailOf(n, own.Text, data, open)
	t.mail.Locale = locale
	if t.payload, err = payloadOf(j, n, own, open); err != nil {
		return texts{}, fail(OutcomeRejected, reasonTemplate, err)
	}
	return t, nil
}

// mailOf returns the email of n. Class bulk needs a header that only a mailing has, and
// who does not want these emails says so in the preferences.
func (w *Worker) mailOf(n tasks.Notification, own templates.Text, data map[string]any, open bool) tasks.Email {
	mail := tasks.Email{Class: n.Class, Tags: n.Tags}
	if n.Class == tasks.ClassBulk {
		mail.Class = tasks.ClassTransactional
	}
	hasEmail, _ := w.templates.Kinds(n.Template)
	switch {
	case open && hasEmail:
		mail.Template, mail.Data = n.Template, n.Data
	case !open, n.Template != "": // a template's text for the app may hold what an inbox must not show
		mail.Template, mail.Data = templates.Generic, data
	default:
		mail.Template = templates.Plain
		mail.Data = map[string]any{"title": own.Title, "body": own.Body}
		maps.Copy(mail.Data, data)
	}
	return mail
}

// link returns the absolute URL of an action; "" if it has none outside the app.
func (w *Worker) link(action string) (string, error) {
	switch {
	case action == "":
		return "", nil
	case strings.HasPrefix(action, "/"):
		if w.cfg.AppURL == "" {
			return "", nil
		}
		return strings.TrimSuffix(w.cfg.AppURL, "/") + action, nil
	}
	u, err := url.Parse(action)
	if err != nil {
		return "", errors.New("action: is not a URL")
	}
	if app, err := url.Parse(w.cfg.AppURL); err == nil && w.cfg.AppURL != "" && strings.EqualFold(app.Host, u.Host) {
		return action, nil
	}
	if !slices.ContainsFunc(w.cfg.ActionHosts, func(host string) bool { return strings.EqualFold(host, u.Host) }) {
		return "", errors.New("action: leads to a host that is not allowed here: the workers' settings APP_URL and ACTION_HOSTS name those that are")
	}
	return action, nil
}

// An event is the body of a webhook, as Standard Webhooks recommends it: thin, so that
// who may see more asks for it with credentials of its own.
type event struct {
	Type      string                     `json:"type"`
	Timestamp time.Time                  `json:"timestamp"`
	Data      map[string]json.RawMessage `json:"data"`
}

// payloadOf fixes the bytes of the webhook: every try sends and signs the same ones.
func payloadOf(j *job, n tasks.Notification, own templates.Notification, open bool) (json.RawMessage, error) {
	data := map[string]json.RawMessage{}
	if len(own.Webhook) > 0 {
		if err := json.Unmarshal(own.Webhook, &data); err != nil {
			return nil, errors.New("the template's webhook.json is not an object")
		}
	}
	texts := map[string]string{"notification_id": j.id, "user": n.User}
	if open && n.Template == "" {
		texts["title"], texts["body"] = own.Title, own.Body
	}
	for name, text := range texts {
		encoded, err := json.Marshal(text)
		if err != nil {
			return nil, fmt.Errorf("encode the webhook: %w", err)
		}
		data[name] = encoded
	}
	payload, err := json.Marshal(event{Type: n.Kind, Timestamp: j.enqueued.UTC(), Data: data})
	if err != nil {
		return nil, fmt.Errorf("encode the webhook: %w", err)
	}
	return payload, nil
}
