package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/inbox"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/tasks"
)

func TestNotification_IsValid(t *testing.T) {
	t.Parallel()
	n := notification(userID("r1-"+whole, 12))
	if err := n.Validate(); err != nil {
		t.Error(err)
	}
	n.Channels, n.Webhook = []tasks.Channel{tasks.ChannelWebhook}, endpointID
	if err := n.Validate(); err != nil {
		t.Errorf("as a webhook: %v", err)
	}
}

func TestExactlyOnce(t *testing.T) {
	t.Parallel()
	wanted := map[string]int{"a": 1, "b": 1, "c": 2}
	for _, tt := range []struct {
		name    string
		arrived []arrival
		wrong   string
	}{
		{"all", []arrival{{User: 2, ID: "c"}, {User: 1, ID: "a"}, {User: 1, ID: "b"}}, ""},
		{"one lost", []arrival{{User: 2, ID: "c"}, {User: 1, ID: "a"}}, "1 were lost and 0 doubled, and 0"},
		{"one twice", []arrival{{User: 2, ID: "c"}, {User: 1, ID: "a"}, {User: 1, ID: "b"}, {User: 1, ID: "b"}}, "0 were lost and 1 doubled, and 0"},
		{"one lost and one twice", []arrival{{User: 1, ID: "a"}, {User: 1, ID: "b"}, {User: 1, ID: "b"}}, "1 were lost and 1 doubled, and 0"},
		{"to somebody else", []arrival{{User: 2, ID: "c"}, {User: 2, ID: "a"}, {User: 1, ID: "b"}}, "1 were lost and 0 doubled, and 1"},
		{"one of another round", []arrival{{User: 2, ID: "c"}, {User: 1, ID: "a"}, {User: 1, ID: "b"}, {User: 1, ID: "z"}}, "0 were lost and 0 doubled, and 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := exactlyOnce(wanted, tt.arrived)
			if tt.wrong == "" && err != nil {
				t.Error(err)
			}
			if tt.wrong != "" && (err == nil || !strings.Contains(err.Error(), tt.wrong)) {
				t.Errorf("%v, want %s", err, tt.wrong)
			}
		})
	}
}

func TestRateRound_Figures(t *testing.T) {
	t.Parallel()
	span := spanOf([]arrival{{At: 1_500_000}, {At: 1_000_000}, {At: 1_250_000}})
	if span != 500*time.Millisecond {
		t.Errorf("from first to last %s, want 500ms", span)
	}
	r := rateRound{n: 2001, span: span}
	if got := r.rate(); got != 4000 {
		t.Errorf("rate %v, want 4000: 2,000 intervals in half a second", got)
	}
	if got := (rateRound{n: 2000}).per1000(3 * time.Second); got != 1.5 {
		t.Errorf("CPU %v s per 1,000, want 1.5", got)
	}
}

func TestMilliseconds(t *testing.T) {
	t.Parallel()
	if got, err := milliseconds("1700000000123-7"); err != nil || got != 1_700_000_000_123 {
		t.Errorf("%d, %v", got, err)
	}
	for _, id := range []string{"", "1700000000123", "x-1"} {
		if _, err := milliseconds(id); err == nil {
			t.Errorf("%q is taken for the id of an entry", id)
		}
	}
}

func TestRead_DispatchesAsABrowserDoes(t *testing.T) {
	t.Parallel()
	const stream = "retry: 2000\n\n:\n\nid: 7-0\nevent: notification\ndata: {\"a\": 1}\n\nevent: unread\ndata: {}\n\nevent: unread\ndata: cut of"
	var got []string
	err := read(strings.NewReader(stream), func(name string, data []byte) error {
		got = append(got, name+" "+string(data))
		return nil
	})
	if want := []string{`notification {"a": 1}`, "unread {}"}; !slices.Equal(got, want) || !errors.Is(err, io.EOF) {
		t.Errorf("%q and %v, want %q and the end", got, err, want)
	}
}

// A service, browsers and loops as the benchmark starts them, in this process: what a loop delivers with the script
// reaches the browsers.
func TestRoles_DeliverToBrowsers(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	url := "redis://" + server.Addr()
	service := converse(t, func(in io.Reader, out io.Writer) error { return serve(t.Context(), url, in, out) })
	browsers := converse(t, func(in io.Reader, out io.Writer) error { return listen(t.Context(), service.hello.Address, in, out) })
	browsers.ask(request{Do: doConnect, N: 3, Prefix: "u"})
	if a := service.ask(request{Do: doCount}); a.Clients != 3 {
		t.Fatalf("%d browsers are connected, want 3", a.Clients)
	}

	// The service shows the inboxes of the worker, not those of the loops: the test is the worker.
	rdb, err := open(t.Context(), url, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rdb.Close() }()
	store, err := inbox.New(rdb, inbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	wanted := map[string]int{}
	for n := range 6 {
		if _, err := store.Deliver(t.Context(), userID("u", n%3), entryOf(driveID(n), time.Now())); err != nil {
			t.Fatal(err)
		}
		wanted[driveID(n)] = n % 3
	}
	browsers.ask(request{Do: doWait, N: 6})
	if err := exactlyOnce(wanted, browsers.ask(request{Do: doTake}).Arrivals); err != nil {
		t.Error(err)
	}
	if a := service.ask(request{Do: doMemory}); a.Heap == 0 || a.Stack == 0 {
		t.Errorf("the service holds %+v", a)
	}
	browsers.ask(request{Do: doClose})
}

// Who waits for more than will come is told why as soon as a browser has lost its connection.
func TestBrowsers_WaitFailsWithThem(t *testing.T) {
	t.Parallel()
	b := &browsers{}
	waited := make(chan error)
	go func() { waited <- b.wait(t.Context(), 1) }()
	lost := errors.New("lost")
	b.mu.Lock()
	b.failed = lost
	b.look()
	b.mu.Unlock()
	if err := <-waited; !errors.Is(err, lost) {
		t.Errorf("%v, want %v", err, lost)
	}
}

// Each way delivers every notification once.
func TestDrive_EveryWayDelivers(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	url := "redis://" + server.Addr()
	driver := converse(t, func(in io.Reader, out io.Writer) error { return drive(t.Context(), url, in, out) })
	rdb, err := open(t.Context(), url, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rdb.Close() }()
	b := &bench{options: options{users: 7, each: 30}, rdb: rdb}
	wanted := map[string]int{}
	for n := range b.notifications() {
		wanted[driveID(n)] = n % b.users
	}
	for _, way := range []string{howBatches, howPipeline, howCalls, howShared, howScript} {
		driver.ask(request{Do: doDeliver, How: way, N: b.each, Users: b.users, Prefix: way})
		stream := bareStream
		if way == howScript || way == howShared {
			stream = func(user string) string { return scriptStream(driveNamespace, user) }
		}
		arrived, err := b.stored(t.Context(), stream, way)
		if err != nil {
			t.Fatal(err)
		}
		if err := exactlyOnce(wanted, arrived); err != nil {
			t.Errorf("%s: %v", way, err)
		}
	}
}

// A report of figures that are made up has every table, and a picture with every bar.
func TestBench_Report(t *testing.T) {
	t.Parallel()
	o, err := parse([]string{"-rounds", "2", "-out", ""}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{options: o, rates: map[string][]rateRound{}, latencies: map[string][]latencyRound{}, enqueued: []float64{5}}
	for i := range 2 {
		r := rateRound{n: 1001, span: time.Duration(i+1) * time.Second}
		for _, way := range ways() {
			b.rates[way] = append(b.rates[way], r)
		}
		b.hooks = append(b.hooks, r)
		for _, row := range []string{latencyRow(1), latencyRow(o.clients), rushRow(rushBrowsers)} {
			b.latencies[row] = append(b.latencies[row], latencyRound{[]float64{3, 1}, []float64{2}, []float64{1}})
		}
		b.memories = append(b.memories, memoryRound{none: memory{10, 10, 10}, all: memory{20_010, 20_010, 20_010}})
	}
	var text bytes.Buffer
	if err := b.report(context.WithoutCancel(t.Context()), &text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"**750** (500 – 1,000)", "| 10,000 browsers |", "| " + rushRow(rushBrowsers) + " |", "| Go heap and stacks in use after it | **2** |", "| queue → worker → receiver |"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, text.String())
		}
	}
	if bars := bytes.Count(b.plot(), []byte("<rect ")); bars != len(ways())+4 {
		t.Errorf("%d bars, want one for each way and four of latency", bars)
	}
}

// conversation is with a role that runs in this process.
type conversation struct {
	t       *testing.T
	hello   answer
	encoder *json.Encoder
	decoder *json.Decoder
}

func converse(t *testing.T, role func(in io.Reader, out io.Writer) error) *conversation {
	t.Helper()
	in, requests := io.Pipe()
	answers, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := role(in, out)
		_ = out.CloseWithError(err)
		ended <- err
	}()
	c := &conversation{t: t, encoder: json.NewEncoder(requests), decoder: json.NewDecoder(answers)}
	t.Cleanup(func() {
		_ = requests.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if err := c.decoder.Decode(&c.hello); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *conversation) ask(r request) (a answer) {
	c.t.Helper()
	if err := c.encoder.Encode(r); err != nil {
		c.t.Fatal(err)
	}
	if err := c.decoder.Decode(&a); err != nil {
		c.t.Fatal(err)
	}
	if a.Error != "" {
		c.t.Fatalf("%s: %s", r.Do, a.Error)
	}
	return a
}
