package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/medicalink/postroom/config"
)

// aclUser is what one kind of program must be allowed to do in Redis, and no
// more. The tests run each program under its rules.
type aclUser struct {
	User     string   `json:"user"`
	For      string   `json:"for"`
	Keys     []string `json:"keys,omitempty"`     // patterns
	Channels []string `json:"channels,omitempty"` // patterns
	Commands []string `json:"commands"`           // CLIENT SETNAME is client|setname
	Rule     string   `json:"rule"`               // a line of an ACL file, and the arguments of ACL SETUSER without its first word
}

// aclPassword stands for the password, which ACL files can hold hashed (#…).
const aclPassword = ">PASSWORD"

// aclUsers lists the users for a set-up. service is the name of a service that
// hands in jobs or keeps its own keys in Redis.
func aclUsers(cfg config.Config, service string) []aclUser {
	space, ofSpace := "", "" // in front of a name, and behind one
	if cfg.Namespace != "" {
		space, ofSpace = cfg.Namespace+":", ":"+cfg.Namespace
	}
	// Queue names are hash tags.
	queues := func(patterns ...string) []string {
		var keys []string
		for _, kind := range []string{"email", "notification"} {
			for _, pattern := range patterns {
				keys = append(keys, strings.Replace(pattern, "{}", "{"+space+kind+":*}", 1))
			}
		}
		return keys
	}
	wake := []string{"postroom:wake:{}*", "postroom:due:{}"} // package wake
	ofUsers := cfg.Namespace + ":*"                          // the colon is there without a namespace too
	inbox, inboxes := "postroom:inbox:{"+ofUsers, "postroom:inbox"+ofSpace
	push := []string{"postroom:push:{" + ofUsers, "postroom:push:endpoint:{" + ofUsers}
	preferences := "postroom:preferences:{" + ofUsers
	own := []string{"client|setname", "info", "ping"}
	if cfg.Redis.DB != 0 {
		own = append(own, "select")
	}
	if cfg.Redis.Cluster {
		own = append(own, "asking", "cluster|slots", "command")
	}
	// What asynqmon reads; reading a queue's statistics drops old entries.
	look := []string{
		"eval", "evalsha", "exists", "get", "hget", "hmget", "hvals", "llen", "lrange", "memory|usage", "sismember", "smembers", "zcard", "zrange",
		"zrangebyscore", "zremrangebyscore",
	}
	users := []aclUser{
		{
			User: service + "-producer", For: "a service that hands in jobs (package tasks, enqueue)",
			Keys: slices.Concat([]string{"asynq:queues"},
				queues("asynq:{}:t:*", "asynq:{}:pending", "asynq:{}:scheduled"), queues(wake...),
				[]string{"postroom:idempotency:{" + cfg.Namespace + ":" + service + ":*"}),
			Commands: []string{"eval", "evalsha", "exists", "get", "hset", "lpush", "rpush", "sadd", "set", "time", "zadd"},
		},
		{
			User: "postroom-worker", For: "worker run, its dashboard included, worker webhook and worker chat",
			Keys: slices.Concat(
				[]string{"asynq:queues", "asynq:servers", "asynq:servers:*", "asynq:workers", "asynq:workers:*", "asynq:schedulers"},
				queues("asynq:{}:*", "postroom:wake:{}*", "postroom:due:{}*", "postroom:gate:{}", "postroom:pause:{}"),
				[]string{
					"postroom:job:*", "postroom:worker:*", "postroom:rescue", "postroom:expired", "postroom:audit", "postroom:delivered:*",
					inbox, preferences, "postroom:digest:{" + ofUsers,
					"postroom:endpoint:{" + space + "*", "postroom:endpoints:" + cfg.Namespace, "postroom:webhook:{" + space + "*",
				}, push),
			Channels: []string{"asynq:cancel", inboxes},
			Commands: append(slices.Clone(look),
				"blpop", "client|id", "client|unblock", "del", "expire", "expireat", "hdel", "hexists", "hgetall", "hincrby", "hset", "incr", "incrby",
				"lpop", "lpush", "lrem", "ltrim", "pexpire", "pexpireat", "pttl", "rpop", "rpoplpush", "rpush", "sadd", "set", "setex",
				"subscribe", "time", "zadd", "zcount", "zrem", "zscore",
				// Notifications.
				"hkeys", "hsetnx", "publish", "scard", "srem", "xadd", "xdel", "xlen", "xrange", "xrevrange", "xtrim", "zremrangebyrank"),
		},
		{
			User: "postroom-dashboard", For: "worker monitor",
			Keys: append([]string{
				"asynq:queues", "asynq:servers", "asynq:servers:*", "asynq:workers", "asynq:workers:*", "asynq:schedulers", "asynq:schedulers:*",
			}, queues("asynq:{}:*")...),
			Commands: look,
		},
		{
			User: service + "-realtime", For: "a service that shows users their notifications (packages realtime and preferences)",
			Keys: append([]string{inbox, preferences}, push...), Channels: []string{inboxes},
			Commands: []string{
				"del", "eval", "evalsha", "get", "hdel", "hget", "hgetall", "hset", "pexpire", "publish", "set", "subscribe", "time", "unsubscribe",
				"xrange", "xrevrange", "zadd", "zcard", "zrange", "zrem", "zscore",
			},
		},
		{
			User: service, For: "a service's own keys (rediskit: cache, pubsub, ratelimit, session)",
			Keys: []string{service + ":*"}, Channels: []string{service + ":*"},
			Commands: []string{
				"del", "eval", "evalsha", "get", "hdel", "hexists", "hget", "hgetall", "hset", "lindex", "llen", "lrange", "ltrim", "mget", "pexpire",
				"psubscribe", "pttl", "publish", "punsubscribe", "rpop", "rpush", "set", "subscribe", "time", "unsubscribe",
			},
		},
	}
	for i := range users {
		u := &users[i]
		u.Commands = append(u.Commands, own...)
		slices.Sort(u.Commands)
		u.Rule = u.rule()
	}
	return users
}

func (u aclUser) rule() string {
	words := []string{"user", u.User, "on", aclPassword, "resetkeys", "resetchannels", "-@all"}
	for _, list := range []struct {
		sign  string
		words []string
	}{{"~", u.Keys}, {"&", u.Channels}, {"+", u.Commands}} {
		for _, word := range list.words {
			words = append(words, list.sign+word)
		}
	}
	return strings.Join(words, " ")
}

// aclService is the service that the settings name; the worker's own default
// name is no service's.
func aclService(cfg config.Config) string {
	i := slices.IndexFunc(cfg.Settings(), func(s config.Setting) bool {
		return s.Name == "SERVICE_NAME" && s.Source != config.SourceDefault
	})
	if i < 0 {
		return "SERVICE"
	}
	return cmp.Or(cfg.Service, "SERVICE")
}

func writeACL(w io.Writer, users []aclUser) error {
	var b strings.Builder
	b.WriteString("# Users with the least that each program needs. Put your own password or its SHA-256\n" +
		"# (#…) in the place of " + aclPassword + ". A service that hands in jobs and keeps keys of its own in\n" +
		"# the same Redis gets both users. A subscription by pattern needs its pattern, exactly\n" +
		"# as it is, among the channels: &SERVICE:orders:*; so does another service's channel.\n")
	for _, u := range users {
		fmt.Fprintf(&b, "\n# %s\n%s\n", u.For, u.Rule)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write ACL rules: %w", err)
	}
	return nil
}
