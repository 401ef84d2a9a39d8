package rediskit

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// silence happens once: go-redis has one logger for the whole process, and a
// program that set its own after the first Open must keep it.
var silence sync.Once

type logFunc func(string)

func (f logFunc) Printf(_ context.Context, format string, args ...any) {
	if f != nil {
		f(fmt.Sprintf(format, args...))
	}
}

func quiet() { silence.Do(func() { redis.SetLogger(logFunc(nil)) }) }

// logger is what LogTo was given, for what this package itself has to say.
var logger atomic.Pointer[logFunc]

// warn tells the function given to LogTo, if any.
func warn(message string) {
	if f := logger.Load(); f != nil && *f != nil {
		(*f)(message)
	}
}

// LogTo sends what go-redis logs (failed dials, changes of the master) and the
// warnings of [Open] to f, for the whole process, because go-redis has only one
// logger. Without it nothing is printed: a library does not write to standard
// error unasked, and the same failures come back as errors. nil silences again.
// f must be safe for concurrent use.
func LogTo(f func(message string)) {
	silence.Do(func() {}) // a later Open must not undo this choice
	logger.Store(new(logFunc(f)))
	redis.SetLogger(logFunc(f))
}
