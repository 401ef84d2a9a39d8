package rediskit

import (
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
)

// EnvError is an environment variable that cannot be used.
type EnvError struct {
	Name string // of the variable
	Got  string // what it held; "<secret>" for a secret, "" for nothing
	Want string // what is accepted
}

// Error names the variable, what it held and what is accepted.
func (e *EnvError) Error() string {
	switch e.Got {
	case "":
		return e.Name + ": " + e.Want
	case masked:
		return e.Name + ": " + masked + " is not accepted: " + e.Want
	}
	return e.Name + ": " + strconv.Quote(e.Got) + " is not accepted: " + e.Want
}

// FromEnv fills a Config from the environment ("NAME=value", as os.Environ
// returns it):
//
//	SERVICE_NAME                        required: the prefix of the service's keys
//	REDIS_URL                           redis://, rediss:// or unix://, see [ParseURL]; or
//	REDIS_HOST REDIS_PORT               a single server, default 127.0.0.1 and 6379; or
//	REDIS_SENTINELS REDIS_MASTER_NAME   addresses, comma-separated, and the master's name; or
//	REDIS_CLUSTER                       addresses of some nodes, comma-separated
//	REDIS_USERNAME REDIS_PASSWORD       unless the URL has them
//	REDIS_SENTINEL_USERNAME             user of the sentinels, which never see the above
//	REDIS_SENTINEL_PASSWORD
//	REDIS_TLS REDIS_DB                  true or false, and a number; unless the URL says it
//	REDIS_CA_FILE REDIS_SERVER_NAME     see [Config]; with TLS only
//	REDIS_CERT_FILE REDIS_KEY_FILE
//	REDIS_POOL_SIZE                     connections of one pool to one server
//	REDIS_ALLOW_EVICTION                true accepts queues on a server that deletes keys
//
// The passwords and the URLs can also be given as NAME_FILE, the path of a file
// that holds them. Its error joins one *[EnvError] for every problem, and no
// part of a secret is in it.
func FromEnv(environ []string) (Config, error) {
	cfg, _, err := fromEnv(environ)
	return cfg, err
}

// CacheFromEnv is [FromEnv] for the Redis of cache, rate limits and sessions,
// which may be another than that of the queues: CACHE_REDIS_URL, with the same
// REDIS_..._FILE certificates. Without that variable it is the same.
func CacheFromEnv(environ []string) (Config, error) {
	_, cache, err := fromEnv(environ)
	return cache, err
}

func fromEnv(environ []string) (queues, cache Config, err error) {
	r := envReader{values: map[string]string{}}
	for _, entry := range environ {
		if name, value, ok := strings.Cut(entry, "="); ok {
			if name != "REDIS_PASSWORD" && name != "REDIS_SENTINEL_PASSWORD" { // where a blank may be meant
				value = strings.TrimSpace(value)
			}
			r.values[name] = value
		}
	}
	service := r.values["SERVICE_NAME"]
	switch {
	case service == "":
		r.problem("SERVICE_NAME", "is not set: want the name of this service, which is put in front of its keys, such as accounts-service")
	case !serviceName.MatchString(service):
		r.wrong("SERVICE_NAME", "want 1 to 63 lower-case letters, digits, - and _, beginning with a letter")
	}
	queues = r.redis()
	cache = r.cache(queues)
	r.certificates(&queues, &cache)
	poolSize := 0
	if r.values["REDIS_POOL_SIZE"] != "" {
		poolSize = r.number("REDIS_POOL_SIZE", 1, 10_000)
	}
	allowEviction := r.boolean("REDIS_ALLOW_EVICTION")
	for _, cfg := range []*Config{&queues, &cache} {
		cfg.Service, cfg.PoolSize, cfg.AllowEviction = service, poolSize, allowEviction
	}
	if err := errors.Join(r.errs...); err != nil {
		return Config{}, Config{}, err
	}
	return queues, cache, nil
}

// envReader collects problems.
type envReader struct {
	values map[string]string
	errs   []error
}

// secret returns the value of name, or of the file that name_FILE names.
func (r *envReader) secret(name string) string {
	value, path := r.values[name], r.values[name+"_FILE"]
	if path == "" {
		return value
	}
	if value != "" {
		r.problem(name, "is set, and so is "+name+"_FILE: set one of them")
		return value
	}
	secret, err := ReadSecret(path)
	if err != nil {
		r.wrong(name+"_FILE", err.Error())
	}
	return string(secret)
}

func (r *envReader) text(name, def string) string {
	if value := r.values[name]; value != "" {
		return value
	}
	return def
}

func (r *envReader) boolean(name string) bool {
	value := r.text(name, "false")
	if value != "true" && value != "false" {
		r.wrong(name, "want true or false")
	}
	return value == "true"
}

func (r *envReader) number(name string, least, most int) int {
	n, err := strconv.Atoi(r.text(name, "0"))
	if err != nil || n < least || n > most {
		r.wrong(name, fmt.Sprintf("want a whole number from %d to %d", least, most))
		return least
	}
	return n
}

func (r *envReader) list(name string) []string {
	var list []string
	for entry := range strings.SplitSeq(r.values[name], ",") {
		list = append(list, strings.TrimSpace(entry))
	}
	return list
}

// wrong reports what a variable holds.
func (r *envReader) wrong(name, want string) {
	got := r.values[name]
	if got != "" && slices.ContainsFunc([]string{"_URL", "_PASSWORD"}, func(end string) bool { return strings.HasSuffix(name, end) }) {
		got = masked
	}
	r.errs = append(r.errs, &EnvError{Name: name, Got: got, Want: want})
}

func (r *envReader) problem(name, want string) {
	r.errs = append(r.errs, &EnvError{Name: name, Want: want})
}

// redis puts the Redis of the queues together. The ways to say where it is
// exclude each other; what they leave open comes from the other variables.
func (r *envReader) redis() Config {
	raw := r.secret("REDIS_URL")
	host, port := r.text("REDIS_HOST", "127.0.0.1"), r.text("REDIS_PORT", "6379")
	sentinels, master := r.values["REDIS_SENTINELS"], r.values["REDIS_MASTER_NAME"]
	username, password := r.values["REDIS_USERNAME"], r.secret("REDIS_PASSWORD")
	useTLS := r.boolean("REDIS_TLS")
	db := r.number("REDIS_DB", 0, math.MaxInt32)
	fromKubernetes := strings.Contains(port, "://")

	var ways []string
	for _, way := range []string{"REDIS_URL", "REDIS_SENTINELS", "REDIS_CLUSTER"} {
		if r.values[way] != "" || way == "REDIS_URL" && raw != "" {
			ways = append(ways, way)
		}
	}
	if r.values["REDIS_HOST"] != "" || len(ways) > 0 && r.values["REDIS_PORT"] != "" && !fromKubernetes {
		ways = append(ways, "REDIS_HOST and REDIS_PORT")
	}
	if len(ways) > 1 {
		r.problem(ways[0], "is set, and so is "+strings.Join(ways[1:], ", and ")+": say in one way where Redis is")
		return Config{}
	}

	cfg := Config{TLS: useTLS, DB: db}
	switch {
	case raw != "":
		parsed, err := ParseURL(raw)
		if err != nil {
			r.wrongSecret("REDIS_URL", envText(err))
			return Config{}
		}
		cfg = parsed
		r.agreeWithURL(cfg, useTLS, db)
	case sentinels != "":
		cfg.Addrs, cfg.Master = r.list("REDIS_SENTINELS"), master
		if master == "" {
			r.problem("REDIS_MASTER_NAME", "is not set: REDIS_SENTINELS needs the name of the master that they watch")
			return Config{}
		}
	case r.values["REDIS_CLUSTER"] != "":
		cfg.Addrs, cfg.Cluster = r.list("REDIS_CLUSTER"), true
	case fromKubernetes:
		r.wrong("REDIS_PORT", "want a port number. Kubernetes sets this for a Service named redis: "+
			"set enableServiceLinks: false in the pod, or say where Redis is with REDIS_URL, which makes REDIS_PORT unused")
		return Config{}
	default:
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > math.MaxUint16 {
			r.wrong("REDIS_PORT", "want a whole number from 1 to 65535")
			return Config{}
		}
		if strings.ContainsAny(host, "/@ ") {
			r.wrong("REDIS_HOST", "want a host name or an IP address; a URL goes into REDIS_URL")
			return Config{}
		}
		cfg.Addrs = []string{net.JoinHostPort(strings.Trim(host, "[]"), port)}
	}
	if master != "" && sentinels == "" {
		r.wrong("REDIS_MASTER_NAME", "is of use only with REDIS_SENTINELS, which is not set")
	}
	r.login(&cfg, username, password)
	r.sentinelLogin(&cfg)
	if name := r.values["REDIS_SERVER_NAME"]; name != "" {
		if cfg.ServerName = name; !cfg.TLS {
			r.wrong("REDIS_SERVER_NAME", "is of use only with TLS: use rediss:// in REDIS_URL, or REDIS_TLS=true")
			cfg.ServerName = ""
		}
	}
	return r.valid(cfg, append(ways, "REDIS_HOST")[0])
}

// agreeWithURL reports variables that say something else than the URL.
func (r *envReader) agreeWithURL(cfg Config, useTLS bool, db int) {
	if r.values["REDIS_TLS"] != "" && useTLS != cfg.TLS {
		if cfg.TLS {
			r.wrong("REDIS_TLS", "contradicts REDIS_URL, which begins with rediss:// (TLS): remove REDIS_TLS, or use redis://")
		} else {
			r.wrong("REDIS_TLS", "contradicts REDIS_URL, which does not begin with rediss:// (TLS): remove REDIS_TLS, or use rediss://")
		}
	}
	if r.values["REDIS_DB"] != "" && db != cfg.DB {
		r.wrong("REDIS_DB", "contradicts REDIS_URL: put the database into the URL, as redis://host:6379/1, and remove REDIS_DB")
	}
}

// login adds user and password: a URL may leave them out, so that only the
// password has to be kept secret.
func (r *envReader) login(cfg *Config, username, password string) {
	set := func(field *string, name, value string) {
		switch {
		case value == "":
		case *field != "" && *field != value:
			r.wrongSecret(name, "contradicts REDIS_URL, which has one too: remove one of them")
		default:
			*field = value
		}
	}
	set(&cfg.Username, "REDIS_USERNAME", username)
	set((*string)(&cfg.Password), "REDIS_PASSWORD", password)
	if cfg.Username != "" && cfg.Password == "" {
		r.problem("REDIS_PASSWORD", "is not set, but there is a user name: an ACL user needs its password")
		cfg.Username = ""
	}
}

func (r *envReader) sentinelLogin(cfg *Config) {
	const user, pass = "REDIS_SENTINEL_USERNAME", "REDIS_SENTINEL_PASSWORD"
	username, password := r.values[user], r.secret(pass)
	if cfg.Master == "" {
		for _, v := range [][2]string{{user, username}, {pass, password}} {
			if v[1] != "" {
				r.wrongSecret(v[0], "is of use only with REDIS_SENTINELS, which is not set")
			}
		}
		return
	}
	if username != "" && password == "" {
		r.problem(pass, "is not set, but there is a user name for the sentinels: an ACL user needs its password")
		return
	}
	cfg.SentinelUsername, cfg.SentinelPassword = username, Secret(password)
}

// wrongSecret is wrong for a variable whose value may come from a file.
func (r *envReader) wrongSecret(name, want string) {
	got := masked
	if strings.HasSuffix(name, "_USERNAME") {
		got = r.values[name]
	}
	r.errs = append(r.errs, &EnvError{Name: name, Got: got, Want: want})
}

// cache is CACHE_REDIS_URL, or the Redis of the queues.
func (r *envReader) cache(queues Config) Config {
	raw := r.secret("CACHE_REDIS_URL")
	if raw == "" {
		return queues
	}
	cfg, err := ParseURL(raw)
	if err != nil {
		r.wrongSecret("CACHE_REDIS_URL", envText(err))
		return Config{}
	}
	return r.valid(cfg, "CACHE_REDIS_URL")
}

// certificates adds the files to every target that uses TLS, and reports them
// where none does.
func (r *envReader) certificates(targets ...*Config) {
	const ca, cert, key = "REDIS_CA_FILE", "REDIS_CERT_FILE", "REDIS_KEY_FILE"
	if (r.values[cert] == "") != (r.values[key] == "") {
		r.problem(key, "and "+cert+" go together: set both or neither")
	}
	used := false
	for _, cfg := range targets {
		if cfg.TLS {
			cfg.CAFile, cfg.CertFile, cfg.KeyFile = r.values[ca], r.values[cert], r.values[key]
			used = true
		}
	}
	for _, name := range []string{ca, cert, key} {
		if !used && r.values[name] != "" {
			r.wrong(name, "is of use only with TLS: use rediss:// in REDIS_URL, or REDIS_TLS=true")
		}
	}
}

// valid applies the rules of [Config.Validate] and blames name.
func (r *envReader) valid(cfg Config, name string) Config {
	if err := cfg.Validate(); err != nil {
		r.wrong(name, envText(err))
	}
	return cfg
}

// envText makes one line of a joined error, without the prefixes that the
// variable's name replaces.
func envText(err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	return strings.NewReplacer("redis config: ", "", "parse Redis URL: ", "").Replace(text)
}
