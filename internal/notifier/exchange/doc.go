// Package exchange makes one request over HTTP for a channel and says how to go on
// after it, for what every service answers in the same way.
//
// Nothing is repeated here: the queue repeats. What is read of an answer is bounded, and
// no error holds a word of it, or of the URL.
package exchange
