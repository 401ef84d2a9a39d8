package config

import (
	"errors"
	"strings"

	"github.com/medicalink/postroom/rediskit"
)

// redis hands the variables, wherever they were found, to rediskit, which reads
// them for services in the same way.
func (r *reader) redis() (queues, cache rediskit.Config) {
	files := map[string]string{}
	for _, name := range []string{"REDIS_CA_FILE", "REDIS_CERT_FILE", "REDIS_KEY_FILE"} {
		files[name] = r.filePath(name, false)
	}
	var environ []string
	for _, v := range r.known {
		if v.Name != "SERVICE_NAME" && v.Name != "CACHE_REDIS_URL" && !strings.HasPrefix(v.Name, "REDIS_") {
			continue
		}
		value := r.text(v.Name)
		if path, ok := files[v.Name]; ok {
			value = path
		}
		if r.isSet(v.Name) || v.Name == "SERVICE_NAME" {
			environ = append(environ, v.Name+"="+value)
		}
	}
	queues, err := rediskit.FromEnv(environ)
	if err == nil {
		cache, err = rediskit.CacheFromEnv(environ)
	}
	r.adopt(err)
	r.hideUnused()
	return queues, cache
}

// adopt adds where the variables were found.
func (r *reader) adopt(err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			r.adopt(err)
		}
		return
	}
	if e, ok := errors.AsType[*rediskit.EnvError](err); ok {
		r.problem(e.Name, r.settings[e.Name].Source, e.Got, e.Want)
	}
}

// hideUnused empties settings that have no effect next to the chosen way to say
// where Redis is.
func (r *reader) hideUnused() {
	var names []string
	switch {
	case r.isSet("REDIS_URL"):
		names = []string{"REDIS_HOST", "REDIS_PORT", "REDIS_TLS", "REDIS_DB"}
	case r.isSet("REDIS_SENTINELS"), r.isSet("REDIS_CLUSTER"):
		names = []string{"REDIS_HOST", "REDIS_PORT"}
	}
	for _, name := range names {
		r.settings[name] = Setting{Name: name, Source: SourceDefault}
	}
}
