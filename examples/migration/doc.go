// Package migration holds the right-hand column of the table in
// docs/guide-services.md as tests: every new call is compiled, run against a
// real Redis, and compared with the page.
package migration
