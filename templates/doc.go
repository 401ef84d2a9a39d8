// Package templates holds postroom's email templates and renders them.
//
// A template is a folder with a JSON Schema of its data, a sample, and per
// locale a subject, an HTML body and a text body of its own. [Load] reads the
// embedded templates and a directory laid over them, checks everything, and
// returns one [Set] that never changes. A template that could fail in
// production fails there: README.md beside this file lists the checks and says
// how to add a template or a locale.
//
// What a Set promises, whatever the data:
//
//   - HTML is escaped by html/template. No function of the templates turns data
//     into markup, and data that claims to be safe (template.HTML) is refused.
//   - Links from data are http or https.
//   - A subject is one line. A line break in a field that a subject shows is an
//     error, never a header.
//   - A field the schema marks private does not appear in a subject or in the
//     preview line of an inbox.
//   - Errors name template and field, never a value, and are permanent.
//   - The same data gives the same bytes: nothing depends on the clock, the zone
//     or the language of the server.
package templates
