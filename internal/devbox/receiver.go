package devbox

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/egress"
	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/chat"
	"github.com/medicalink/postroom/internal/notifier/endpoint"
	"github.com/medicalink/postroom/internal/notifier/sms"
	"github.com/medicalink/postroom/internal/notifier/webhook"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
)

const (
	// demoWebhook and demoChat are registered for the receiver.
	demoWebhook = "dev"
	demoChat    = "dev-chat"
	// keepArrivals is how many arrivals are kept.
	keepArrivals = 100
	// smsAccount is the receiver's account at itself, smsSender the number that Twilio
	// keeps for tests.
	smsAccount = "AC00000000000000000000000000000000"
	smsSender  = "+15005550006"
)

// arrival is one thing that came to the receiver.
type arrival struct {
	ID       uint64        `json:"id,string"`
	Received time.Time     `json:"received"`
	Channel  tasks.Channel `json:"channel"`
	// Target is whom it was for: an id of the registry, or a number.
	Target string `json:"target"`
	Text   string `json:"text"`
	// Verified is whether a webhook's signature is right; other channels sign nothing.
	Verified *bool `json:"verified,omitempty"`
	// Body is what came, as it is.
	Body string `json:"body"`
}

// receiver is the other side of the channels that leave the platform: an endpoint for
// webhooks, a chat and the SMS gateway's API. It delivers nothing further.
type receiver struct {
	addr    string
	secret  rediskit.Secret // of webhooks
	token   string          // the chat's path, and the password of the SMS account
	changed func()          // called after every change, without the lock
	client  *egress.Client  // of the channels
	server  *http.Server
	served  chan error

	mu       sync.Mutex
	arrivals []arrival // oldest first
	lastID   uint64
}

func startReceiver(ctx context.Context, changed func(), log zerolog.Logger) (*receiver, error) {
	client, err := egress.New(egress.Config{})
	if err != nil {
		return nil, fmt.Errorf("set up the channels: %w", err)
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for webhooks: %w", err)
	}
	r := &receiver{
		addr: ln.Addr().String(), secret: webhook.NewSecret(), token: rand.Text(),
		changed: changed, client: client, served: make(chan error, 1),
	}
	r.server = &http.Server{Handler: r.handler(), ReadTimeout: 10 * time.Second, ErrorLog: debugLog(log)}
	go func() { r.served <- r.server.Serve(ln) }()
	return r, nil
}

// stop ends the connections too: whoever is in the middle of a call ends with this process.
func (r *receiver) stop(context.Context) error {
	r.client.Close()
	err := r.server.Close()
	if served := <-r.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

func (r *receiver) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /webhook", r.webhook)
	mux.HandleFunc("POST /chat/"+r.token, r.chat)
	mux.HandleFunc("POST /2010-04-01/Accounts/"+smsAccount+"/Messages.json", r.sms)
	return http.MaxBytesHandler(mux, maxBody)
}

func (r *receiver) add(a arrival) {
	r.mu.Lock()
	r.lastID++
	a.ID, a.Received = r.lastID, time.Now()
	r.arrivals = append(r.arrivals, a)
	if len(r.arrivals) > keepArrivals {
		r.arrivals = r.arrivals[1:]
	}
	r.mu.Unlock()
	r.changed()
}

// list returns what is kept, the newest first.
func (r *receiver) list() []arrival {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]arrival, 0, len(r.arrivals))
	for _, a := range slices.Backward(r.arrivals) {
		list = append(list, a)
	}
	return list
}

// webhook does what the receiver of a webhook has to do first.
func (r *receiver) webhook(rw http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // the sender is gone, or sent too much
	}
	err = webhook.Verify(body, req.Header, time.Now(), r.secret)
	var event struct {
		Type string `json:"type"`
	}
	_ = json.Unmarshal(body, &event) // its body is shown in any case
	r.add(arrival{
		Channel: tasks.ChannelWebhook, Target: demoWebhook, Text: cmp.Or(event.Type, "no event"), Verified: new(err == nil), Body: pretty(body),
	})
	if err != nil {
		http.Error(rw, err.Error(), http.StatusUnauthorized)
		return
	}
	rw.WriteHeader(http.StatusNoContent)
}

func (r *receiver) chat(rw http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	var message struct {
		Title string `json:"title"`
		Body  string `json:"body"`
	}
	if err := json.Unmarshal(body, &message); err != nil {
		http.Error(rw, "want JSON", http.StatusBadRequest)
		return
	}
	r.add(arrival{
		Channel: tasks.ChannelChat, Target: demoChat, Text: strings.TrimSpace(message.Title + "\n" + message.Body), Body: pretty(body),
	})
	rw.WriteHeader(http.StatusNoContent)
}

// sms answers as the API of Twilio does to a new message.
func (r *receiver) sms(rw http.ResponseWriter, req *http.Request) {
	user, password, _ := req.BasicAuth()
	if user != smsAccount || subtle.ConstantTimeCompare([]byte(password), []byte(r.token)) != 1 {
		writeJSON(rw, http.StatusUnauthorized, map[string]any{"code": 20003, "status": http.StatusUnauthorized})
		return
	}
	if err := req.ParseForm(); err != nil {
		writeJSON(rw, http.StatusBadRequest, map[string]any{"status": http.StatusBadRequest})
		return
	}
	text := req.PostForm.Get("Body")
	r.add(arrival{Channel: tasks.ChannelSMS, Target: req.PostForm.Get("To"), Text: text, Body: text})
	writeJSON(rw, http.StatusCreated, map[string]string{"sid": "SM" + strings.Repeat("0", 32), "status": "queued"})
}

// pretty indents what is JSON.
func pretty(body []byte) string {
	var b bytes.Buffer
	if json.Indent(&b, body, "", "  ") != nil {
		return string(bytes.ToValidUTF8(body, []byte("\uFFFD")))
	}
	return b.String()
}

// register makes the receiver known as an operator makes others, with worker webhook add.
func (r *receiver) register(ctx context.Context, registry *endpoint.Registry) error {
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	for _, e := range []endpoint.Endpoint{
		{ID: demoWebhook, Kind: endpoint.Standard, URL: rediskit.Secret("http://" + r.addr + "/webhook"), Keys: []endpoint.Key{{Secret: r.secret}}, Allow: loopback},
		{ID: demoChat, Kind: endpoint.JSON, URL: rediskit.Secret("http://" + r.addr + "/chat/" + r.token), Allow: loopback},
	} {
		if _, err := registry.Add(ctx, e); err != nil {
			return fmt.Errorf("register the receiver as %s: %w", e.ID, err)
		}
	}
	return nil
}

// toReceiver keeps a channel from endpoints that somebody has registered besides: nothing
// leaves this machine.
type toReceiver struct{ notifier.Channel }

func (c toReceiver) Deliver(ctx context.Context, m *notifier.Message) error {
	if m.Target != demoWebhook && m.Target != demoChat {
		return &notifier.Error{
			Fault: notifier.Permanent, Reason: webhook.ReasonUnregistered,
			Err: errors.New("worker dev delivers to its own receivers only, " + demoWebhook + " and " + demoChat),
		}
	}
	return c.Channel.Deliver(ctx, m)
}

// channels are the ways to the receiver. There is no push: the push services of browsers
// are not on this machine.
func (r *receiver) channels(rdb redis.UniversalClient, namespace string) (map[tasks.Channel]notifier.Channel, error) {
	registry := endpoint.NewRegistry(rdb, namespace)
	hooks, err := webhook.New(r.client, registry)
	if err != nil {
		return nil, err
	}
	chats, err := chat.New(r.client, registry)
	if err != nil {
		return nil, err
	}
	gateway, err := sms.NewTwilio(sms.Config{
		AccountSID: smsAccount, AuthToken: rediskit.Secret(r.token), From: smsSender, Host: r.addr, Plain: true,
	}, r.client)
	if err != nil {
		return nil, err
	}
	texts, err := sms.New(gateway)
	if err != nil {
		return nil, err
	}
	return map[tasks.Channel]notifier.Channel{
		tasks.ChannelWebhook: toReceiver{hooks}, tasks.ChannelChat: toReceiver{chats}, tasks.ChannelSMS: texts,
	}, nil
}
