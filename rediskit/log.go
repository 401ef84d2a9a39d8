package rediskit

import (
	"context"
	"fmt"
	"sync"

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

// LogTo sends what go-redis logs (failed dials, changes of the master) to f,
// for the whole process, because go-redis has only one logger. Without it
// nothing is printed: a library does not write to standard error unasked, and
// the same failures come back as errors. nil silences again. f must be safe for
// concurrent use.
func LogTo(f func(message string)) {
	silence.Do(func() {}) // a later Open must not undo this choice
	redis.SetLogger(logFunc(f))
}
