package tasks

import (
	"encoding/json"
	"time"
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
	// MaxNotificationData bounds Data as JSON: a push message has 4 KiB in all.
	MaxNotificationData = 8 << 10
	// MaxSteps bounds the steps of a plan.
	MaxSteps = 6
	// MaxStepDelay bounds After: push services keep a message for 28 days at most.
	MaxStepDelay = 28 * day
	// MaxDigestWindow and MaxDigestItems bound a digest.
	MaxDigestWindow = 7 * day
	MaxDigestItems  = 200
	// MaxDedupeFor bounds how long a dedupe key is remembered.
	MaxDedupeFor = 7 * day
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

// A Condition is what has to hold when the delay of a step is over.
type Condition string

// The conditions.
const (
	// Always is the default.
	Always Condition = ""
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
	// OnlyIf is what has to hold then. It needs an After: at once, nobody has read
	// anything.
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
	// Key names what is gathered, for each user: messages, appointments. 1 to 128
	// printable characters.
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
	// Template is the name of a notification template that the workers have.
	Template string `json:"template,omitempty"`
	// Locale is a BCP 47 tag; empty leaves it to the user's preferences.
	Locale string `json:"locale,omitempty"`
	// Data fills the template, and is as that of Email; at most 8 KiB of JSON.
	Data map[string]any `json:"data,omitempty"`
	// Action is where a click leads: a path of the app that begins with /, or an https
	// URL on a host that the workers allow. At most 2,048 bytes.
	Action string `json:"action,omitempty"`
	// Channels are used at once. Give these, or a Plan; without both the channel is
	// in_app.
	Channels []Channel `json:"channels,omitempty"`
	// Plan is at most 6 steps, in the order of their delays.
	Plan []Step `json:"plan,omitempty"`
	// Email is the address of the user, for that channel; its form is that of Email.To.
	Email string `json:"email,omitempty"`
	// Phone is the number of the user in international form (E.164), such as
	// +4930123456, for the channel sms.
	Phone string `json:"phone,omitempty"`
	// Webhook and Chat are ids in the registries of the workers, for these channels.
	Webhook string `json:"webhook,omitempty"`
	Chat    string `json:"chat,omitempty"`
	// Category is what the user can switch off per channel: 1 to 64 lower-case letters,
	// digits, - and _. Empty takes the first word of Kind.
	Category string `json:"category,omitempty"`
	// Critical says why this notification overrides preferences and quiet hours. Each
	// such override is recorded with it. Printable, at most 200 bytes.
	Critical string `json:"critical,omitempty"`
	// Quiet is the rule for quiet hours; empty means defer.
	Quiet QuietRule `json:"quiet,omitempty"`
	// Digest gathers this notification with others of the same key.
	Digest *Digest `json:"digest,omitempty"`
	// Collapse makes the newest notification of the same user and key replace what has
	// not been read or delivered of the older ones. Printable, at most 64 bytes.
	Collapse string `json:"collapse,omitempty"`
	// Dedupe drops this notification if one of the same user and key was delivered
	// within DedupeFor before: 1 to 128 printable characters; at most 7 days, the
	// default is 24 hours.
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

// A Delivery is the job that a worker makes of one step of a notification's plan. It
// holds what the channel shows and nothing else. Services do not enqueue deliveries.
type Delivery struct {
	// V is the payload's version. A producer leaves it zero.
	V int `json:"v"`
	// Notification is the id of the job that this one comes from, a UUID.
	Notification string `json:"notification"`
	// Step is the step's position in the plan, from 0. With Notification, Target and
	// Replay it makes the id of the job.
	Step int `json:"step"`
	// Channel is the channel of the step.
	Channel Channel `json:"channel"`
	// Target is one of several targets of the channel, such as one push subscription
	// of the user. Empty: all that there are.
	Target string `json:"target,omitempty"`
	// Replay tells deliveries apart that an operator asked for again.
	Replay string `json:"replay,omitempty"`

	// What follows is as in Notification, the text as the channel shows it.

	Kind     string    `json:"kind"`
	User     string    `json:"user"`
	Title    string    `json:"title,omitempty"`
	Body     string    `json:"body,omitempty"`
	Action   string    `json:"action,omitempty"`
	Category string    `json:"category"`
	Critical string    `json:"critical,omitempty"`
	Quiet    QuietRule `json:"quiet,omitempty"`
	Collapse string    `json:"collapse,omitempty"`
	OnlyIf   Condition `json:"only_if,omitempty"`

	// Payload is the body of a webhook.
	Payload json.RawMessage `json:"payload,omitempty"`
	// Mail is the job to hand to the email queue.
	Mail *Email `json:"mail,omitempty"`
	// Created is when the notification was enqueued.
	Created time.Time `json:"created"`
	Class   Class     `json:"class,omitempty"`
}

// A DigestClose is the job that ends the window of a digest.
type DigestClose struct {
	// V is the payload's version. A producer leaves it zero.
	V int `json:"v"`
	// User and Key name the digest, Generation the window.
	User       string `json:"user"`
	Key        string `json:"key"`
	Generation int64  `json:"generation"`
	// Full marks the job that ends the window because Max was reached.
	Full bool `json:"full,omitempty"`
}

// A Duration is a time.Duration that is a text such as "10m" in JSON.
type Duration time.Duration
