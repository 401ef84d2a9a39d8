package templates

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/template/parse"
	"unicode/utf8"

	texttemplate "text/template"
)

// Names of built-in templates that the worker uses by itself. An operator may replace
// them like any other; [Load] tries them with the data that the worker has.
const (
	// Generic is what is shown outside the app of a notification whose content may not
	// be: that there is something to read. Its data is an optional action_url. It has
	// the parts of an email and of a notification.
	Generic = "generic"
	// Plain is the email of a notification that comes with a text instead of a
	// template. Its data is title and an optional body and action_url.
	Plain = "notification"
	// Digest is a notification of several that were gathered. Its data is their count,
	// items with a title each, and more, the number of those that are not among the items.
	Digest = "digest"
)

// Limits of what a notification renders to, in bytes. They are those of the tasks
// package, which the delivery has to pass.
const (
	maxTitle   = 200
	maxMessage = 4 << 10
	// maxSMS is what gateways take as one message: ten segments of up to 160 characters.
	maxSMS = 1600
	// maxWebhook leaves room within the 20 KiB of a webhook's body for what stands
	// around the data.
	maxWebhook = 16 << 10
)

const webhookFile = "webhook.json"

// notePart is one file of a notification in one locale.
type notePart struct {
	file  string
	name  string // of its tree, and what errors call it
	with  string // another file without which it means nothing
	line  bool   // one line, cut at max; otherwise more than max is an error
	max   int    // bytes
	hides marks  // of the fields it may not show
	field func(*Notification) *string
}

// required says that every locale must have the part.
func (p *notePart) required() bool { return p.hides == 0 }

// noteParts are the parts of a notification. Title and message are shown after login; the
// others on locked screens and by the systems of others.
var noteParts = [...]notePart{
	{file: "title.txt", name: "title", line: true, max: maxTitle, field: func(n *Notification) *string { return &n.Title }},
	{file: "message.txt", name: "message", max: maxMessage, field: func(n *Notification) *string { return &n.Body }},
	{file: "push-title.txt", name: "push title", with: "push-body.txt", line: true, max: maxTitle, hides: private, field: func(n *Notification) *string { return &n.Push.Title }},
	{file: "push-body.txt", name: "push body", with: "push-title.txt", max: maxMessage, hides: private, field: func(n *Notification) *string { return &n.Push.Body }},
	{file: "chat.txt", name: "chat text", max: maxMessage, hides: private, field: func(n *Notification) *string { return &n.Chat.Body }},
	{file: "sms.txt", name: "sms text", max: maxSMS, hides: private, field: func(n *Notification) *string { return &n.SMS.Body }},
}

// variantNote is what a variant has of a notification. A part that the locale lacks is nil.
type variantNote struct {
	parts [len(noteParts)]*texttemplate.Template
	// inLines are the fields that parts of one line show.
	inLines []inLine
}

type inLine struct{ field, part string }

// webhookFuncs is all that webhook.json has besides the functions of text/template: what is
// for machines is not worded in a language.
var webhookFuncs = texttemplate.FuncMap{"json": func(v any) (string, error) {
	// Escapes <, >, & and the line separators of JavaScript as well.
	b, err := json.Marshal(v)
	if err != nil {
		return "", valueError("has no form in JSON")
	}
	return string(b), nil
}}

// loadNote builds the notification of one locale, or reports why not.
func (l *loader) loadNote(t *template, v *variant, loc *locale) {
	before := len(l.problems)
	folder := t.name + "/" + v.lang + "/"
	var trees [len(noteParts)]map[string]*parse.Tree
	for i := range noteParts {
		p := &noteParts[i]
		name := folder + p.file
		if _, there := l.files[name]; !there && !p.required() {
			if _, other := l.files[folder+p.with]; p.with == "" || !other {
				continue
			}
		}
		if !l.has(name) {
			continue
		}
		trees[i] = l.parse(name, strings.TrimRight(l.files[name].data, "\n"), p.name, (&locale{}).funcs())
		if trees[i] == nil || t.shape == nil {
			continue
		}
		for _, field := range l.checkFields(t, p.name, trees[i], map[string]marks{p.name: p.hides}) {
			if p.line {
				v.note.inLines = append(v.note.inLines, inLine{field, p.name})
			}
		}
	}
	if len(l.problems) > before || loc == nil || t.shape == nil {
		return
	}
	for i := range noteParts {
		if trees[i] == nil {
			continue
		}
		var err error
		if v.note.parts[i], err = textSet(loc, loc.funcs(), trees[i], noteParts[i].name); err != nil {
			l.reportTemplate(folder+noteParts[i].file, err)
		}
	}
	if len(l.problems) == before && t.sample != nil {
		l.trySamples(t, func(try trial) { try.note(folder, v) })
	}
}

// note renders a sample's notification in one locale.
func (try trial) note(folder string, v *variant) {
	for i := range noteParts {
		p, part := &noteParts[i], v.note.parts[i]
		if part == nil {
			continue
		}
		text := strings.TrimSpace(try.run(folder+p.file, p.name, part, textTrees(part)))
		switch {
		case text == "":
			try.report(folder+p.file, "renders an empty %s", p.name)
		case p.line && strings.ContainsAny(text, "\r\n"):
			try.report(folder+p.file, "renders a %s with a line break", p.name)
		case len(text) > p.max:
			try.report(folder+p.file, "renders to %d bytes; a %s has at most %d", len(text), p.name, p.max)
		}
	}
}

// loadWebhook builds the part of a template that is the same in every locale.
func (l *loader) loadWebhook(t *template) {
	const main = "webhook body"
	before := len(l.problems)
	name := t.name + "/" + webhookFile
	if _, there := l.files[name]; !there || !l.has(name) {
		return
	}
	trees := l.parse(name, l.files[name].data, main, webhookFuncs)
	if trees == nil {
		return
	}
	for _, tree := range trees {
		l.checkJSON(tree)
	}
	if t.shape == nil {
		return
	}
	l.checkFields(t, main, trees, map[string]marks{main: phi})
	if len(l.problems) > before {
		return
	}
	var err error
	if t.webhook, err = textSet(nil, webhookFuncs, trees, main); err != nil {
		l.reportTemplate(name, err)
		return
	}
	if t.sample == nil {
		return
	}
	l.trySamples(t, func(try trial) {
		out := try.run(name, main, t.webhook, textTrees(t.webhook))
		if len(l.problems) > before {
			return
		}
		if _, err := jsonObject([]byte(out)); err != nil {
			try.report(name, "does not render one JSON object: %s", err)
		}
	})
}

// checkJSON holds a tree of webhook.json to the two rules by which no data can change the
// structure of the JSON around it: what is printed went through json last, and no action
// stands within a string.
func (l *loader) checkJSON(tree *parse.Tree) {
	if tree == nil || tree.Root == nil {
		return
	}
	problem := func(n parse.Node, lines int, format string, args ...any) {
		location, _ := tree.ErrorContext(n)
		file, line := splitLocation(location)
		l.report(file, line+lines, format, args...)
	}
	eachNode(tree.Root, func(n parse.Node) {
		switch n := n.(type) {
		case *parse.TextNode:
			if open := openString(n.Text); open >= 0 {
				problem(n, bytes.Count(n.Text[:open], []byte("\n")), `an action stands within a JSON string; json writes the quotes itself: "a": {{json .a}}`)
			}
		case *parse.ActionNode:
			if len(n.Pipe.Decl) > 0 {
				return
			}
			last := n.Pipe.Cmds[len(n.Pipe.Cmds)-1]
			if id, ok := last.Args[0].(*parse.IdentifierNode); !ok || id.Ident != "json" {
				problem(n, 0, "%s does not end in json, which is what makes JSON of a value: {{json .field}}", n)
			}
		}
	})
}

// openString returns where a JSON string begins that does not end in text, or -1.
func openString(text []byte) int {
	open := -1
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '"' && open < 0:
			open = i
		case text[i] == '"':
			open = -1
		case text[i] == '\\' && open >= 0:
			i++
		}
	}
	return open
}

var errNotAnObject = errors.New("it is JSON, but not an object")

// jsonObject returns the object in text without insignificant space.
func jsonObject(text []byte) (json.RawMessage, error) {
	var b bytes.Buffer
	if err := json.Compact(&b, text); err != nil {
		return nil, err
	}
	if b.Bytes()[0] != '{' {
		return nil, errNotAnObject
	}
	if b.Len() > maxWebhook {
		return nil, fmt.Errorf("it has %d bytes, the limit is %d", b.Len(), maxWebhook)
	}
	return b.Bytes(), nil
}

// renderNote executes a checked template with validated data.
func (v *variant) renderNote(t *template, data map[string]any) (Notification, error) {
	for _, in := range v.note.inLines {
		if hasLineBreak(data[in.field]) {
			return Notification{}, &DataError{t.name, in.field, "must be one line, because the " + in.part + " shows it"}
		}
	}
	w := t.workspace(data)
	defer t.release(w)

	n := Notification{Locale: v.lang}
	for i := range noteParts {
		if v.note.parts[i] == nil {
			continue
		}
		p := &noteParts[i]
		out, err := w.run(v.note.parts[i])
		if err != nil {
			return Notification{}, renderError(t.name, err)
		}
		var text string
		if p.line {
			text, err = oneLine(t.name, p.name, out)
			text = cut(text, p.max)
		} else {
			text, err = someText(t.name, p, out)
		}
		if err != nil {
			return Notification{}, err
		}
		*p.field(&n) = text
	}
	if t.webhook != nil {
		out, err := w.run(t.webhook)
		if err != nil {
			return Notification{}, renderError(t.name, err)
		}
		if n.Webhook, err = jsonObject(out); err != nil {
			// The error may quote a character of the data.
			return Notification{}, &DataError{t.name, "", fmt.Sprintf("the webhook body is not one JSON object of at most %d bytes with this data", maxWebhook)}
		}
	}
	return n, nil
}

func someText(template string, p *notePart, out []byte) (string, error) {
	text := string(bytes.TrimSpace(out))
	switch {
	case text == "":
		return "", &DataError{template, "", "the " + p.name + " is empty with this data"}
	case len(text) > p.max:
		return "", &DataError{template, "", fmt.Sprintf("the %s would be larger than %d bytes", p.name, p.max)}
	}
	return text, nil
}

// cut shortens a line to limit bytes, and shows that it did.
func cut(s string, limit int) string {
	const ellipsis = "…"
	if len(s) <= limit {
		return s
	}
	end := limit - len(ellipsis)
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return strings.TrimRight(s[:end], " ") + ellipsis
}

// checkOwn sees to it that the templates which the worker uses by itself can do with the
// data that the worker has for them.
func (l *loader) checkOwn(set *Set) {
	const action = "https://example.com/"
	titles := make([]any, 10)
	for i := range titles {
		titles[i] = map[string]any{"title": strings.Repeat("x", maxTitle)}
	}
	for _, use := range []struct {
		name, accepts       string
		email, notification bool
		samples             []map[string]any
	}{
		{Generic, "an optional action_url", true, true, []map[string]any{{}, {"action_url": action}}},
		{Plain, "title and an optional body and action_url", true, false, []map[string]any{{"title": "T"}, {"title": "T", "body": "B\n\nB", "action_url": action}}},
		{Digest, "count, more and items, 10 with a title of 200 bytes at most", false, true, []map[string]any{
			{"count": 2, "more": 0, "items": titles[:2]}, {"count": 11, "more": 1, "items": titles},
		}},
	} {
		t := set.templates[use.name]
		refuse := func(file string, err error) {
			l.report(file, 1, "the worker uses this template by itself, with no data but %s: %s", use.accepts, err)
		}
		for _, data := range use.samples {
			if err := t.check(data); err != nil {
				refuse(use.name+"/schema.json", err)
				continue
			}
			for locale := range t.locales {
				if err := set.tryUse(use.name, locale, use.email, use.notification, data); err != nil {
					refuse(t.firstFile(locale), err)
				}
			}
		}
	}
	for locale := range set.templates[Generic].locales {
		for i := range noteParts {
			l.has(Generic + "/" + locale + "/" + noteParts[i].file) // every channel falls back to it
		}
	}
}

func (s *Set) tryUse(name, locale string, email, notification bool, data map[string]any) error {
	if email {
		if _, err := s.Render(name, locale, data); err != nil {
			return err
		}
	}
	if notification {
		if _, err := s.RenderNotification(name, locale, data); err != nil {
			return err
		}
	}
	return nil
}
