package mailer

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestParseProviders(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in   string
		want []Provider
	}{
		{"smtp://mail.example.com", []Provider{{Name: "mail.example.com", Host: "mail.example.com", Port: 587, TLS: TLSMandatory}}},
		{"smtps://mail.example.com", []Provider{{Name: "mail.example.com", Host: "mail.example.com", Port: 465, TLS: TLSImplicit}}},
		{"smtp://u:p@mail.example.com:2525/", []Provider{{Name: "mail.example.com", Host: "mail.example.com", Port: 2525, Username: "u", Password: "p", TLS: TLSMandatory}}},
		{"smtp://u%40x.example:p%3A%2F%40%23%2C%25@h", []Provider{{Name: "h", Host: "h", Port: 587, Username: "u@x.example", Password: "p:/@#,%", TLS: TLSMandatory}}},
		{"smtp://localhost", []Provider{{Name: "localhost", Host: "localhost", Port: 587, TLS: TLSOpportunistic}}},
		{"smtp://127.0.0.1:1025", []Provider{{Name: "127.0.0.1", Host: "127.0.0.1", Port: 1025, TLS: TLSOpportunistic}}},
		{"smtp://[::1]:1025", []Provider{{Name: "::1", Host: "::1", Port: 1025, TLS: TLSOpportunistic}}},
		{"smtp://localhost?tls=mandatory", []Provider{{Name: "localhost", Host: "localhost", Port: 587, TLS: TLSMandatory}}},
		{"smtp://h?tls=none", []Provider{{Name: "h", Host: "h", Port: 587, TLS: TLSNone}}},
		{"smtp://h?conns=20&ca=/etc/ca.pem&auth=login&name=relay", []Provider{{Name: "relay", Host: "h", Port: 587, TLS: TLSMandatory, MaxConns: 20, CAFile: "/etc/ca.pem", Auth: "LOGIN"}}},
		{" smtp://a , smtps://b ", []Provider{{Name: "a", Host: "a", Port: 587, TLS: TLSMandatory}, {Name: "b", Host: "b", Port: 465, TLS: TLSImplicit}}},
		{"smtp://a:1,smtp://a:2", []Provider{{Name: "a:1", Host: "a", Port: 1, TLS: TLSMandatory}, {Name: "a:2", Host: "a", Port: 2, TLS: TLSMandatory}}},
	} {
		got, err := ParseProviders(tt.in)
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s:\n got %v\nwant %v", tt.in, got, tt.want)
		}
		if _, err := New(Config{Providers: got}); err != nil && !strings.Contains(err.Error(), "/etc/ca.pem") {
			t.Errorf("%s: New: %v", tt.in, err)
		}
	}
}

func TestParseProviders_refuses(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                     "is empty",
		"smtp://h,":                            "SMTP URL 2: is empty",
		"mail.example.com":                     "unknown scheme",
		"http://u:canary@h":                    "unknown scheme",
		"smtp://u:can%ary@h":                   "percent-escaped",
		"smtp://u:canary@":                     "no host",
		"smtp:u:canary@h":                      "no host",
		"smtp://u:canary@h_h..x":               "invalid host",
		"smtp://u:canary@h:0":                  "invalid port",
		"smtp://u:canary@h:99999":              "invalid port",
		"smtp://u:canary@h:x":                  "cannot be parsed",
		"smtp://u:canary@h/path":               "path",
		"smtp://u:canary@h#x":                  "fragment",
		"smtp://u@h":                           "user without a password",
		"smtp://:canary@h":                     "password without a user",
		"smtp://u:canary%0a@h":                 "control character",
		"smtp://u:canary@h?tls=maybe":          "tls parameter",
		"smtps://u:canary@h?tls=none":          "tls parameter",
		"smtp://u:canary@h?conns=0":            "conns",
		"smtp://u:canary@h?conns=canary":       "conns",
		"smtp://u:canary@h?auth=canary":        "auth",
		"smtp://u:canary@h?nope=canary":        "unknown parameter",
		"smtp://u:canary@h?name=a%20b":         "name",
		"smtp://u:canary@h?conns=1&conns=2":    "repeated",
		"smtp://u:canary@h?tls=":               "empty",
		"smtp://u:canary@h?%zz":                "malformed",
		"smtp://a:1,smtp://a:1":                "names the same provider",
		"smtp://u:canary@h:0,smtp://v:canary@": "SMTP URL 2",
	} {
		_, err := ParseProviders(in)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
			continue
		}
		if strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: the error repeats the password: %v", in, err)
		}
	}
}

func TestProvider_hidesPassword(t *testing.T) {
	t.Parallel()
	p, err := ParseProviders("smtp://user:canary@h")
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(p), fmt.Sprintf("%+v", p[0]), fmt.Sprintf("%#v", p[0]), fmt.Sprintf("%v", Config{Providers: p}), string(encoded)} {
		if strings.Contains(s, "canary") {
			t.Errorf("password in %s", s)
		}
	}
}

func FuzzParseProviders(f *testing.F) {
	for _, s := range []string{"smtp://u:p@h:25?tls=none&conns=3", "smtps://a,smtp://[::1]", "smtp://%41:%42@h", ",", "smtp://u:p@@h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := ParseProviders(s)
		if err != nil {
			return
		}
		names := map[string]bool{}
		for _, p := range list {
			if p.Name == "" || names[p.Name] || p.Host == "" || p.Port < 1 || p.Port > 65535 || (p.Username == "") != (p.Password == "") {
				t.Fatalf("%q gives %v", s, p)
			}
			names[p.Name] = true
			if err := p.setDefaults(10); err != nil && !strings.Contains(err.Error(), "password in clear") {
				t.Fatalf("%q gives %v, which New refuses: %v", s, p, err)
			}
		}
	})
}
