package tasks

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The asynq types of the jobs of notifications.
const (
	// TypeNotification is a notification as a service hands it in.
	TypeNotification = "notification:send"
	// TypeDelivery is one step of its plan, which a worker makes of it.
	TypeDelivery = "notification:deliver"
	// TypeDigest closes a digest when its window is over, and delivers it.
	TypeDigest = "notification:digest"
)

// Limits of a notification job.
const (
	// MaxNotificationBytes bounds the payload that a worker reads. The limits of the
	// fields keep what a producer writes well below it.
	MaxNotificationBytes = 64 << 10
	// MaxNotificationTitle and MaxNotificationBody bound the text, in bytes. A worker
	// keeps to them when it renders a template.
	MaxNotificationTitle = 200
	MaxNotificationBody  = 4 << 10
	// MaxNotificationData bounds Data as JSON: a push message has 4 KiB in all.
	MaxNotificationData = 8 << 10
	// MaxAction bounds an action, in bytes.
	MaxAction = 2048
	// MaxSteps bounds the steps of a plan.
	MaxSteps = 6
	// MaxStepDelay bounds After: push services keep a message for 28 days at most.
	MaxStepDelay = 28 * day
	// MaxDigestWindow and MaxDigestItems bound a digest.
	MaxDigestWindow = 7 * day
	MaxDigestItems  = 200
	// MaxDedupeFor bounds how long a dedupe key is remembered, DefaultDedupeFor is
	// how long it is if the job does not say it.
	MaxDedupeFor     = 7 * day
	DefaultDedupeFor = 24 * time.Hour
)

// A Channel is a way to reach a user or a system.
type Channel string

// The channels.
const (
	// ChannelInApp is the user's inbox in the platform's own pages, in real time.
	ChannelInApp Channel = "in_app"
	// ChannelPush is Web Push to every browser that the user subscribed with.
	ChannelPush Channel = "push"
	// ChannelEmail is an email to Notification.Email.
	ChannelEmail Channel = "email"
	// ChannelSMS is a text message to Notification.Phone.
	ChannelSMS Channel = "sms"
	// ChannelChat is a message to the chat named by Notification.Chat.
	ChannelChat Channel = "chat"
	// ChannelWebhook is a call of the endpoint named by Notification.Webhook.
	ChannelWebhook Channel = "webhook"
)

// A Condition is what has to hold when the delay of a step is over. The empty one is
// OnlyIfUnread for the channels that reach the user, if the notification is in the app
// too, and Always for webhook and chat.
type Condition string

// The conditions.
const (
	// Always carries the step out in any case.
	Always Condition = "always"
	// OnlyIfUnread skips the step if the user has read the notification in the app.
	OnlyIfUnread Condition = "unread"
	// OnlyIfUnsent skips the step if an earlier step has been delivered.
	OnlyIfUnsent Condition = "unsent"
)

// A Step is one part of a plan.
type Step struct {
	// Channel is the way to go.
	Channel Channel `json:"channel"`
	// After is how long to wait, counted from the time at which the job may run; in
	// JSON a duration such as "10m". At most 28 days.
	After Duration `json:"after,omitempty"`
	// OnlyIf is what has to hold then. OnlyIfUnread and OnlyIfUnsent need an After: at
	// once, nobody has read anything. OnlyIfUnread also needs a step with in_app before,
	// and OnlyIfUnsent any step before.
	OnlyIf Condition `json:"only_if,omitempty"`
}

// A Sensitivity says what may be seen of a notification outside the app: on a locked
// screen, in a mailbox, in a chat.
type Sensitivity string

// The sensitivities.
const (
	// SensitivityHealth lets nothing be seen but that there is something to read. It
	// is the default.
	SensitivityHealth Sensitivity = "health"
	// SensitivityPersonal and SensitivityNone let title and text be seen.
	SensitivityPersonal Sensitivity = "personal"
	SensitivityNone     Sensitivity = "none"
)

// A QuietRule says what becomes of a step that would disturb the user in quiet hours.
type QuietRule string

// The rules for quiet hours. They hold for push, email and SMS.
const (
	// QuietDefer waits for the end of the quiet hours. It is the default.
	QuietDefer QuietRule = "defer"
	// QuietDrop leaves the step out.
	QuietDrop QuietRule = "drop"
	// QuietIgnore delivers nevertheless.
	QuietIgnore QuietRule = "ignore"
)

// A Digest gathers notifications and delivers them as one.
type Digest struct {
	// Key names what is gathered, for each user: messages, appointments. Printable, 1
	// to 128 bytes.
	Key string `json:"key"`
	// Window is how long is gathered, from the first notification on: more than zero,
	// 7 days at most.
	Window Duration `json:"window"`
	// Max ends the window early when that many have gathered: at most 200, the
	// default.
	Max int `json:"max,omitempty"`
}

// A Notification tells one user, or one system, of one event, over the channels of its
// plan. Its text comes either from Template with Data, or from Title and Body.
type Notification struct {
	// V is the payload's version. A producer leaves it zero.
	V int `json:"v"`
	// Kind is what happened, in two or more words with dots: lab.result.ready. At most
	// 96 lower-case letters, digits, - and _. It is the event type of webhooks.
	Kind string `json:"kind"`
	// User is the id of the user, as the platform knows it; never an address. 1 to 128
	// letters, digits and any of ._:- beginning with a letter or digit.
	User string `json:"user"`
	// Title is one line, at most 200 bytes. Body is plain text, at most 4 KiB.
	Title string `json:"title,omitempty"`
	Body  string `json:"body,omitempty"`
	// Template is the name of a notification template that the workers have; it excludes
	// Title and Body.
	Template string `json:"template,omitempty"`
	// Locale is a BCP 47 tag; empty leaves it to the user's preferences.
	Locale string `json:"locale,omitempty"`
	// Data fills the template, and is as that of Email; at most 8 KiB of JSON.
	Data map[string]any `json:"data,omitempty"`
	// Action is where a click leads: a path of the app that begins with one /, or an
	// https URL on a host that the workers allow, with special characters percent-escaped.
	// At most 2,048 bytes.
	Action string `json:"action,omitempty"`
	// Channels are used at once. Give these, or a Plan; without both the channel is
	// in_app.
	Channels []Channel `json:"channels,omitempty"`
	// Plan is at most 6 different steps, in the order of their delays.
	Plan []Step `json:"plan,omitempty"`
	// Email is the address of the user, for that channel; its form is that of Email.To.
	// It and the next three are required for their channels, and refused without: what
	// nobody needs is not kept.
	Email string `json:"email,omitempty"`
	// Phone is the number of the user in international form (E.164: + and 7 to 15
	// digits), such as +4930123456, for the channel sms.
	Phone string `json:"phone,omitempty"`
	// Webhook and Chat are ids in the registries of the workers, for these channels:
	// 1 to 64 lower-case letters, digits, - and _, beginning with a letter or digit.
	Webhook string `json:"webhook,omitempty"`
	Chat    string `json:"chat,omitempty"`
	// Category is what the user can switch off per channel: 1 to 64 lower-case letters,
	// digits, - and _. Empty takes the first word of Kind, as DecodeNotification does.
	Category string `json:"category,omitempty"`
	// Critical says why this notification overrides preferences and quiet hours. Each
	// such override is recorded with it. Printable, at most 200 bytes.
	Critical string `json:"critical,omitempty"`
	// Quiet is the rule for quiet hours; empty means defer.
	Quiet QuietRule `json:"quiet,omitempty"`
	// Digest gathers this notification with others of the same key. It excludes Collapse.
	Digest *Digest `json:"digest,omitempty"`
	// Collapse makes the newest notification of the same user and key replace what has
	// not been read or delivered of the older ones. Printable, at most 64 bytes.
	Collapse string `json:"collapse,omitempty"`
	// Dedupe drops this notification if one of the same user and key was delivered
	// within DedupeFor before: printable, at most 128 bytes; at most 7 days, the default
	// is 24 hours.
	Dedupe    string   `json:"dedupe,omitempty"`
	DedupeFor Duration `json:"dedupe_for,omitempty"`
	// Sensitivity says what may be seen outside the app. Empty means health.
	Sensitivity Sensitivity `json:"sensitivity,omitempty"`
	// Tags are as those of Email.
	Tags []string `json:"tags,omitempty"`
	// Class sets the treatment, as that of Email. Empty means ClassTransactional;
	// ClassBulk needs no unsubscribe header here, because preferences do its work.
	Class Class `json:"class,omitempty"`
}

// Steps returns the plan, or that which Channels stand for.
func (n Notification) Steps() []Step {
	if len(n.Plan) > 0 {
		return n.Plan
	}
	if len(n.Channels) == 0 {
		return []Step{{Channel: ChannelInApp}}
	}
	steps := make([]Step, len(n.Channels))
	for i, c := range n.Channels {
		steps[i].Channel = c
	}
	return steps
}

// category returns Category or its default.
func (n Notification) category() string {
	if n.Category != "" {
		return n.Category
	}
	first, _, _ := strings.Cut(n.Kind, ".")
	return first
}

// Validate reports everything that is wrong with n, as Email's Validate does.
func (n Notification) Validate() error {
	var p problems
	p.kind(n.Kind)
	p.user(n.User)
	switch hasText := n.Title != "" || n.Body != ""; {
	case n.Template != "" && hasText:
		p.add("template", "cannot be combined with title or body: give one or the other")
	case n.Template == "" && strings.TrimSpace(n.Title) == "":
		p.add("title", "is missing: give a template, or a title")
	}
	if n.Template != "" {
		p.id("template", n.Template)
	}
	p.text(n.Title, n.Body)
	p.locale(n.Locale)
	p.data(n.Data)
	p.action(n.Action)
	p.plan(n)
	p.addressees(n)
	switch {
	case n.Category != "":
		p.category(n.Category)
	case len(n.category()) > maxCategory:
		p.add("category", "is required for a kind whose first word has more than %d characters", maxCategory)
	}
	p.printable("critical", n.Critical, 200)
	p.quiet(n.Quiet)
	p.digest(n)
	p.printable("collapse", n.Collapse, 64)
	p.printable("dedupe", n.Dedupe, 128)
	switch {
	case n.DedupeFor != 0 && n.Dedupe == "":
		p.add("dedupe_for", "needs a dedupe key")
	case n.DedupeFor < 0 || time.Duration(n.DedupeFor) > MaxDedupeFor:
		p.add("dedupe_for", "must be more than zero, and at most %d hours", MaxDedupeFor/time.Hour)
	}
	switch n.Sensitivity {
	case "", SensitivityHealth, SensitivityPersonal, SensitivityNone:
	default:
		p.add("sensitivity", "must be %s, %s or %s", SensitivityHealth, SensitivityPersonal, SensitivityNone)
	}
	p.tags(n.Tags)
	p.class(n.Class)
	p.version(n.V)
	return errors.Join(p...)
}

const maxCategory = 64

var (
	kindName     = regexp.MustCompile(`^[a-z0-9_-]+(\.[a-z0-9_-]+)+$`)
	userID       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$`)
	categoryName = regexp.MustCompile(`^[a-z0-9_-]{1,64}$`)
	phoneNumber  = regexp.MustCompile(`^\+[1-9][0-9]{6,14}$`)
	// An encoded slash or backslash is a separator to some servers and not to others.
	escapedSlash = regexp.MustCompile(`(?i)%(2f|5c)`)
)

func (p *problems) kind(kind string) {
	if len(kind) > 96 || !kindName.MatchString(kind) {
		p.add("kind", "must be two or more words of lower-case letters, digits, - and _ with dots between, such as lab.result.ready, at most 96 characters")
	}
}

func (p *problems) user(id string) {
	if !userID.MatchString(id) {
		p.add("user", "must be an id of letters, digits and ._:- that begins with a letter or digit, at most 128 characters; it is no address")
	}
}

func (p *problems) text(title, body string) {
	p.headerText("title", title, MaxNotificationTitle)
	switch {
	case !utf8.ValidString(body):
		p.add("body", "is not valid UTF-8")
	case strings.ContainsFunc(body, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }):
		p.add("body", "must not contain control characters but line feeds and tabs")
	}
	if len(body) > MaxNotificationBody {
		p.add("body", "has %d bytes, the limit is %d", len(body), MaxNotificationBody)
	}
}

func (p *problems) data(data map[string]any) {
	if len(data) == 0 {
		return
	}
	encoded, err := appendJSON(nil, data)
	if err != nil {
		// The encoder's own text may quote a value.
		p.add("data", "%s", notJSON)
	} else if len(encoded) > MaxNotificationData {
		p.add("data", "has %d bytes of JSON, the limit is %d", len(encoded), MaxNotificationData)
	}
}

// action checks where a click leads. What two programs could read as two places is
// refused: //host, which leaves the app; a backslash, which browsers take for a slash;
// a tab or a line break, which they leave out; dots that climb.
func (p *problems) action(action string) {
	const field = "action"
	if action == "" {
		return
	}
	if len(action) > MaxAction {
		p.add(field, "has %d bytes, the limit is %d", len(action), MaxAction)
		return
	}
	u, err := url.Parse(action)
	switch {
	case err != nil, strings.ContainsFunc(action, isUnescaped):
	case strings.HasPrefix(action, "/"):
		if u.Host == "" && !strings.HasPrefix(action, "//") && !climbs(u) {
			return
		}
	case strings.HasPrefix(action, "https://"):
		if u.User == nil && plausibleHost(u.Hostname()) && !climbs(u) {
			return
		}
	}
	p.add(field, "must be a path of the app that begins with one /, or an https URL without a user, both without .. and with special characters percent-escaped")
}

// climbs reports a path that does not lead where it seems to.
func climbs(u *url.URL) bool {
	if escapedSlash.MatchString(u.EscapedPath()) || strings.ContainsFunc(u.Path, isControl) {
		return true
	}
	for part := range strings.SplitSeq(u.Path, "/") {
		part, _, _ = strings.Cut(part, ";") // the parameters of RFC 3986 §3.3
		if part == "." || part == ".." {
			return true
		}
	}
	return false
}

func (p *problems) channel(field string, c Channel) {
	switch c {
	case ChannelInApp, ChannelPush, ChannelEmail, ChannelSMS, ChannelChat, ChannelWebhook:
	default:
		p.add(field, "must be %s, %s, %s, %s, %s or %s", ChannelInApp, ChannelPush, ChannelEmail, ChannelSMS, ChannelChat, ChannelWebhook)
	}
}

func (p *problems) condition(field string, c Condition) {
	switch c {
	case "", Always, OnlyIfUnread, OnlyIfUnsent:
	default:
		p.add(field, "must be %s, %s or %s, or be left out", OnlyIfUnread, OnlyIfUnsent, Always)
	}
}

// plan checks channels and plan.
func (p *problems) plan(n Notification) {
	if len(n.Channels) > 0 && len(n.Plan) > 0 {
		p.add("plan", "cannot be combined with channels: give one or the other")
	}
	for i, c := range n.Channels {
		field := fmt.Sprintf("channels[%d]", i)
		p.channel(field, c)
		if slices.Index(n.Channels, c) < i {
			p.add(field, "is given twice")
		}
	}
	if len(n.Plan) > MaxSteps {
		p.add("plan", "has %d steps, the limit is %d", len(n.Plan), MaxSteps)
	}
	inApp := false
	for i, step := range n.Plan {
		field := func(name string) string { return fmt.Sprintf("plan[%d].%s", i, name) }
		p.channel(field("channel"), step.Channel)
		if slices.Index(n.Plan, step) < i {
			p.add(fmt.Sprintf("plan[%d]", i), "repeats an earlier step")
		}
		switch after := time.Duration(step.After); {
		case after < 0 || after > MaxStepDelay:
			p.add(field("after"), "must not be negative, and be at most %d hours", MaxStepDelay/time.Hour)
		case i > 0 && step.After < n.Plan[i-1].After:
			p.add(field("after"), "is less than that of the step before: give the steps in the order of their delays")
		}
		p.condition(field("only_if"), step.OnlyIf)
		switch {
		case step.OnlyIf == "" || step.OnlyIf == Always:
		case step.After == 0:
			p.add(field("only_if"), "needs an after: at once, nobody has read anything")
		case step.OnlyIf == OnlyIfUnread && !inApp:
			p.add(field("only_if"), "needs a step with the channel %s before: nothing else tells what was read", ChannelInApp)
		case i == 0:
			p.add(field("only_if"), "needs a step before")
		}
		inApp = inApp || step.Channel == ChannelInApp
	}
}

// addressees checks what the channels of n need.
func (p *problems) addressees(n Notification) {
	steps := n.Steps()
	for _, a := range []struct {
		channel      Channel
		field, value string
		check        func(field, value string)
	}{
		{ChannelEmail, "email", n.Email, p.address},
		{ChannelSMS, "phone", n.Phone, p.phone},
		{ChannelWebhook, "webhook", n.Webhook, p.id},
		{ChannelChat, "chat", n.Chat, p.id},
	} {
		needed := slices.ContainsFunc(steps, func(s Step) bool { return s.Channel == a.channel })
		switch {
		case needed && a.value == "":
			p.add(a.field, "is required for the channel %s", a.channel)
		case needed:
			a.check(a.field, a.value)
		case a.value != "":
			p.add(a.field, "must be left out without the channel %s: what nobody needs is not kept", a.channel)
		}
	}
}

func (p *problems) phone(field, number string) {
	if !phoneNumber.MatchString(number) {
		p.add(field, "must be + and 7 to 15 digits, the first of them not 0 (E.164)")
	}
}

func (p *problems) category(name string) {
	if !categoryName.MatchString(name) {
		p.add("category", "must be lower-case letters, digits, - and _, at most %d", maxCategory)
	}
}

func (p *problems) quiet(rule QuietRule) {
	switch rule {
	case "", QuietDefer, QuietDrop, QuietIgnore:
	default:
		p.add("quiet", "must be %s, %s or %s", QuietDefer, QuietDrop, QuietIgnore)
	}
}

func (p *problems) digest(n Notification) {
	d := n.Digest
	if d == nil {
		return
	}
	p.required("digest.key", d.Key, 128)
	if d.Window <= 0 || time.Duration(d.Window) > MaxDigestWindow {
		p.add("digest.window", "must be more than zero, and at most %d hours", MaxDigestWindow/time.Hour)
	}
	if d.Max < 0 || d.Max > MaxDigestItems {
		p.add("digest.max", "must be at most %d, or be left out", MaxDigestItems)
	}
	if n.Collapse != "" {
		p.add("collapse", "cannot be combined with a digest, which gathers what collapse would replace")
	}
}

// printable checks one line of text that may be left out.
func (p *problems) printable(field, value string, limit int) {
	if value != "" {
		p.required(field, value, limit)
	}
}

func (p *problems) required(field, value string, limit int) {
	if strings.TrimSpace(value) == "" {
		p.add(field, "is empty")
	}
	p.headerText(field, value, limit)
}

// encode returns the payload of n, which must have passed Validate.
func (n Notification) encode() ([]byte, error) {
	n.V = Version
	payload, err := appendJSON(make([]byte, 0, 512), n)
	if err != nil {
		return nil, &ValidationError{Field: "data", Problem: notJSON}
	}
	return payload, nil
}

// DecodeNotification returns the job in a payload, with its defaults filled in: those
// of Class, Category, Quiet, Sensitivity, DedupeFor and Digest.Max. The rules are
// those of DecodeEmail.
func DecodeNotification(payload []byte) (Notification, error) {
	var n Notification
	if err := decode(payload, MaxNotificationBytes, &n, &n.V); err != nil {
		return Notification{}, &DecodeError{Job: jobNotification.noun(), Err: err}
	}
	plainNumbers(n.Data)
	if err := n.Validate(); err != nil {
		return Notification{}, &DecodeError{Job: jobNotification.noun(), Err: err}
	}
	n.Category = n.category()
	if n.Class == "" {
		n.Class = ClassTransactional
	}
	if n.Quiet == "" {
		n.Quiet = QuietDefer
	}
	if n.Sensitivity == "" {
		n.Sensitivity = SensitivityHealth
	}
	if n.Dedupe != "" && n.DedupeFor == 0 {
		n.DedupeFor = Duration(DefaultDedupeFor)
	}
	if n.Digest != nil && n.Digest.Max == 0 {
		n.Digest.Max = MaxDigestItems
	}
	return n, nil
}
