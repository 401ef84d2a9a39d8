// Package notifier is what the channels of a notification have in common; each lives
// in a package below: webhook, webpush, chat, sms. In-app delivery is package inbox,
// email goes through the email queue.
package notifier
