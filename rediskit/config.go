package rediskit

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Defaults of the zero fields of [Config].
const (
	DefaultAddr         = "127.0.0.1:6379"
	DefaultSentinelPort = "26379"
	DefaultDialTimeout  = 5 * time.Second
	DefaultReadTimeout  = 2 * time.Second
	DefaultWriteTimeout = 2 * time.Second
	DefaultMaxRetries   = 3
)

const (
	minRetryBackoff = 50 * time.Millisecond
	maxRetryBackoff = time.Second
)

// Config says which Redis to reach and how. The zero value is a server without
// password on 127.0.0.1:6379.
type Config struct {
	// Addrs are host:port addresses, or one path of a Unix socket beginning with
	// "/". One address is a single server unless Master or Cluster is set; then
	// these are the sentinels, or the first nodes of the cluster to ask.
	// Default: 127.0.0.1:6379.
	Addrs []string

	// Username is the ACL user. Empty is the server's user "default".
	Username string
	Password Secret

	// DB is the database number. A cluster has only database 0. Default 0.
	DB int

	// TLS encrypts every connection, those to sentinels too: TLS 1.2 at least,
	// the server's certificate is always checked. Default: off.
	TLS bool
	// CAFile is a PEM file of the authorities that may sign the server's
	// certificate, instead of the system's. Needs TLS.
	CAFile string
	// CertFile and KeyFile are the client's certificate and key in PEM, read
	// again at every handshake so that a renewed one needs no restart. Needs TLS.
	CertFile, KeyFile string
	// ServerName is checked against the certificate instead of the host of the
	// address: for an address that is an IP or a tunnel. Needs TLS.
	ServerName string

	// Master is the name of the monitored master; setting it makes Addrs the
	// addresses of sentinels.
	Master string
	// SentinelUsername and SentinelPassword log in to the sentinels, which have
	// users of their own: Username and Password are never sent to them.
	SentinelUsername string
	SentinelPassword Secret

	// Cluster makes Addrs the first nodes of a Redis Cluster.
	Cluster bool

	// DialTimeout bounds connecting, the TLS handshake included. Default 5 s.
	DialTimeout time.Duration
	// ReadTimeout and WriteTimeout bound one reply and one request; a context
	// that ends earlier wins. Default 2 s: short, because a hung server is
	// better noticed than waited for.
	ReadTimeout, WriteTimeout time.Duration

	// PoolSize is the greatest number of connections of one client to one
	// server, in a cluster to each node. Default: 10 for each CPU (GOMAXPROCS).
	// Too few and callers queue; too many and the fleet exceeds the server's
	// maxclients.
	PoolSize int

	// MaxRetries is how often a command is tried again after a network error,
	// waiting 50 ms to 1 s, growing and with jitter. Default 3; -1 is never.
	// A command whose reply was lost runs twice when it is retried. In a cluster
	// it is never less than 3: go-redis counts the redirections to other nodes
	// with the retries.
	MaxRetries int

	// ClientName is shown by CLIENT LIST. Default: Service. Printable ASCII
	// without spaces, because the server refuses those.
	ClientName string

	// AllowEviction lets [Client.Preflight] accept, with a warning, a server for
	// queues that deletes keys when its memory is short. Default: refuse, because
	// such a server deletes queued jobs.
	AllowEviction bool

	// Service is the name of the program that owns the keys made by [Client.Key]:
	// 1 to 63 lower-case letters, digits, - and _, beginning with a letter. Two
	// services with one name share keys; "asynq" is refused and "postroom" is the
	// worker's, because the queues' keys begin so. Default: none, which only programs that
	// keep nothing of their own in Redis can use: cache, pub/sub, rate limits and
	// sessions refuse such a client.
	Service string
}

// The alphabet leaves out the colon, so that no service's prefix is the
// beginning of another's, and braces, which choose a slot in a cluster.
var serviceName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)

// ParseURL reads a Redis URL:
//
//	redis://user:password@host:6379/0      plain
//	rediss://user:password@host:6379/0     TLS
//	unix://user:password@/path/to.sock?db=0
//
// User name and password are percent-decoded and both kept. A password alone is
// written redis://:password@host; a user name alone is accepted here, so that
// the password can come from elsewhere. Errors never repeat the URL: it may hold a
// password in a place where none is expected.
func ParseURL(raw string) (Config, error) {
	scheme, _, ok := strings.Cut(raw, "://")
	if !ok || (scheme != "redis" && scheme != "rediss" && scheme != "unix") {
		return Config{}, errors.New("parse Redis URL: want redis://, rediss:// (TLS) or unix://")
	}
	u, err := url.Parse(raw)
	if err != nil || u.Fragment != "" || strings.Contains(u.Path+u.RawQuery, "@") {
		// The cause quotes parts of the URL, so it is not wrapped.
		return Config{}, errors.New("parse Redis URL: not a valid URL; special characters in the user name or password" +
			" must be percent-encoded: # is %23, / is %2F, : is %3A, @ is %40, % is %25")
	}
	cfg := Config{TLS: scheme == "rediss"}
	if u.User != nil {
		cfg.Username = u.User.Username()
		password, _ := u.User.Password()
		cfg.Password = Secret(password)
	}
	query := u.Query()
	db := query.Get("db")
	query.Del("db")
	if len(query) > 0 {
		return Config{}, errors.New("parse Redis URL: unknown parameter after the ?: only db is accepted")
	}
	if scheme == "unix" {
		if u.Host != "" || u.Path == "" || u.Path == "/" {
			return Config{}, errors.New("parse Redis URL: want an absolute path of a socket: unix:///run/redis/redis.sock")
		}
		cfg.Addrs = []string{u.Path}
	} else {
		host, port := u.Hostname(), u.Port()
		if host == "" {
			return Config{}, errors.New("parse Redis URL: no host: want " + scheme + "://host:6379")
		}
		if port == "" {
			port = "6379"
		}
		cfg.Addrs = []string{net.JoinHostPort(host, port)}
		if path := strings.Trim(u.Path, "/"); path != "" {
			if db != "" && db != path {
				return Config{}, errors.New("parse Redis URL: the database is given twice, in the path and as db=")
			}
			db = path
		}
	}
	if db != "" {
		if cfg.DB, err = strconv.Atoi(db); err != nil {
			return Config{}, errors.New("parse Redis URL: the database (after the host) must be a number: redis://host:6379/0")
		}
	}
	return cfg, cfg.validateTarget()
}

// Validate reports every problem of c at once. It reads no file and dials
// nothing.
func (c Config) Validate() error {
	err := c.validateTarget()
	if c.Username != "" && c.Password == "" {
		// go-redis would drop the user and log in as "default".
		err = errors.Join(err, errors.New("redis config: a user name without a password"))
	}
	return err
}

// validateTarget leaves out what another source than the URL may still add.
func (c Config) validateTarget() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("redis config: "+format, args...))
	}
	for _, addr := range c.Addrs {
		if strings.HasPrefix(addr, "/") {
			if c.Master != "" || c.Cluster || len(c.Addrs) > 1 {
				bad("a Unix socket is a single server: no sentinels, no cluster, no second address")
			}
			if c.TLS {
				bad("a Unix socket does not use TLS")
			}
			continue
		}
		host, port, err := net.SplitHostPort(addr)
		if n, perr := strconv.ParseUint(port, 10, 16); err != nil || host == "" || perr != nil || n == 0 {
			bad("address must be host:port with a port of 1 to 65535")
		}
	}
	if len(c.Addrs) > 1 && c.Master == "" && !c.Cluster {
		bad("%d addresses need the name of a master (sentinels) or Cluster", len(c.Addrs))
	}
	if c.Master != "" && c.Cluster {
		bad("sentinels and Cluster exclude each other")
	}
	if c.Master == "" && (c.SentinelUsername != "" || c.SentinelPassword != "") {
		bad("sentinel credentials without a master's name")
	}
	if c.DB < 0 {
		bad("database %d: must not be negative", c.DB)
	}
	if c.Cluster && c.DB != 0 {
		bad("database %d: a cluster has only database 0", c.DB)
	}
	if !c.TLS && (c.CAFile != "" || c.CertFile != "" || c.KeyFile != "" || c.ServerName != "") {
		bad("certificate settings without TLS: use rediss:// or turn TLS on")
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		bad("a client certificate needs both its certificate file and its key file")
	}
	if c.DialTimeout < 0 || c.ReadTimeout < 0 || c.WriteTimeout < 0 {
		bad("timeouts must not be negative: without them a hung server hangs the caller")
	}
	if c.PoolSize < 0 {
		bad("pool size %d: must not be negative", c.PoolSize)
	}
	if c.MaxRetries < -1 {
		bad("retries %d: want -1 (never) or more", c.MaxRetries)
	}
	if strings.ContainsFunc(c.ClientName, func(r rune) bool { return r <= ' ' || r > '~' }) {
		bad("client name must be printable ASCII without spaces")
	}
	if c.Service != "" && !serviceName.MatchString(c.Service) {
		bad("service name must be 1 to 63 lower-case letters, digits, - and _, beginning with a letter")
	}
	if c.Service == "asynq" {
		bad("service name asynq: the keys of the queues begin with it")
	}
	return errors.Join(errs...)
}

// String describes the target for people: addresses, user, database and TLS,
// never the password.
func (c Config) String() string {
	var b strings.Builder
	switch {
	case c.Master != "":
		fmt.Fprintf(&b, "master %q of the sentinels ", c.Master)
	case c.Cluster:
		b.WriteString("the cluster ")
	}
	b.WriteString(strings.Join(c.addrs(), ", "))
	user := c.Username
	if user == "" {
		user = "default"
	}
	onOff := func(set bool) string {
		if set {
			return "yes"
		}
		return "no"
	}
	fmt.Fprintf(&b, " (user %s, password %s, TLS %s, database %d)", user, onOff(c.Password != ""), onOff(c.TLS), c.DB)
	return b.String()
}

// Loopback reports whether every address is on this machine.
func (c Config) Loopback() bool {
	return !slices.ContainsFunc(c.addrs(), func(addr string) bool {
		if strings.HasPrefix(addr, "/") {
			return false
		}
		host, _, _ := net.SplitHostPort(addr)
		return host != "localhost" && !net.ParseIP(host).IsLoopback()
	})
}

// Warnings lists what works but is unsafe, of which [Open] also tells [LogTo]
// once: a connection to another machine that is not encrypted.
func (c Config) Warnings() []string {
	if c.TLS || c.Loopback() {
		return nil
	}
	return []string{"the connection to another machine is not encrypted: use rediss:// or REDIS_TLS=true"}
}

func (c Config) addrs() []string {
	if len(c.Addrs) > 0 {
		return c.Addrs
	}
	return []string{DefaultAddr}
}

// tlsConfig returns nil without TLS. Reading the files now makes a wrong path
// an error of Open instead of one of each connection.
func (c Config) tlsConfig() (*tls.Config, error) {
	if !c.TLS {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read CA file: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read CA file %s: no PEM certificate in it", c.CAFile)
		}
	}
	if c.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("read client certificate %s: %w", c.CertFile, err)
			}
			return &cert, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return cfg, nil
}

// options fills go-redis's options; tlsCfg comes from c.tlsConfig.
func (c Config) options(tlsCfg *tls.Config) *redis.UniversalOptions {
	or := func(d, def time.Duration) time.Duration {
		if d == 0 {
			return def
		}
		return d
	}
	o := &redis.UniversalOptions{
		Addrs:            c.addrs(),
		DB:               c.DB,
		Username:         c.Username,
		Password:         string(c.Password),
		MasterName:       c.Master,
		SentinelUsername: c.SentinelUsername,
		SentinelPassword: string(c.SentinelPassword),
		IsClusterMode:    c.Cluster,

		DialTimeout:           or(c.DialTimeout, DefaultDialTimeout),
		ReadTimeout:           or(c.ReadTimeout, DefaultReadTimeout),
		WriteTimeout:          or(c.WriteTimeout, DefaultWriteTimeout),
		ContextTimeoutEnabled: true,
		PoolSize:              c.PoolSize,
		MaxRetries:            c.MaxRetries,
		MinRetryBackoff:       minRetryBackoff,
		MaxRetryBackoff:       maxRetryBackoff,
		// The command's retry waits with jitter; retrying the dial below it too
		// would only multiply the attempts of a whole fleet.
		DialerRetries: 1,
		// Commands a least-privilege ACL user may not run, for features unused here.
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if c.MaxRetries == 0 {
		o.MaxRetries = DefaultMaxRetries
	}
	if c.PoolSize == 0 {
		o.PoolSize = 10 * runtime.GOMAXPROCS(0) // go-redis halves it for clusters
	}
	if c.Cluster {
		// Retries of a dead node inside each retry of the cluster would multiply.
		o.MaxRedirects, o.MaxRetries = max(o.MaxRetries, DefaultMaxRetries), -1
	}
	// go-redis's own dialer ignores the context during a TLS handshake.
	o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, "/") {
			network = "unix"
		}
		ctx, cancel := context.WithTimeout(ctx, o.DialTimeout)
		defer cancel()
		d := net.Dialer{}
		if tlsCfg == nil {
			return d.DialContext(ctx, network, addr)
		}
		return (&tls.Dialer{NetDialer: &d, Config: tlsCfg}).DialContext(ctx, network, addr)
	}
	if name := cmp.Or(c.ClientName, c.Service); name != "" {
		o.OnConnect = func(ctx context.Context, cn *redis.Conn) error {
			// Not Options.ClientName: that fails the connection of an ACL user who
			// may not run CLIENT SETNAME, and a name is not worth that.
			err := cn.ClientSetName(ctx, name).Err()
			if _, refused := errors.AsType[redis.Error](err); refused {
				return nil
			}
			return err
		}
	}
	return o
}
