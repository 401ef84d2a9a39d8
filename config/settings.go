package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// Setting is one variable as it is in effect.
type Setting struct {
	Name   string `json:"name"`
	Value  string `json:"value"` // secrets masked; "" is not set
	Source Source `json:"source"`
}

// Settings lists every variable in the order of [Reference], with secrets
// masked; of a URL with a password the rest is shown.
func (c Config) Settings() []Setting { return slices.Clone(c.settings) }

// Format prints the settings, secrets masked, for every verb.
func (c Config) Format(w fmt.State, _ rune) {
	for _, s := range c.settings {
		_, _ = fmt.Fprintf(w, "%s=%s\n", s.Name, s.Value)
	}
}

// MarshalJSON writes the settings, secrets masked.
func (c Config) MarshalJSON() ([]byte, error) {
	data, err := json.Marshal(c.settings)
	if err != nil {
		return nil, fmt.Errorf("encode settings: %w", err)
	}
	return data, nil
}

// maskURLs hides user and password of comma-separated URLs and leaves what helps
// to find a mistake: scheme, Redis user, host, path. SMTP users are hidden,
// because some providers use their token for both.
func maskURLs(value string) string {
	urls := strings.Split(value, ",")
	for i, raw := range urls {
		u, err := url.Parse(strings.TrimSpace(raw))
		if err != nil || u.Host == "" && u.Scheme != "unix" || u.Fragment != "" || strings.Contains(u.Path+u.RawQuery, "@") {
			return masked // not a URL, or a password where none is expected
		}
		login := ""
		if u.User != nil {
			if user := u.User.Username(); user != "" {
				login = masked
				if !strings.HasPrefix(u.Scheme, "smtp") {
					login = url.User(user).String()
				}
			}
			if _, ok := u.User.Password(); ok {
				login += ":" + masked
			}
			login += "@"
		}
		u.User = nil
		urls[i] = strings.Replace(u.String(), "://", "://"+login, 1)
	}
	return strings.Join(urls, ",")
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
