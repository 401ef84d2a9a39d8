package config

import (
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/mailer"
	"github.com/medicalink/postroom/internal/notifier/sms"
	"github.com/medicalink/postroom/internal/notifier/webpush"
	"github.com/medicalink/postroom/rediskit"
)

// LogFormat is how log lines look.
type LogFormat string

// The formats of log lines.
const (
	LogJSON LogFormat = "json"
	LogText LogFormat = "text"
)

// MonitorUser may log in to the dashboard.
type MonitorUser struct {
	Name string
	Hash Secret // bcrypt
}

// Config is the whole configuration. [Reference] describes the variables it
// comes from; make one with [Load].
type Config struct {
	// Service is SERVICE_NAME, never empty.
	Service string
	// Redis is the Redis of the queues, CacheRedis that of cache and rate limits:
	// the same one unless CACHE_REDIS_URL is set.
	Redis, CacheRedis rediskit.Config
	// Queues maps queue names, with the namespace in front, to weights.
	Queues map[string]int
	// StrictPriority empties heavier queues before lighter ones.
	StrictPriority bool
	// Namespace is QUEUE_NAMESPACE, without colon.
	Namespace string
	// Concurrency is the number of jobs that run at once.
	Concurrency int
	// ShutdownTimeout is how long running jobs may finish.
	ShutdownTimeout time.Duration
	// Mail holds the SMTP providers and the DKIM key; no provider means that
	// SMTP_URL is not set.
	Mail mailer.Config
	// MailFrom is an address with an optional name; empty if not set.
	MailFrom string
	// AppURL is the address of the platform's pages without a slash at its end; empty
	// if not set.
	AppURL string
	// ActionHosts are further hosts that notifications may lead to.
	ActionHosts []string
	// PushKey is the VAPID key and PushSubject who is to be told of trouble with it; nil
	// and empty if there is no Web Push.
	PushKey     *webpush.Key
	PushSubject string
	// SMS is the account of the gateway; nil if there is none.
	SMS *sms.Config
	// TemplatesDir is an existing directory or empty.
	TemplatesDir string
	// MonitorAddr is host:port.
	MonitorAddr string
	// MonitorUsers may log in to the dashboard.
	MonitorUsers []MonitorUser
	LogLevel     zerolog.Level
	LogFormat    LogFormat

	settings []Setting
}

var (
	// The same alphabets as the queue names and namespaces of package tasks.
	namespace  = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,30}$`)
	queueName  = regexp.MustCompile(`^(email|notification):[a-z0-9_-]{1,24}$`)
	dnsName    = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
	bcryptHash = regexp.MustCompile(`^\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}$`)
	userName   = regexp.MustCompile(`^[A-Za-z0-9._@-]{1,64}$`)
)

// Load reads the variables of [Reference] from environ ("NAME=value", as
// os.Environ returns them) and from the file .env in dir. Its error joins one
// [*Error] for every problem. A variable that only some commands need may be
// missing: see [Config.RequireWorker].
func Load(environ []string, dir string) (Config, error) {
	r := newReader(environ, dir)
	var c Config
	c.Service = r.text("SERVICE_NAME")
	c.Redis, c.CacheRedis = r.redis()
	c.Namespace = r.matching("QUEUE_NAMESPACE", namespace, "want 1 to 31 lower-case letters, digits, - and _, beginning with a letter")
	c.Queues = r.queues(c.Namespace)
	c.StrictPriority = r.boolean("STRICT_PRIORITY")
	c.Concurrency = r.number("WORKER_CONCURRENCY", 1, 1000)
	c.ShutdownTimeout = r.duration("SHUTDOWN_TIMEOUT", time.Second, time.Hour)
	c.Mail = r.mail()
	c.MailFrom = r.mailFrom()
	c.AppURL = r.appURL()
	c.ActionHosts = r.hosts("ACTION_HOSTS")
	c.PushKey, c.PushSubject = r.push()
	c.SMS = r.sms()
	c.TemplatesDir = r.filePath("TEMPLATES_DIR", true)
	c.MonitorAddr = r.address("MONITOR_ADDR")
	c.MonitorUsers = r.users()
	c.LogLevel = r.logLevel()
	c.LogFormat = LogFormat(r.oneOf("LOG_FORMAT", string(LogJSON), string(LogText)))

	for _, v := range r.known {
		c.settings = append(c.settings, r.settings[v.Name])
	}
	if err := errors.Join(r.errs...); err != nil {
		return Config{}, err
	}
	return c, nil
}

// RequireWorker reports the variables without which no mail can be delivered.
func (c Config) RequireWorker() error {
	var errs []error
	if len(c.Mail.Providers) == 0 {
		errs = append(errs, &Error{
			Name: "SMTP_URL", Source: SourceDefault,
			Want: "is not set: want smtp://user:password@host:587 of the provider that delivers the mail",
		})
	}
	if c.MailFrom == "" {
		errs = append(errs, &Error{
			Name: "MAIL_FROM", Source: SourceDefault,
			Want: "is not set: want the sender's address, such as MedicaLink <no-reply@medicalink.example>",
		})
	}
	return errors.Join(errs...)
}

func (r *reader) matching(name string, pattern *regexp.Regexp, want string) string {
	value := r.text(name)
	if value != "" && !pattern.MatchString(value) {
		r.wrong(name, want)
	}
	return value
}

func (r *reader) oneOf(name string, accepted ...string) string {
	value := r.text(name)
	if !slices.Contains(accepted, value) {
		r.wrong(name, "want "+strings.Join(accepted, " or "))
	}
	return value
}

func (r *reader) boolean(name string) bool { return r.oneOf(name, "true", "false") == "true" }

func (r *reader) number(name string, least, most int) int {
	n, err := strconv.Atoi(r.text(name))
	if err != nil || n < least || n > most {
		r.wrong(name, fmt.Sprintf("want a whole number from %d to %d", least, most))
		return least
	}
	return n
}

func (r *reader) duration(name string, least, most time.Duration) time.Duration {
	d, err := time.ParseDuration(r.text(name))
	if err != nil || d < least || d > most {
		r.wrong(name, fmt.Sprintf("want a duration with its unit, such as 30s or 2m, from %s to %s", least, most))
	}
	return d
}

func (r *reader) address(name string) string {
	value := r.text(name)
	_, port, err := net.SplitHostPort(value)
	if _, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil {
		r.wrong(name, "want host:port, such as 127.0.0.1:8080")
	}
	return value
}

func (r *reader) queues(namespace string) map[string]int {
	const want = "want NAME=WEIGHT, comma-separated, such as email:critical=6,email:default=3,email:bulk=1; " +
		"names begin with email: or notification: (there are no other jobs) and leave QUEUE_NAMESPACE out; weights are 1 to 1000"
	queues := map[string]int{}
	for entry := range strings.SplitSeq(r.text("QUEUES"), ",") {
		name, weight, weighted := strings.Cut(strings.TrimSpace(entry), "=")
		n := 1
		var err error
		if weighted {
			n, err = strconv.Atoi(weight)
		}
		if err != nil || n < 1 || n > 1000 || !queueName.MatchString(name) {
			r.wrong("QUEUES", want)
			return nil
		}
		if namespace != "" {
			name = namespace + ":" + name
		}
		if _, twice := queues[name]; twice {
			r.wrong("QUEUES", "want each queue once; "+name+" is given twice")
			return nil
		}
		queues[name] = n
	}
	return queues
}

func (r *reader) mail() mailer.Config {
	var c mailer.Config
	if raw := r.text("SMTP_URL"); raw != "" {
		var err error
		if c.Providers, err = mailer.ParseProviders(raw); err != nil {
			r.wrong("SMTP_URL", strings.ReplaceAll(err.Error(), "\n", "; "))
		}
	}
	domain := r.matching("DKIM_DOMAIN", dnsName, "want a domain name")
	selector := r.matching("DKIM_SELECTOR", dnsName, "want the selector's name, as it is in DNS before ._domainkey")
	keyFile := r.filePath("DKIM_KEY_FILE", false)
	names := []string{"DKIM_DOMAIN", "DKIM_SELECTOR", "DKIM_KEY_FILE"}
	if slices.ContainsFunc(names, r.isSet) {
		for _, name := range names {
			if !r.isSet(name) {
				r.problem(name, SourceDefault, "", "is not set: DKIM_DOMAIN, DKIM_SELECTOR and DKIM_KEY_FILE go together")
			}
		}
		c.DKIM = r.dkim(domain, selector, keyFile)
	}
	return c
}

// dkim returns nil after a problem, the ones reported before included.
func (r *reader) dkim(domain, selector, keyFile string) *mailer.DKIM {
	if domain == "" || selector == "" || keyFile == "" {
		return nil
	}
	pem, err := os.ReadFile(keyFile)
	if err != nil {
		if _, missing := os.Stat(keyFile); missing == nil { // else filePath has reported it
			r.wrong("DKIM_KEY_FILE", "want a file that this process may read: "+pathCause(err))
		}
		return nil
	}
	key, err := mailer.ParseDKIMKey(pem)
	if err != nil {
		r.wrong("DKIM_KEY_FILE", "want a PEM file with a private key, RSA or Ed25519, unencrypted: "+err.Error())
		return nil
	}
	return &mailer.DKIM{Domain: domain, Selector: selector, Signer: key}
}

func (r *reader) mailFrom() string {
	value := r.text("MAIL_FROM")
	if value != "" {
		if _, err := mail.ParseAddress(value); err != nil || strings.ContainsAny(value, "\r\n") {
			r.wrong("MAIL_FROM", "want one address, such as no-reply@medicalink.example or MedicaLink <no-reply@medicalink.example>")
		}
	}
	return value
}

// appURL accepts http for the hosts of a developer's own machine only: links in emails
// and pushes carry what they lead to past every network between.
func (r *reader) appURL() string {
	raw := r.text("APP_URL")
	if raw == "" {
		return ""
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		u.Scheme != "https" && !(u.Scheme == "http" && (u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1")) {
		r.problem("APP_URL", r.settings["APP_URL"].Source, maskURLs(raw), "want https://host without user and query, such as https://app.medicalink.example")
		return ""
	}
	return strings.TrimSuffix(raw, "/")
}

func (r *reader) push() (*webpush.Key, string) {
	raw, subject := r.text("VAPID_PRIVATE_KEY"), r.text("VAPID_SUBJECT")
	if raw == "" && subject == "" {
		return nil, ""
	}
	for _, name := range []string{"VAPID_PRIVATE_KEY", "VAPID_SUBJECT"} {
		if !r.isSet(name) {
			r.problem(name, SourceDefault, "", "is not set: VAPID_PRIVATE_KEY and VAPID_SUBJECT go together")
			return nil, ""
		}
	}
	key, err := webpush.ParseKey(Secret(raw))
	if err != nil {
		r.wrong("VAPID_PRIVATE_KEY", "want the 32 bytes of a P-256 private key in base64url, or its PEM: "+err.Error())
	}
	if err := webpush.CheckSubject(subject); err != nil {
		r.wrong("VAPID_SUBJECT", "want mailto: with an address, or an https URL: "+err.Error())
	}
	return key, subject
}

func (r *reader) sms() *sms.Config {
	raw := r.text("SMS_URL")
	if raw == "" {
		return nil
	}
	c, err := sms.ParseURL(Secret(raw))
	if err != nil {
		r.wrong("SMS_URL", "want twilio://ACCOUNT_SID:AUTH_TOKEN@api.twilio.com?from=%2B15551234567: "+strings.ReplaceAll(err.Error(), "\n", "; "))
		return nil
	}
	return &c
}

func (r *reader) hosts(name string) []string {
	var hosts []string
	if raw := r.text(name); raw != "" {
		for host := range strings.SplitSeq(raw, ",") {
			host = strings.TrimSpace(host)
			bare, port, err := net.SplitHostPort(host)
			if err != nil {
				bare, port = host, "443"
			}
			if _, err := strconv.ParseUint(port, 10, 16); err != nil || !dnsName.MatchString(bare) {
				r.wrong(name, "want host names, comma-separated, such as portal.medicalink.example")
				return nil
			}
			hosts = append(hosts, strings.ToLower(host))
		}
	}
	return hosts
}

func (r *reader) users() []MonitorUser {
	raw := r.text("MONITOR_USERS")
	if raw == "" {
		return nil
	}
	var users []MonitorUser
	for entry := range strings.SplitSeq(raw, ",") {
		name, hash, _ := strings.Cut(strings.TrimSpace(entry), ":")
		if !userName.MatchString(name) || !bcryptHash.MatchString(hash) ||
			slices.ContainsFunc(users, func(u MonitorUser) bool { return u.Name == name }) {
			r.wrong("MONITOR_USERS", "want name:bcrypt-hash, comma-separated, each name once, as `htpasswd -nB NAME` prints them; "+
				"in .env between single quotes because of the $")
			return nil
		}
		users = append(users, MonitorUser{Name: name, Hash: Secret(hash)})
	}
	return users
}

func (r *reader) logLevel() zerolog.Level {
	level, err := zerolog.ParseLevel(r.oneOf("LOG_LEVEL", "debug", "info", "warn", "error"))
	if err != nil {
		return zerolog.InfoLevel // oneOf has reported it
	}
	return level
}
