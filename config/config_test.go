package config

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"github.com/medicalink/postroom/internal/notifier/webpush"
	"github.com/medicalink/postroom/rediskit"
)

var update = flag.Bool("update", false, "rewrite .env.example")

// setup writes files into a fresh directory and returns it.
func setup(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLoad_defaults(t *testing.T) {
	t.Parallel()
	got, err := Load(nil, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	redis := rediskit.Config{Addrs: []string{"127.0.0.1:6379"}, Service: "postroom"}
	want := Config{
		Service: "postroom", Redis: redis, CacheRedis: redis,
		Queues: map[string]int{
			"email:critical": 6, "email:default": 3, "email:bulk": 1, "notification:critical": 6, "notification:default": 3, "notification:bulk": 1,
		},
		Concurrency: 20, ShutdownTimeout: 30 * time.Second,
		MonitorAddr: "127.0.0.1:8080", LogLevel: zerolog.InfoLevel, LogFormat: LogJSON,
		settings: got.settings,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Load() =\n%+v\nwant\n%+v", got, want)
	}
	for _, s := range got.Settings() {
		if s.Source != SourceDefault {
			t.Errorf("%s comes from %s", s.Name, s.Source)
		}
	}
	err = got.RequireWorker()
	for _, name := range []string{"SMTP_URL", "MAIL_FROM"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("RequireWorker() = %v, want it to name %s", err, name)
		}
	}
}

func TestLoad_everything(t *testing.T) {
	t.Parallel()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	push, err := webpush.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	hash := "$2y$12$" + strings.Repeat("a", 53)
	dir := setup(t, map[string]string{
		"dkim.pem": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"smtp":     "smtps://token:token@smtp.example\n",
		"ca.pem":   "x", "client.pem": "x", "client.key": "x",
	})
	got, err := Load([]string{
		"SERVICE_NAME=mailroom", "REDIS_HOST=redis.example", "REDIS_PORT=6380", "REDIS_USERNAME=alice", "REDIS_PASSWORD= p#w ",
		"REDIS_TLS=true", "REDIS_DB=3", "REDIS_CA_FILE=ca.pem", "REDIS_CERT_FILE=client.pem", "REDIS_KEY_FILE=client.key",
		"CACHE_REDIS_URL=rediss://cache", "QUEUES=email:critical=2, email:vip, notification:vip=3", "STRICT_PRIORITY=true", "QUEUE_NAMESPACE=staging",
		"WORKER_CONCURRENCY=50", "SHUTDOWN_TIMEOUT=2m", "SMTP_URL_FILE=smtp", "MAIL_FROM=MedicaLink <no-reply@medicalink.example>",
		"TEMPLATES_DIR=.", "DKIM_DOMAIN=medicalink.example", "DKIM_SELECTOR=s1", "DKIM_KEY_FILE=dkim.pem",
		"APP_URL=https://app.example/", "ACTION_HOSTS=Portal.example, b.example:8443", "VAPID_SUBJECT=mailto:ops@example.com",
		"VAPID_PRIVATE_KEY=" + string(push.PrivateKey()), "SMS_URL=twilio://AC" + strings.Repeat("0", 32) + ":s3cret@api.twilio.com?from=%2B15551234567",
		"MONITOR_ADDR=localhost:9090", "MONITOR_USERS=ada:" + hash, "LOG_LEVEL=debug", "LOG_FORMAT=text",
	}, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.RequireWorker(); err != nil {
		t.Errorf("RequireWorker() = %v", err)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	redis := rediskit.Config{
		Addrs: []string{"redis.example:6380"}, Username: "alice", Password: " p#w ", DB: 3, TLS: true, Service: "mailroom",
		CAFile: file("ca.pem"), CertFile: file("client.pem"), KeyFile: file("client.key"),
	}
	if !reflect.DeepEqual(got.Redis, redis) {
		t.Errorf("Redis = %#v", got.Redis)
	}
	cache := redis
	cache.Addrs, cache.Username, cache.Password, cache.DB = []string{"cache:6379"}, "", "", 0
	if !reflect.DeepEqual(got.CacheRedis, cache) {
		t.Errorf("CacheRedis = %#v", got.CacheRedis)
	}
	if want := map[string]int{"staging:email:critical": 2, "staging:email:vip": 1, "staging:notification:vip": 3}; !maps.Equal(got.Queues, want) {
		t.Errorf("Queues = %v, want %v", got.Queues, want)
	}
	if p := got.Mail.Providers; len(p) != 1 || p[0].Host != "smtp.example" || p[0].Username != "token" {
		t.Errorf("Providers = %v", p)
	}
	if d := got.Mail.DKIM; d == nil || d.Domain != "medicalink.example" || d.Selector != "s1" || !key.Equal(d.Signer) {
		t.Errorf("DKIM = %+v", d)
	}
	if got.Concurrency != 50 || !got.StrictPriority || got.ShutdownTimeout != 2*time.Minute || got.TemplatesDir != dir ||
		got.MonitorAddr != "localhost:9090" || got.LogLevel != zerolog.DebugLevel || got.LogFormat != LogText ||
		!slices.Equal(got.MonitorUsers, []MonitorUser{{"ada", Secret(hash)}}) {
		t.Errorf("Load() = %+v", got)
	}
	if got.AppURL != "https://app.example" || !slices.Equal(got.ActionHosts, []string{"portal.example", "b.example:8443"}) {
		t.Errorf("AppURL = %q, ActionHosts = %q", got.AppURL, got.ActionHosts)
	}
	if got.PushKey == nil || got.PushKey.PublicKey() != push.PublicKey() || got.PushSubject != "mailto:ops@example.com" {
		t.Errorf("PushKey = %v, PushSubject = %q", got.PushKey, got.PushSubject)
	}
	if got.SMS == nil || got.SMS.From != "+15551234567" || got.SMS.AuthToken != "s3cret" {
		t.Errorf("SMS = %v", got.SMS)
	}
	for _, s := range got.Settings() {
		if strings.Contains(s.Value, "s3cret") || strings.Contains(s.Value, string(push.PrivateKey())) {
			t.Errorf("%s shows a secret: %s", s.Name, s.Value)
		}
		if s.Name == "SMTP_URL" && (s.Source != SourceSecretFile || s.Value != "smtps://<secret>:<secret>@smtp.example") {
			t.Errorf("SMTP_URL is shown as %+v", s)
		}
	}
}

func TestLoad_redis(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		env  []string
		want rediskit.Config
	}{
		{[]string{"REDIS_URL=rediss://alice:pw@redis/2"}, rediskit.Config{Addrs: []string{"redis:6379"}, Username: "alice", Password: "pw", DB: 2, TLS: true}},
		{[]string{"REDIS_URL=redis://alice:pw@redis", "REDIS_TLS=false"}, rediskit.Config{Addrs: []string{"redis:6379"}, Username: "alice", Password: "pw"}},
		{[]string{"REDIS_URL=redis://redis", "REDIS_USERNAME=alice", "REDIS_PASSWORD=pw"}, rediskit.Config{Addrs: []string{"redis:6379"}, Username: "alice", Password: "pw"}},
		{[]string{"REDIS_URL=redis://alice@redis", "REDIS_PASSWORD=pw"}, rediskit.Config{Addrs: []string{"redis:6379"}, Username: "alice", Password: "pw"}},
		{[]string{"REDIS_URL=redis://redis", "REDIS_PORT=tcp://10.0.0.1:6379"}, rediskit.Config{Addrs: []string{"redis:6379"}}},
		{[]string{"REDIS_URL=unix:///run/redis.sock"}, rediskit.Config{Addrs: []string{"/run/redis.sock"}}},
		{[]string{"REDIS_URL=", "REDIS_HOST=::1"}, rediskit.Config{Addrs: []string{"[::1]:6379"}}},
		{[]string{"REDIS_SENTINELS=a:1, b:2", "REDIS_MASTER_NAME=main", "REDIS_DB=1"}, rediskit.Config{Addrs: []string{"a:1", "b:2"}, Master: "main", DB: 1}},
		{[]string{"REDIS_CLUSTER=a:1,b:2", "REDIS_TLS=true"}, rediskit.Config{Addrs: []string{"a:1", "b:2"}, Cluster: true, TLS: true}},
	} {
		got, err := Load(tt.env, t.TempDir())
		if err != nil {
			t.Errorf("%v: %v", tt.env, err)
			continue
		}
		tt.want.Service = "postroom"
		if !reflect.DeepEqual(got.Redis, tt.want) {
			t.Errorf("%v: %#v, want %#v", tt.env, got.Redis, tt.want)
		}
	}
}

func TestConfig_Settings_showWhatIsInEffect(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ env, empty, shown string }{
		{"REDIS_URL=redis://redis/3|REDIS_PORT=tcp://10.0.0.1:6379", "REDIS_HOST REDIS_PORT REDIS_TLS REDIS_DB", "REDIS_URL"},
		{"REDIS_CLUSTER=a:1", "REDIS_HOST REDIS_PORT REDIS_URL", "REDIS_CLUSTER REDIS_TLS"},
		{"REDIS_HOST=redis", "REDIS_URL", "REDIS_HOST REDIS_PORT REDIS_TLS REDIS_DB"},
	} {
		c, err := Load(strings.Split(tt.env, "|"), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range c.Settings() {
			if slices.Contains(strings.Fields(tt.empty), s.Name) && s.Value != "" {
				t.Errorf("%s: %s is shown as %q, but has no effect", tt.env, s.Name, s.Value)
			}
			if slices.Contains(strings.Fields(tt.shown), s.Name) && s.Value == "" {
				t.Errorf("%s: %s is in effect, but not shown", tt.env, s.Name)
			}
		}
	}
}

func TestLoad_certificatesForTheCacheAlone(t *testing.T) {
	t.Parallel()
	dir := setup(t, map[string]string{"ca.pem": "x"})
	got, err := Load([]string{"REDIS_URL=redis://redis", "CACHE_REDIS_URL=rediss://cache", "REDIS_CA_FILE=ca.pem"}, dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.Redis.CAFile != "" || got.CacheRedis.CAFile != filepath.Join(dir, "ca.pem") {
		t.Errorf("CA files %q and %q", got.Redis.CAFile, got.CacheRedis.CAFile)
	}
}

func TestLoad_badValues(t *testing.T) {
	t.Parallel()
	dir := setup(t, map[string]string{"empty": "\n", "secret": "s3cret", "file": "x"})
	for _, tt := range []struct {
		env  string // entries separated by |
		name string // of the variable blamed
		want string
	}{
		{"SERVICE_NAME=Accounts Service", "SERVICE_NAME", `"Accounts Service"`},
		{"REDIS_URL=http://:s3cret@redis", "REDIS_URL", "rediss://"},
		{"REDIS_URL=redis://:s3cret/x@redis", "REDIS_URL", "percent-encoded"},
		{"REDIS_URL=rediss://redis|REDIS_TLS=false", "REDIS_TLS", "contradicts REDIS_URL"},
		{"REDIS_URL=redis://redis|REDIS_TLS=true", "REDIS_TLS", "contradicts REDIS_URL"},
		{"REDIS_URL=redis://redis/1|REDIS_DB=2", "REDIS_DB", "contradicts REDIS_URL"},
		{"REDIS_URL=redis://:s3cret@redis|REDIS_PASSWORD=s3cret2", "REDIS_PASSWORD", "contradicts REDIS_URL"},
		{"REDIS_URL=redis://redis|REDIS_HOST=redis", "REDIS_URL", "REDIS_HOST and REDIS_PORT"},
		{"REDIS_URL=redis://redis|REDIS_CLUSTER=a:1", "REDIS_URL", "REDIS_CLUSTER"},
		{"REDIS_HOST=redis://redis", "REDIS_HOST", "REDIS_URL"},
		{"REDIS_PORT=0", "REDIS_PORT", "1 to 65535"},
		{"REDIS_PORT=tcp://10.0.0.1:6379", "REDIS_PORT", "enableServiceLinks"},
		{"REDIS_HOST=redis|REDIS_PORT=tcp://10.0.0.1:6379", "REDIS_PORT", "enableServiceLinks"},
		{"REDIS_TLS=yes", "REDIS_TLS", "true or false"},
		{"REDIS_DB=one", "REDIS_DB", "whole number"},
		{"REDIS_USERNAME=alice", "REDIS_PASSWORD", "needs its password"},
		{"REDIS_URL=redis://alice@redis", "REDIS_PASSWORD", "needs its password"},
		{"CACHE_REDIS_URL=redis://alice@redis", "CACHE_REDIS_URL", "without a password"},
		{"REDIS_SENTINELS=a:1", "REDIS_MASTER_NAME", "is not set"},
		{"REDIS_SENTINELS=a|REDIS_MASTER_NAME=m", "REDIS_SENTINELS", "host:port"},
		{"REDIS_MASTER_NAME=m", "REDIS_MASTER_NAME", "REDIS_SENTINELS"},
		{"REDIS_CLUSTER=a:1|REDIS_DB=1", "REDIS_CLUSTER", "only database 0"},
		{"REDIS_CA_FILE=file", "REDIS_CA_FILE", "only with TLS"},
		{"REDIS_TLS=true|REDIS_CA_FILE=missing", "REDIS_CA_FILE", "no such file"},
		{"REDIS_TLS=true|REDIS_CERT_FILE=file", "REDIS_KEY_FILE", "both or neither"},
		{"REDIS_PASSWORD=s3cret|REDIS_PASSWORD_FILE=secret", "REDIS_PASSWORD", "set one of them"},
		{"REDIS_PASSWORD_FILE=missing", "REDIS_PASSWORD_FILE", "no such file"},
		{"REDIS_PASSWORD_FILE=empty", "REDIS_PASSWORD_FILE", "not empty"},
		{"CACHE_REDIS_URL=s3cret", "CACHE_REDIS_URL", "rediss://"},
		{"QUEUES=email:default=0", "QUEUES", "1 to 1000"},
		{"QUEUES=critical=3", "QUEUES", "begin with email:"},
		{"QUEUES=sms:default=3", "QUEUES", "there are no other jobs"},
		{"APP_URL=http://app.example", "APP_URL", "https://host"},
		{"APP_URL=https://user:s3cret@app.example", "APP_URL", "https://host"},
		{"ACTION_HOSTS=https://portal.example", "ACTION_HOSTS", "host names"},
		{"ACTION_HOSTS=portal.example,", "ACTION_HOSTS", "host names"},
		{"VAPID_SUBJECT=mailto:ops@example.com", "VAPID_PRIVATE_KEY", "go together"},
		{"VAPID_PRIVATE_KEY=s3cret", "VAPID_SUBJECT", "go together"},
		{"VAPID_PRIVATE_KEY=s3cret|VAPID_SUBJECT=mailto:ops@example.com", "VAPID_PRIVATE_KEY", "base64url"},
		{"VAPID_PRIVATE_KEY=s3cret|VAPID_SUBJECT=ftp://x", "VAPID_SUBJECT", "mailto:"},
		{"SMS_URL=twilio://s3cret", "SMS_URL", "twilio://"},
		{"QUEUES=email:default=1,email:default=2", "QUEUES", "twice"},
		{"QUEUES=email:default=1,", "QUEUES", "comma-separated"},
		{"QUEUES=staging:email:default|QUEUE_NAMESPACE=staging", "QUEUES", "leave QUEUE_NAMESPACE out"},
		{"QUEUE_NAMESPACE=staging:", "QUEUE_NAMESPACE", "lower-case"},
		{"STRICT_PRIORITY=1", "STRICT_PRIORITY", "true or false"},
		{"WORKER_CONCURRENCY=0", "WORKER_CONCURRENCY", "1 to 1000"},
		{"SHUTDOWN_TIMEOUT=30", "SHUTDOWN_TIMEOUT", "with its unit"},
		{"SHUTDOWN_TIMEOUT=2h", "SHUTDOWN_TIMEOUT", "from 1s to 1h"},
		{"SMTP_URL=http://user:s3cret@smtp", "SMTP_URL", "smtps://"},
		{"MAIL_FROM=MedicaLink", "MAIL_FROM", "one address"},
		{"TEMPLATES_DIR=missing", "TEMPLATES_DIR", "no such file"},
		{"TEMPLATES_DIR=file", "TEMPLATES_DIR", "want a directory"},
		{"DKIM_DOMAIN=medicalink.example", "DKIM_SELECTOR", "go together"},
		{"DKIM_DOMAIN=medicalink.example|DKIM_SELECTOR=s|DKIM_KEY_FILE=file", "DKIM_KEY_FILE", "PEM"},
		{"MONITOR_ADDR=8080", "MONITOR_ADDR", "host:port"},
		{"MONITOR_USERS=ada:s3cret", "MONITOR_USERS", "bcrypt"},
		{"LOG_LEVEL=verbose", "LOG_LEVEL", "debug or info or warn or error"},
		{"LOG_FORMAT=xml", "LOG_FORMAT", "json or text"},
		{"WORKER_CONCURENCY=5", "WORKER_CONCURENCY", "did you mean WORKER_CONCURRENCY?"},
		{"REDIS_PASWORD_FILE=secret", "REDIS_PASWORD_FILE", "did you mean REDIS_PASSWORD_FILE?"},
		{"QUEUE=email:default", "QUEUE", "did you mean QUEUES?"},
	} {
		_, err := Load(strings.Split(tt.env, "|"), dir)
		if err == nil {
			t.Errorf("%s: accepted", tt.env)
			continue
		}
		i := slices.IndexFunc(problems(t, err), func(e *Error) bool { return e.Name == tt.name })
		if i < 0 || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want an error of %s with %q", tt.env, err, tt.name, tt.want)
		}
		if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the secret is in: %v", tt.env, err)
		}
	}
}

func problems(t *testing.T, err error) []*Error {
	t.Helper()
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%T is not joined", err)
	}
	var list []*Error
	for _, err := range joined.Unwrap() {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			t.Fatalf("%T is not an *Error", err)
		}
		list = append(list, e)
	}
	return list
}

func TestLoad_allProblemsAtOnce(t *testing.T) {
	t.Parallel()
	dir := setup(t, map[string]string{".env": "LOG_LEVEL=loud\nREDIS_HOSTNAME=redis\n"})
	_, err := Load([]string{"WORKER_CONCURRENCY=many", "SMTP_URL=x", "QUEUES=x", "MAIL_FROM=x", "REDIS_DB=-1"}, dir)
	if err == nil {
		t.Fatal("no error")
	}
	var names []string
	for _, e := range problems(t, err) {
		names = append(names, e.Name)
	}
	slices.Sort(names)
	want := []string{"LOG_LEVEL", "MAIL_FROM", "QUEUES", "REDIS_DB", "REDIS_HOSTNAME", "SMTP_URL", "WORKER_CONCURRENCY"}
	if !slices.Equal(names, want) {
		t.Errorf("problems of %v, want %v:\n%v", names, want, err)
	}
	for _, text := range []string{`LOG_LEVEL (.env): "loud" is not accepted`, `WORKER_CONCURRENCY (env): "many" is not accepted`, "did you mean REDIS_HOST?"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q is missing in:\n%v", text, err)
		}
	}
}

func TestLoad_dotEnv(t *testing.T) {
	t.Parallel()
	dir := setup(t, map[string]string{
		".env":   "# a comment\nREDIS_HOST=from-file\nLOG_LEVEL=warn\nREDIS_PASSWORD='p$w #1'\nSMTP_URL=smtp://file.example\n",
		"secret": "smtp://env.example",
	})
	got, err := Load([]string{"REDIS_HOST=from-env", "LOG_LEVEL=", "SMTP_URL_FILE=secret"}, dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.Redis.Addrs[0] != "from-env:6379" || got.LogLevel != zerolog.WarnLevel || got.Redis.Password != "p$w #1" ||
		got.Mail.Providers[0].Host != "env.example" {
		t.Errorf("Load() = %+v", got)
	}
	sources := map[string]Source{}
	for _, s := range got.Settings() {
		sources[s.Name] = s.Source
	}
	for name, want := range map[string]Source{
		"REDIS_HOST": SourceEnv, "LOG_LEVEL": SourceFile, "REDIS_PORT": SourceDefault, "SMTP_URL": SourceSecretFile,
	} {
		if sources[name] != want {
			t.Errorf("%s comes from %q, want %q", name, sources[name], want)
		}
	}

	dir = setup(t, map[string]string{".env": "LOG_LEVEL=warn\n\nREDIS_PASSWORD s3cret\nLOG_FORMAT=json\n"})
	_, err = Load(nil, dir)
	if err == nil || !strings.Contains(err.Error(), "line 3") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a broken .env: %v, want line 3 and not its content", err)
	}
}

// Kubernetes sets these for Services named redis, monitor, smtp and log.
func TestLoad_toleratesForeignNames(t *testing.T) {
	t.Parallel()
	env := []string{"PATH=/bin", "HOME=/root", "REDIS_URL=redis://redis", "LOGNAME=root", "MAIL=/var/mail/root"}
	for _, service := range []string{"REDIS", "MONITOR", "SMTP", "LOG", "WORKER", "MAIL", "CACHE_REDIS", "REDIS_MASTER", "QUEUE"} {
		env = append(env,
			service+"_SERVICE_HOST=10.0.0.1", service+"_SERVICE_PORT=6379", service+"_SERVICE_PORT_TCP=6379",
			service+"_PORT=tcp://10.0.0.1:6379", service+"_PORT_6379_TCP=tcp://10.0.0.1:6379",
			service+"_PORT_6379_TCP_PROTO=tcp", service+"_PORT_6379_TCP_PORT=6379", service+"_PORT_6379_TCP_ADDR=10.0.0.1",
		)
	}
	if _, err := Load(env, t.TempDir()); err != nil {
		t.Error(err)
	}
}

// Whatever is put into the secret variables, and whether it is accepted or not,
// it is not printed.
func TestLoad_neverPrintsASecret(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const marker = "s3cret"
	secret := rapid.Custom(func(t *rapid.T) string {
		alphabet := rapid.SampledFrom([]string{"/", "#", "@", ":", "?", "%", ",", "a", "1", "&", "=", ".", " ", "$"})
		return strings.Join(rapid.SliceOfN(alphabet, 0, 4).Draw(t, "before"), "") + marker +
			strings.Join(rapid.SliceOfN(alphabet, 0, 4).Draw(t, "after"), "")
	})
	form := rapid.SampledFrom([]string{"%s", "redis://:%s@redis", "rediss://u:%s@redis:1/2", "redis://redis/%s", "smtp://u:%s@smtp", "smtps://%s:x@smtp", "unix://u:%s@/run/redis.sock", "ada:%s"})
	rapid.Check(t, func(t *rapid.T) {
		var env []string
		for _, v := range Reference() {
			if v.Secret && rapid.Bool().Draw(t, "set") {
				env = append(env, v.Name+"="+fmt.Sprintf(form.Draw(t, "form"), secret.Draw(t, "secret")))
			}
		}
		c, err := Load(env, dir)
		printed := fmt.Sprint(err)
		if err == nil {
			asJSON, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			printed = fmt.Sprintf("%v %+v %#v %s %v %+v %s %v", c, c, c, c, &c, struct{ C Config }{c}, asJSON, c.Settings())
		}
		if strings.Contains(printed, marker) {
			t.Errorf("%q: the secret is in: %s", env, printed)
		}
	})
}

func TestReference_isWhatLoadReads(t *testing.T) {
	t.Parallel()
	c, err := Load(nil, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range Reference() {
		if s := c.settings[i]; s.Name != v.Name {
			t.Errorf("%s is in the reference, but Load does not read it", v.Name)
		}
		if !strings.Contains(Table(), "`"+v.Name+"`") || v.Doc == "" || (v.Default == "") == (v.Example == "") {
			t.Errorf("%s needs a text and either a default or an example", v.Name)
		}
	}
}

// .env.example is generated: go test ./config -update. With every line
// uncommented it is a file that Load understands.
func TestExample_isEnvExample(t *testing.T) {
	t.Parallel()
	const file = "../.env.example"
	if *update {
		if err := os.WriteFile(file, []byte(Example()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != Example() {
		t.Error(".env.example is out of date: run go test ./config -update")
	}
	var uncommented []string
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "#"); ok && !strings.HasPrefix(rest, " ") {
			uncommented = append(uncommented, rest)
		}
	}
	if len(uncommented) != len(Reference()) {
		t.Errorf("%d variables in .env.example, want %d", len(uncommented), len(Reference()))
	}
	dir := setup(t, map[string]string{".env": strings.Join(uncommented, "")})
	_, err = Load(nil, dir)
	for _, e := range problems(t, err) {
		switch {
		case strings.HasPrefix(e.Name, "REDIS_"): // its examples exclude each other
		case strings.Contains(e.Want, "no such file"): // its examples are paths
		default:
			t.Errorf("the example of %s is not accepted: %v", e.Name, e)
		}
	}
}
