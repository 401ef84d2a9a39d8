package rediskit

import (
	"context"
	"crypto/tls"
	"errors"
	"net"

	"github.com/redis/go-redis/v9"
)

// newClient makes the go-redis client of c.
func (c Config) newClient(tlsCfg *tls.Config) redis.UniversalClient {
	client := redis.NewUniversalClient(c.options(tlsCfg))
	if cluster, ok := client.(*redis.ClusterClient); ok {
		cluster.OnNewNode(func(node *redis.Client) { node.AddHook(reloadHook{cluster}) })
	}
	return client
}

// reloadHook asks the cluster who serves which slot as soon as a node does not
// answer. go-redis 9.23 asks only after a redirection, which a dead node cannot
// send, and once a minute: measured, callers were refused for 60 s although a
// replica had taken over after 4
// (https://github.com/redis/go-redis/issues/3979). go-redis asks at most five
// times a second, however many commands fail.
type reloadHook struct{ cluster *redis.ClusterClient }

func (h reloadHook) after(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil || errors.Is(err, redis.ErrClosed) {
		return
	}
	if _, reply := errors.AsType[redis.Error](err); !reply {
		h.cluster.ReloadState(ctx)
	}
}

// DialHook sees connections that could not be made, those of subscriptions too.
func (h reloadHook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := next(ctx, network, addr)
		h.after(ctx, err)
		return conn, err
	}
}

// ProcessHook sees a node that is connected and silent.
func (h reloadHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		h.after(ctx, err)
		return err
	}
}

// ProcessPipelineHook does the same for pipelines.
func (h reloadHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		h.after(ctx, err)
		return err
	}
}
