package config

import (
	"math"
	"net"
	"slices"
	"strings"

	"github.com/medicalink/postroom/rediskit"
)

// redis puts the Redis of the queues together. The three ways to say where it
// is exclude each other; what they leave open comes from the other variables.
func (r *reader) redis() rediskit.Config {
	raw := r.text("REDIS_URL")
	host, port := r.text("REDIS_HOST"), r.text("REDIS_PORT")
	sentinels, master := r.text("REDIS_SENTINELS"), r.text("REDIS_MASTER_NAME")
	cluster := r.text("REDIS_CLUSTER")
	username, password := r.text("REDIS_USERNAME"), r.text("REDIS_PASSWORD")
	useTLS := r.boolean("REDIS_TLS")
	db := r.number("REDIS_DB", 0, math.MaxInt32)
	fromKubernetes := strings.Contains(port, "://")

	ways := slices.DeleteFunc([]string{"REDIS_URL", "REDIS_SENTINELS", "REDIS_CLUSTER"}, func(name string) bool { return !r.isSet(name) })
	if r.isSet("REDIS_HOST") || len(ways) > 0 && r.isSet("REDIS_PORT") && !fromKubernetes {
		ways = append(ways, "REDIS_HOST and REDIS_PORT")
	}
	if len(ways) > 1 {
		r.problem(ways[0], r.settings[ways[0]].Source, "", "is set, and so is "+strings.Join(ways[1:], ", and ")+": say in one way where Redis is")
		return rediskit.Config{}
	}

	cfg := rediskit.Config{TLS: useTLS, DB: db}
	switch {
	case raw != "":
		parsed, err := rediskit.ParseURL(raw)
		if err != nil {
			r.wrong("REDIS_URL", problemText(err))
			return rediskit.Config{}
		}
		cfg = parsed
		r.agreeWithURL(cfg, useTLS, db)
		r.unused("REDIS_TLS", "REDIS_DB")
	case sentinels != "":
		cfg.Addrs, cfg.Master = r.addresses("REDIS_SENTINELS"), master
		if master == "" {
			r.problem("REDIS_MASTER_NAME", SourceDefault, "", "is not set: REDIS_SENTINELS needs the name of the master that they watch")
			return rediskit.Config{}
		}
	case cluster != "":
		cfg.Addrs, cfg.Cluster = r.addresses("REDIS_CLUSTER"), true
	case fromKubernetes:
		r.wrong("REDIS_PORT", "want a port number. Kubernetes sets this for a Service named redis: "+
			"set enableServiceLinks: false in the pod, or say where Redis is with REDIS_URL, which makes REDIS_PORT unused")
		return rediskit.Config{}
	default:
		r.number("REDIS_PORT", 1, 65535)
		if host == "" || strings.ContainsAny(host, "/@ ") {
			r.wrong("REDIS_HOST", "want a host name or an IP address; a URL goes into REDIS_URL")
			return rediskit.Config{}
		}
		cfg.Addrs = []string{net.JoinHostPort(strings.Trim(host, "[]"), port)}
	}
	if len(ways) > 0 && !r.isSet("REDIS_HOST") {
		r.unused("REDIS_HOST", "REDIS_PORT")
	}
	if master != "" && sentinels == "" {
		r.wrong("REDIS_MASTER_NAME", "is of use only with REDIS_SENTINELS, which is not set")
	}
	r.login(&cfg, username, password)
	return r.validRedis(cfg, append(ways, "REDIS_HOST")[0])
}

// unused empties settings that have no effect next to the chosen way.
func (r *reader) unused(names ...string) {
	for _, name := range names {
		r.settings[name] = Setting{Name: name, Source: SourceDefault}
	}
}

// agreeWithURL reports variables that say something else than the URL.
func (r *reader) agreeWithURL(cfg rediskit.Config, useTLS bool, db int) {
	if r.isSet("REDIS_TLS") && useTLS != cfg.TLS {
		if cfg.TLS {
			r.wrong("REDIS_TLS", "contradicts REDIS_URL, which begins with rediss:// (TLS): remove REDIS_TLS, or use redis://")
		} else {
			r.wrong("REDIS_TLS", "contradicts REDIS_URL, which does not begin with rediss:// (TLS): remove REDIS_TLS, or use rediss://")
		}
	}
	if r.isSet("REDIS_DB") && db != cfg.DB {
		r.wrong("REDIS_DB", "contradicts REDIS_URL: put the database into the URL, as redis://host:6379/1, and remove REDIS_DB")
	}
}

// login adds user and password: a URL may leave them out, so that only the
// password has to be kept secret.
func (r *reader) login(cfg *rediskit.Config, username, password string) {
	set := func(field *string, name, value string) {
		switch {
		case value == "":
		case *field != "" && *field != value:
			r.wrong(name, "contradicts REDIS_URL, which has one too: remove one of them")
		default:
			*field = value
		}
	}
	set(&cfg.Username, "REDIS_USERNAME", username)
	set((*string)(&cfg.Password), "REDIS_PASSWORD", password)
	if cfg.Username != "" && cfg.Password == "" {
		r.problem("REDIS_PASSWORD", SourceDefault, "", "is not set, but there is a user name: an ACL user needs its password")
		cfg.Username = ""
	}
}

// certificates adds the files to every target that uses TLS, and reports them
// where none does.
func (r *reader) certificates(targets ...*rediskit.Config) {
	const ca, cert, key = "REDIS_CA_FILE", "REDIS_CERT_FILE", "REDIS_KEY_FILE"
	caFile, certFile, keyFile := r.filePath(ca, false), r.filePath(cert, false), r.filePath(key, false)
	if r.isSet(cert) != r.isSet(key) {
		r.problem(key, r.settings[key].Source, "", "and "+cert+" go together: set both or neither")
	}
	used := false
	for _, cfg := range targets {
		if cfg.TLS {
			cfg.CAFile, cfg.CertFile, cfg.KeyFile = caFile, certFile, keyFile
			used = true
		}
	}
	for _, name := range []string{ca, cert, key} {
		if !used && r.isSet(name) {
			r.wrong(name, "is of use only with TLS: use rediss:// in REDIS_URL, or REDIS_TLS=true")
		}
	}
}

// cacheRedis is CACHE_REDIS_URL, or the Redis of the queues.
func (r *reader) cacheRedis(queues rediskit.Config) rediskit.Config {
	raw := r.text("CACHE_REDIS_URL")
	if raw == "" {
		return queues
	}
	cfg, err := rediskit.ParseURL(raw)
	if err != nil {
		r.wrong("CACHE_REDIS_URL", problemText(err))
		return rediskit.Config{}
	}
	return r.validRedis(cfg, "CACHE_REDIS_URL")
}

// validRedis asks rediskit, whose rules may be stricter, and blames name.
func (r *reader) validRedis(cfg rediskit.Config, name string) rediskit.Config {
	if err := cfg.Validate(); err != nil {
		r.wrong(name, problemText(err))
	}
	return cfg
}

func (r *reader) addresses(name string) []string {
	var list []string
	for addr := range strings.SplitSeq(r.text(name), ",") {
		list = append(list, strings.TrimSpace(addr))
	}
	return list
}

// problemText makes one line of a joined error, without the prefixes that the
// variable's name replaces.
func problemText(err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	return strings.NewReplacer("redis config: ", "", "parse Redis URL: ", "").Replace(text)
}
