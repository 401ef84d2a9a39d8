package sms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/egress"
	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/exchange"
	"github.com/medicalink/postroom/rediskit"
)

const (
	testAccount = "AC0123456789abcdef0123456789abcdef"
	testToken   = "the/token"
	testService = "MG0123456789abcdef0123456789abcdef"
	testNumber  = "+4930123456"
)

// fakeTwilio is the Messages API: it checks what a client says as the API does, and
// answers in its words.
type fakeTwilio struct {
	*httptest.Server
	mu     sync.Mutex
	forms  []url.Values
	answer func(w http.ResponseWriter) // nil takes the message
}

func newFake(t *testing.T) *fakeTwilio {
	t.Helper()
	f := &fakeTwilio{}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.Close)
	return f
}

// refuse writes an error as the API does; its message repeats the number.
func refuse(w http.ResponseWriter, status, code int) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Retry-After", "7")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"code": code, "message": "about " + testNumber, "status": status,
		"more_info": fmt.Sprintf("https://www.twilio.com/docs/errors/%d", code),
	})
}

func (f *fakeTwilio) serve(w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	if user != testAccount || password != testToken {
		refuse(w, http.StatusUnauthorized, 20003)
		return
	}
	if r.URL.Path != "/2010-04-01/Accounts/"+testAccount+"/Messages.json" {
		refuse(w, http.StatusNotFound, 20404)
		return
	}
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
		refuse(w, http.StatusMethodNotAllowed, 20004)
		return
	}
	if err := r.ParseForm(); err != nil {
		refuse(w, http.StatusBadRequest, 20001)
		return
	}
	form := r.PostForm
	f.mu.Lock()
	f.forms = append(f.forms, form)
	answer := f.answer
	f.mu.Unlock()
	if answer != nil {
		answer(w)
		return
	}
	switch {
	case form.Get("To") == "":
		refuse(w, http.StatusBadRequest, 21604)
	case form.Get("From") == "" && form.Get("MessagingServiceSid") == "":
		refuse(w, http.StatusBadRequest, 21603)
	case form.Get("Body") == "":
		refuse(w, http.StatusBadRequest, 21602)
	default:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = fmt.Fprintf(w, `{"sid":"SM0123456789abcdef0123456789abcdef","account_sid":%q,"to":%q,"from":%q,"body":%q,`+
			`"status":"queued","num_segments":"1","direction":"outbound-api","price":null,"error_code":null,"error_message":null}`,
			testAccount, form.Get("To"), form.Get("From"), form.Get("Body"))
	}
}

func (f *fakeTwilio) taken() []url.Values {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.forms
}

func (f *fakeTwilio) answers(answer func(w http.ResponseWriter)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = answer
}

// channel is one that sends to the fake, as the URL says.
func (f *fakeTwilio) channel(t *testing.T, query string) *Channel {
	t.Helper()
	raw := "twilio+http://" + testAccount + ":" + url.QueryEscape(testToken) + "@" + strings.TrimPrefix(f.URL, "http://") + query
	cfg, err := ParseURL(rediskit.Secret(raw))
	if err != nil {
		t.Fatal(err)
	}
	client, err := egress.New(egress.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	provider, err := NewTwilio(cfg, client)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(provider)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func message() *notifier.Message {
	return &notifier.Message{
		ID: "0198c7a2-52a1-7b3c-9d5e-2f6a8b1c3d4e", Target: testNumber, User: "u-1", Kind: "visit.moved",
		Title: "Your visit has moved", Body: "Grüße & bis bald = 9+1", Action: "https://app.example/visits/7?a=b",
	}
}

func wantFault(t *testing.T, err error, fault notifier.Fault, reason string) {
	t.Helper()
	e, ok := errors.AsType[*notifier.Error](err)
	if !ok || e.Fault != fault || e.Reason != reason || !slices.Contains(Reasons(), reason) {
		t.Fatalf("got %v, want %v %s", err, fault, reason)
	}
	for _, secret := range []string{testNumber, "30123456", testToken, testAccount, "127.0.0.1", "visit"} {
		if strings.Contains(e.Error(), secret) {
			t.Errorf("the error shows %q: %v", secret, e)
		}
	}
}

func TestChannel_Deliver(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	if err := f.channel(t, "?from=+15551234567").Deliver(t.Context(), message()); err != nil {
		t.Fatal(err)
	}
	if err := f.channel(t, "?service="+testService).Deliver(t.Context(), message()); err != nil {
		t.Fatal(err)
	}
	body := "Your visit has moved\nGrüße & bis bald = 9+1\nhttps://app.example/visits/7?a=b"
	for i, want := range []url.Values{
		{"To": {testNumber}, "From": {"+15551234567"}, "Body": {body}},
		{"To": {testNumber}, "MessagingServiceSid": {testService}, "Body": {body}},
	} {
		if got := f.taken()[i]; got.Encode() != want.Encode() {
			t.Errorf("got %v\nwant %v", got, want)
		}
	}
}

func TestChannel_Deliver_refuses(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	c := f.channel(t, "?from=+15551234567")
	for _, number := range []string{"", "030123456", "+0301234567", "+49 30 123456", "+49301", "+4930123456789012", "whatsapp:+4930123456"} {
		m := message()
		m.Target = number
		wantFault(t, c.Deliver(t.Context(), m), notifier.Permanent, ReasonNumber)
	}
	if n := len(f.taken()); n != 0 {
		t.Errorf("%d were sent", n)
	}
}

func TestChannel_Deliver_answers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status, code int
		fault        notifier.Fault
		reason       string
		after        time.Duration
	}{
		{400, 21211, notifier.Permanent, ReasonNumber, 0},
		{400, 21614, notifier.Permanent, ReasonNumber, 0},
		{400, 21610, notifier.Permanent, ReasonUnsubscribed, 0},
		{400, 21408, notifier.Permanent, ReasonBlocked, 0},
		{400, 21617, notifier.Permanent, exchange.ReasonTooLarge, 0},
		{400, 21606, notifier.Held, ReasonSender, 7 * time.Second},
		{401, 20003, notifier.Held, ReasonAccount, 7 * time.Second},
		{403, 20005, notifier.Held, ReasonAccount, 7 * time.Second},
		{404, 20404, notifier.Held, ReasonAccount, 7 * time.Second},
		{429, 20429, notifier.Held, exchange.ReasonRateLimited, 7 * time.Second},
		{400, 30001, notifier.Temporary, exchange.ReasonServerError, 7 * time.Second},
		{503, 20503, notifier.Temporary, exchange.ReasonServerError, 7 * time.Second},
		// Codes that are not known yet: the status decides.
		{400, 29999, notifier.Permanent, exchange.ReasonRejected, 0},
		{401, 29999, notifier.Held, ReasonAccount, 0},
		{403, 29999, notifier.Held, ReasonAccount, 0},
		{429, 29999, notifier.Held, exchange.ReasonRateLimited, 7 * time.Second},
		{500, 29999, notifier.Temporary, exchange.ReasonServerError, 7 * time.Second},
	} {
		t.Run(fmt.Sprint(tt.status, " ", tt.code), func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.answers(func(w http.ResponseWriter) { refuse(w, tt.status, tt.code) })
			err := f.channel(t, "?from=+15551234567").Deliver(t.Context(), message())
			wantFault(t, err, tt.fault, tt.reason)
			if e, _ := errors.AsType[*notifier.Error](err); e.After != tt.after || e.Code != tt.status {
				t.Errorf("after %v, code %d", e.After, e.Code)
			}
		})
	}
}

// What comes back is not always what the manual says.
func TestChannel_Deliver_oddAnswers(t *testing.T) {
	t.Parallel()
	say := func(status int, body string) func(w http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	for name, tt := range map[string]struct {
		answer func(w http.ResponseWriter)
		fault  notifier.Fault
		reason string
	}{
		"taken, no JSON":         {answer: say(201, "<html>")},
		"taken, nothing":         {answer: say(200, "")},
		"taken, other types":     {answer: say(201, `{"status":7,"error_code":"x"}`)},
		"taken, but undelivered": {say(201, `{"sid":"SM1","status":"undelivered","error_code":30006}`), notifier.Permanent, ReasonNumber},
		"taken, but failed":      {say(201, `{"sid":"SM1","status":"failed","error_code":null}`), notifier.Permanent, exchange.ReasonRejected},
		"a proxy's page":         {say(502, "<html>"), notifier.Temporary, exchange.ReasonServerError},
		"a redirect":             {say(302, ""), notifier.Permanent, exchange.ReasonRedirected},
		"no answer":              {func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, notifier.Unknown, exchange.ReasonNoAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.answers(tt.answer)
			err := f.channel(t, "?from=+15551234567").Deliver(t.Context(), message())
			if tt.reason == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantFault(t, err, tt.fault, tt.reason)
			if n := len(f.taken()); n != 1 {
				t.Errorf("asked %d times", n)
			}
		})
	}
}

func TestChannel_Deliver_noConnection(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	c := f.channel(t, "?from=+15551234567")
	over, cancel := context.WithCancel(t.Context())
	cancel()
	wantFault(t, c.Deliver(over, message()), notifier.Held, "canceled")
	f.Close()
	wantFault(t, c.Deliver(t.Context(), message()), notifier.Temporary, "connect")
}

func TestParseURL(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]Config{
		"twilio://" + testAccount + ":tok%2Fen@api.twilio.com?from=+15551234567": {
			AccountSID: testAccount, AuthToken: "tok/en", From: "+15551234567", Host: "api.twilio.com",
		},
		"twilio://" + testAccount + ":t@api.twilio.com/?from=%2B15551234567":      {AccountSID: testAccount, AuthToken: "t", From: "+15551234567", Host: "api.twilio.com"},
		"twilio://" + testAccount + ":t@api.dublin.ie1.twilio.com?from=My+Clinic": {AccountSID: testAccount, AuthToken: "t", From: "My Clinic", Host: "api.dublin.ie1.twilio.com"},
		"twilio://" + testAccount + ":t@api.twilio.com?from=12345":                {AccountSID: testAccount, AuthToken: "t", From: "12345", Host: "api.twilio.com"},
		"twilio://" + testAccount + ":t@api.twilio.com?service=" + testService:    {AccountSID: testAccount, AuthToken: "t", Service: testService, Host: "api.twilio.com"},
		"twilio+http://" + testAccount + ":t@127.0.0.1:8080?from=+15551234567":    {AccountSID: testAccount, AuthToken: "t", From: "+15551234567", Host: "127.0.0.1:8080", Plain: true},
		"twilio+http://" + testAccount + ":t@[::1]:8080?from=+15551234567":        {AccountSID: testAccount, AuthToken: "t", From: "+15551234567", Host: "[::1]:8080", Plain: true},
		"TWILIO://" + testAccount + ":t@api.twilio.com?service=" + testService:    {AccountSID: testAccount, AuthToken: "t", Service: testService, Host: "api.twilio.com"},
	} {
		got, err := ParseURL(rediskit.Secret(raw))
		if err != nil || got != want {
			t.Errorf("%s: %v", raw, err)
		}
	}
	account := testAccount + ":the-token"
	for name, raw := range map[string]string{
		"nothing":             "",
		"no URL":              "twilio://" + account + "@[::1?from=+15551234567",
		"another provider":    "vonage://" + account + "@api.vonage.com?from=+15551234567",
		"https":               "https://" + account + "@api.twilio.com?from=+15551234567",
		"no account":          "twilio://api.twilio.com?from=+15551234567",
		"not an account":      "twilio://SK0123456789abcdef0123456789abcdef:the-token@api.twilio.com?from=+15551234567",
		"no token":            "twilio://" + testAccount + "@api.twilio.com?from=+15551234567",
		"no sender":           "twilio://" + account + "@api.twilio.com",
		"two senders":         "twilio://" + account + "@api.twilio.com?from=+15551234567&from=12345",
		"sender and service":  "twilio://" + account + "@api.twilio.com?from=+15551234567&service=" + testService,
		"a long name":         "twilio://" + account + "@api.twilio.com?from=A+Hospital+Name",
		"not a service":       "twilio://" + account + "@api.twilio.com?service=MG1",
		"an unknown name":     "twilio://" + account + "@api.twilio.com?form=+15551234567",
		"a broken query":      "twilio://" + account + "@api.twilio.com?from=%zz",
		"a path":              "twilio://" + account + "@api.twilio.com/v1?from=+15551234567",
		"a fragment":          "twilio://" + account + "@api.twilio.com?from=+15551234567#x",
		"no host":             "twilio://" + account + "@?from=+15551234567",
		"a port":              "twilio://" + account + "@api.twilio.com:8443?from=+15551234567",
		"https inside":        "twilio://" + account + "@127.0.0.1?from=+15551234567",
		"http outside":        "twilio+http://" + account + "@api.twilio.com?from=+15551234567",
		"http, a name":        "twilio+http://" + account + "@localhost:8080?from=+15551234567",
		"http, private":       "twilio+http://" + account + "@10.0.0.1:8080?from=+15551234567",
		"a token with a hash": "twilio://" + testAccount + ":the-token#1@api.twilio.com?from=+15551234567",
	} {
		got, err := ParseURL(rediskit.Secret(raw))
		if err == nil {
			t.Errorf("%s: taken as %v", name, got)
			continue
		}
		for _, secret := range []string{"the-token", testAccount} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the error shows %s: %v", name, secret, err)
			}
		}
		if got != (Config{}) {
			t.Errorf("%s: not nothing", name)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	f.Add("twilio://" + testAccount + ":the-token@api.twilio.com?from=+15551234567")
	f.Add("twilio+http://" + testAccount + ":t@127.0.0.1:1?service=" + testService)
	f.Fuzz(func(t *testing.T, raw string) {
		cfg, err := ParseURL(rediskit.Secret(raw))
		if err != nil {
			return
		}
		client, err := egress.New(egress.Config{})
		if err != nil {
			t.Fatal(err)
		}
		p, err := NewTwilio(cfg, client)
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(p.url)
		if err != nil || u.Host != cfg.Host || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			t.Fatalf("%q leads to %q: %v", raw, p.url, err)
		}
	})
}

func TestConfig_neverPrintsItsSecrets(t *testing.T) {
	t.Parallel()
	cfg, err := ParseURL(rediskit.Secret("twilio://" + testAccount + ":the-token@api.twilio.com?from=+15551234567"))
	if err != nil {
		t.Fatal(err)
	}
	want := "twilio://<secret>:<secret>@api.twilio.com"
	if got := fmt.Sprintf("%v %+v %#v %s %q %v", cfg, cfg, cfg, cfg, cfg, &cfg); got != strings.TrimSpace(strings.Repeat(want+" ", 6)) {
		t.Errorf("printed as %s", got)
	}
	text, err := json.Marshal(cfg)
	if err != nil || strings.Contains(string(text), "the-token") {
		t.Errorf("written as %s, %v", text, err)
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	if _, err := New(nil); err == nil {
		t.Error("without a provider: no error")
	}
	if _, err := NewTwilio(Config{}, nil); err == nil {
		t.Error("an empty config: no error")
	}
	good := Config{AccountSID: testAccount, AuthToken: "t", Service: testService, Host: "api.twilio.com"}
	if _, err := NewTwilio(good, nil); err == nil {
		t.Error("without a client: no error")
	}
}
