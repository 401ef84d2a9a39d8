package config

import (
	"fmt"
	"strings"
)

// Variable describes one environment variable.
type Variable struct {
	Name    string
	Default string
	// Example is shown in .env.example where there is no default.
	Example string
	// Secret values are masked, and can be given as Name_FILE.
	Secret bool
	Doc    string
}

// Reference lists every variable that [Load] reads, in the order of the manual.
func Reference() []Variable {
	return []Variable{
		{
			Name: "SERVICE_NAME", Default: "postroom",
			Doc: "Name of this program in job headers, logs and Redis' client list, and the prefix of its keys: lower-case letters, digits, - and _. Services set their own.",
		},

		{
			Name: "REDIS_URL", Secret: true, Example: "rediss://user:password@redis.example:6379/0",
			Doc: "The Redis of the queues: redis:// is plain, rediss:// TLS, unix:// a socket. Instead of REDIS_HOST and REDIS_PORT. Special characters in user and password are percent-encoded.",
		},
		{Name: "REDIS_HOST", Default: "127.0.0.1", Doc: "Host of a single Redis server."},
		{Name: "REDIS_PORT", Default: "6379", Doc: "Port of a single Redis server."},
		{Name: "REDIS_USERNAME", Example: "postroom", Doc: "ACL user; without it the server's user default."},
		{Name: "REDIS_PASSWORD", Secret: true, Example: "change-me", Doc: "Password, as it is, without percent-encoding."},
		{Name: "REDIS_TLS", Default: "false", Doc: "true encrypts with TLS 1.2 or newer. With REDIS_URL its scheme decides, and the opposite here is an error."},
		{Name: "REDIS_DB", Default: "0", Doc: "Database number. A cluster has only 0."},
		{Name: "REDIS_SENTINELS", Example: "sentinel-1:26379,sentinel-2:26379,sentinel-3:26379", Doc: "Addresses of sentinels, instead of REDIS_URL and REDIS_HOST. Needs REDIS_MASTER_NAME."},
		{Name: "REDIS_MASTER_NAME", Example: "postroom", Doc: "Name of the master that the sentinels watch."},
		{Name: "REDIS_SENTINEL_USERNAME", Example: "postroom", Doc: "ACL user of the sentinels, which have users of their own: REDIS_USERNAME and REDIS_PASSWORD are never sent to them."},
		{Name: "REDIS_SENTINEL_PASSWORD", Secret: true, Example: "change-me", Doc: "Password of the sentinels, as it is, without percent-encoding."},
		{Name: "REDIS_CLUSTER", Example: "redis-1:6379,redis-2:6379,redis-3:6379", Doc: "Addresses of some nodes of a Redis Cluster, instead of REDIS_URL and REDIS_HOST."},
		{Name: "REDIS_CA_FILE", Example: "/etc/postroom/redis-ca.pem", Doc: "PEM file of the authorities that may sign the server's certificate, instead of the system's. Needs TLS."},
		{Name: "REDIS_CERT_FILE", Example: "/etc/postroom/redis-client.pem", Doc: "PEM file of the client certificate; read again for each connection. Needs TLS and REDIS_KEY_FILE."},
		{Name: "REDIS_KEY_FILE", Example: "/etc/postroom/redis-client.key", Doc: "PEM file of the client certificate's key."},
		{Name: "REDIS_SERVER_NAME", Example: "redis.example", Doc: "Name that the server's certificate must be for, where the address is an IP or a tunnel. Needs TLS."},
		{Name: "REDIS_POOL_SIZE", Example: "20", Doc: "Greatest number of connections of one pool to one server (of a cluster: to each node), 1 to 10000. Without it 10 for each CPU. A program has several pools: commands, publishing, subscribing, and two for the worker."},
		{Name: "REDIS_ALLOW_EVICTION", Default: "false", Doc: "true accepts a server whose maxmemory-policy is not noeviction: it deletes queued jobs when its memory is short. Without it worker run and worker check refuse such a server."},
		{
			Name: "CACHE_REDIS_URL", Secret: true, Example: "redis://cache.example:6379/0",
			Doc: "A second Redis for cache and rate limits, which may evict keys. Without it they share the Redis of the queues. With rediss:// the REDIS_..._FILE certificates are used too.",
		},

		{
			Name: "QUEUES", Default: "email:critical=6,email:default=3,email:bulk=1,notification:critical=6,notification:default=3,notification:bulk=1",
			Doc: "Queues to consume and their weights (1 to 1000): with 6, 3 and 1 a full bulk queue gets every tenth job of its kind. Names begin with email: or notification: and do not repeat the namespace. A worker can serve one kind only.",
		},
		{Name: "STRICT_PRIORITY", Default: "false", Doc: "true empties a heavier queue before a lighter one is looked at: bulk mail then waits as long as critical mail keeps coming."},
		{Name: "QUEUE_NAMESPACE", Example: "staging", Doc: "Put in front of every queue name (staging:email:default), so that environments can share a Redis. Producers and workers need the same."},
		{
			Name: "WORKER_CONCURRENCY", Default: "20",
			Doc: "Jobs that run at once in this process, 1 to 1000. Delivering mail is waiting for the provider, not computing: 20 keep the 10 connections per provider busy while others render or wait for Redis. More costs memory (up to 10 MiB of attachments each); the limit that matters is the provider's.",
		},
		{
			Name: "SHUTDOWN_TIMEOUT", Default: "30s",
			Doc: "How long running jobs may finish after SIGTERM before they are handed back, 1s to 1h. The container's grace period must be at least 15 s longer.",
		},

		{
			Name: "SMTP_URL", Secret: true, Example: "smtp://user:password@smtp.example:587",
			Doc: "SMTP providers, comma-separated and tried in order: smtp:// (STARTTLS) or smtps:// (TLS). Special characters in user and password are percent-encoded. Needed by worker run and worker check.",
		},
		{Name: "MAIL_FROM", Example: "MedicaLink <no-reply@medicalink.example>", Doc: "Sender of messages that name none. Needed by worker run and worker check."},
		{
			Name: "APP_URL", Example: "https://app.medicalink.example",
			Doc: "Address of the platform's pages: notifications lead to paths below it. Without it they carry no link outside the app.",
		},
		{Name: "ACTION_HOSTS", Example: "portal.medicalink.example", Doc: "Further hosts, comma-separated, that a notification may lead to; all others are refused, so that nobody who can enqueue can phish."},
		{
			Name: "VAPID_PRIVATE_KEY", Secret: true, Example: "yI_v2JP8Dp1wwjYlsWCgHqgIrPUZ3CHp0ftcEAyeOGQ",
			Doc: "Key for Web Push (RFC 8292), base64url or PEM; worker push-key makes one. Browsers subscribe with its public part: changing it ends every subscription. Without it there is no channel push.",
		},
		{Name: "VAPID_SUBJECT", Example: "mailto:operations@medicalink.example", Doc: "Where push services reach you when something is wrong: a mailto: or https: address. Goes with VAPID_PRIVATE_KEY. Hosts such as localhost are refused: a push service answers 403 to them."},
		{
			Name: "SMS_URL", Secret: true, Example: "twilio://AC00000000000000000000000000000000:AUTH_TOKEN@api.twilio.com?from=%2B15551234567",
			Doc: "Account of the SMS gateway (Twilio's Messages API), with from=NUMBER or service=MESSAGING_SERVICE_SID. Special characters in the token are percent-encoded. Without it there is no channel sms.",
		},
		{Name: "TEMPLATES_DIR", Example: "/etc/postroom/templates", Doc: "Directory of templates that replace or add to the built-in ones."},
		{Name: "DKIM_DOMAIN", Example: "medicalink.example", Doc: "Domain that signs messages. The three DKIM variables go together; without them signing is left to the provider."},
		{Name: "DKIM_SELECTOR", Example: "postroom2026", Doc: "Selector: the public key is in DNS at SELECTOR._domainkey.DOMAIN."},
		{Name: "DKIM_KEY_FILE", Example: "/etc/postroom/dkim.pem", Doc: "PEM file of the private key, RSA (2048 bits or more) or Ed25519."},

		{Name: "MONITOR_ADDR", Default: "127.0.0.1:8080", Doc: "host:port of dashboard and health. This version has no login, so only a loopback address is accepted."},
		{
			Name: "MONITOR_USERS", Secret: true, Example: "'ada:$2y$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234'",
			Doc: "Users of the dashboard, comma-separated name:bcrypt-hash as htpasswd -nB prints them; in .env between single quotes because of the $. Only checked by this version: its dashboard has no login yet.",
		},

		{Name: "LOG_LEVEL", Default: "info", Doc: "debug, info, warn or error."},
		{Name: "LOG_FORMAT", Default: "json", Doc: "json, or text for people."},
	}
}

// Example returns the text of .env.example: every variable, commented out, with
// its default or an example.
func Example() string {
	var b strings.Builder
	b.WriteString("# Settings of postroom. Copy this file to .env and uncomment what you change;\n" +
		"# the environment wins over .env. A secret NAME can also be given as NAME_FILE,\n" +
		"# the path of a file that holds it.\n")
	for _, v := range Reference() {
		b.WriteString("\n")
		for _, line := range wrap(v.Doc, 78) {
			b.WriteString("# " + line + "\n")
		}
		value := v.Default
		if value == "" {
			value = v.Example
			if strings.ContainsAny(value, " <") {
				value = `"` + value + `"`
			}
		}
		b.WriteString("#" + v.Name + "=" + value + "\n")
	}
	return b.String()
}

// Table returns the variables as a Markdown table, for the manual.
func Table() string {
	var b strings.Builder
	b.WriteString("| Variable | Default | Meaning |\n|---|---|---|\n")
	for _, v := range Reference() {
		name, def := "`"+v.Name+"`", ""
		if v.Secret {
			name += " (or `" + v.Name + "_FILE`)"
		}
		if v.Default != "" {
			def = "`" + v.Default + "`"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, def, strings.ReplaceAll(v.Doc, "|", `\|`))
	}
	return b.String()
}

func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
