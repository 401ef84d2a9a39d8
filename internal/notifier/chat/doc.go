// Package chat delivers notifications to chats: the incoming webhooks of Slack, Microsoft
// Teams (Workflows) and Discord, and any service that takes a plain JSON object.
//
// Invariants:
//
//   - Text stays text. It mentions nobody, rings for nobody and formats nothing, whatever
//     is in it; each service has its own way to say so. The link is the only one.
//   - A chat is named by the id of an endpoint: its URL is its credential.
//   - A chat that says that it does not exist any more has its endpoint disabled.
//   - These services know no second copy from a first: an answer that is lost leaves it
//     unknown whether the message is there.
package chat
