package testenv

import "go.uber.org/goleak"

// IgnorePools lets a leak test pass over the pools of Redis clients whose server
// was killed: each looks for it once a second, and ends up to a second after it
// was closed.
func IgnorePools() goleak.Option {
	return goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial")
}
