// Package templates holds postroom's templates of emails and notifications and
// renders them.
//
// A template is a folder with a JSON Schema of its data, a sample, and per
// locale the parts of an email (a subject, an HTML body and a text body of its
// own), those of a notification (title and message for the app, texts for push,
// chat and SMS), or both. [Load] reads the embedded templates and a directory
// laid over them, checks everything, and returns one [Set] that never changes.
// A template that could fail in production fails there: README.md beside this
// file lists the checks and says how to add a template or a locale.
//
// What a Set promises, whatever the data:
//
//   - HTML is escaped by html/template. No function of the templates turns data
//     into markup, and data that claims to be safe (template.HTML) is refused.
//   - Links from data are http or https.
//   - A subject or title is one line. A line break in a field that one shows is
//     an error, never a header.
//   - A field the schema marks private does not show on a locked screen: not in a
//     subject or in the preview line of an inbox, not in the text for push, chat
//     or SMS.
//   - A field the schema marks phi, protected health information, is private, and
//     is not in the data of a webhook either. Nor does any of these depend on it.
//   - The data of a webhook is one JSON object, whose structure is the template's.
//   - Errors name template and field, never a value, and are permanent.
//   - The same data gives the same bytes: nothing depends on the clock, the zone
//     or the language of the server.
package templates
