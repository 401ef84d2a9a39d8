// Package archtest holds the tests that keep the house in order: which package may import which, what a service
// that only enqueues has to compile, and how little main may do. It has no code of its own.
package archtest
