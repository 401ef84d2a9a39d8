package main

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-message/mail"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/templates"
)

// TestMain removes what the tests built.
func TestMain(m *testing.M) {
	m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
}

// built is where the binaries are once a test has asked for them.
var built struct {
	once sync.Once
	dir  string
	err  error
}

// binaries builds worker and enqueue once for all tests of the package.
func binaries() (string, error) {
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "postroom-bin-"); built.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-o", built.dir, "github.com/medicalink/postroom/cmd/...")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build the binaries: %w\n%s", err, out)
		}
	})
	return built.dir, built.err
}

type fleet struct {
	redis *testenv.RedisServer
	smtp  *testenv.SMTPServer
	dir   string
	env   []string
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{redis: testenv.Redis(t, testenv.AOF()), smtp: testenv.SMTP(t), dir: t.TempDir()}
	f.env = []string{
		"PATH=" + bin + string(os.PathListSeparator) + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir(),
		"SERVICE_NAME=e2e", "REDIS_URL=" + f.redis.URL(), "SMTP_URL=" + f.smtp.URL(),
		"MAIL_FROM=MedicaLink <noreply@medicalink.example>", "MONITOR_ADDR=127.0.0.1:0", "LOG_FORMAT=json",
	}
	return f
}

// command runs one of the binaries in the fleet's environment.
func (f *fleet) command(name string, args ...string) *exec.Cmd {
	bin, _ := binaries()
	cmd := exec.Command(filepath.Join(bin, name), args...)
	cmd.Env, cmd.Dir = f.env, f.dir
	return cmd
}

// enqueue runs the command to its end and returns what it printed and its exit code.
func (f *fleet) enqueue(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := f.command("enqueue", args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// worker starts `worker run`; the returned function sends SIGTERM and returns
// the log and the exit code.
func (f *fleet) worker(t *testing.T) (stop func() (log string, code int)) {
	t.Helper()
	cmd := f.command("worker", "run")
	path := filepath.Join(t.TempDir(), "worker.log")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd.Stdout, cmd.Stderr = file, file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceValues(func() (string, int) {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		_ = cmd.Wait()
		text, _ := os.ReadFile(path)
		return string(text), cmd.ProcessState.ExitCode()
	})
	t.Cleanup(func() {
		if text, _ := stop(); t.Failed() {
			t.Logf("worker log, its end:\n%s", text[max(0, len(text)-4000):])
		}
	})
	return stop
}

func (f *fleet) delivered(t *testing.T, n int) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for len(f.smtp.Messages()) < n {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d messages delivered within two minutes", len(f.smtp.Messages()), n)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// letter is a received message as its reader sees it.
type letter struct{ subject, text, html, to string }

func read(t *testing.T, raw []byte) letter {
	t.Helper()
	r, err := mail.CreateReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("parse message: %v\n%s", err, raw)
	}
	var l letter
	if l.subject, err = r.Header.Subject(); err != nil {
		t.Fatal(err)
	}
	to, err := r.Header.AddressList("To")
	if err != nil || len(to) != 1 {
		t.Fatalf("To: %v (%v), want one address", to, err)
	}
	l.to = to[0].Address
	for _, name := range []string{"Cc", "Bcc"} {
		if r.Header.Has(name) {
			t.Errorf("message has a %s header", name)
		}
	}
	for {
		part, err := r.NextPart()
		if errors.Is(err, io.EOF) {
			return l
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(part.Body)
		if err != nil {
			t.Fatal(err)
		}
		h, _ := part.Header.(*mail.InlineHeader)
		switch kind, _, _ := h.ContentType(); kind {
		case "text/plain":
			l.text = string(body)
		case "text/html":
			l.html = string(body)
		}
	}
}

// patients reads a CSV file of the test data by address.
func patients(t *testing.T, path string) map[string]map[string]string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	rows, err := csv.NewReader(file).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	people := map[string]map[string]string{}
	for _, row := range rows[1:] {
		p := map[string]string{}
		for i, column := range rows[0] {
			p[column] = row[i]
		}
		people[p["to"]] = p
	}
	return people
}

func testdata(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// A thousand patients in many scripts: every one gets one message, their own.
func TestEndToEnd_ThousandPatients(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	file := testdata(t, "recipients.csv")
	people := patients(t, file)
	if len(people) != 1000 {
		t.Fatalf("%d patients in the test data, want 1000", len(people))
	}
	stop := f.worker(t)
	if _, stderr, code := f.enqueue(t, "bulk", file, "--template", "appointment-reminder", "--idempotency-key-column", "to"); code != 0 {
		t.Fatalf("enqueue bulk: exit %d\n%s", code, stderr)
	}
	f.delivered(t, len(people))
	// Again: everybody is known.
	stdout, stderr, code := f.enqueue(t, "bulk", file, "--template", "appointment-reminder", "--idempotency-key-column", "to", "--output", "json")
	if code != 0 || !strings.Contains(stdout, `"duplicates":1000`) && !strings.Contains(stdout, `"duplicates": 1000`) {
		t.Errorf("second run: exit %d\n%s%s", code, stdout, stderr)
	}
	log, code := stop()
	if code != 0 {
		t.Errorf("worker run: exit %d", code)
	}

	set, err := templates.Load("")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, m := range f.smtp.Messages() {
		seen[m.To]++
		p, ok := people[m.To]
		if !ok {
			t.Fatalf("a message to nobody in the file: %s", m.To)
		}
		l := read(t, m.Raw)
		if l.to != m.To {
			t.Errorf("header To %s differs from the envelope's %s", l.to, m.To)
		}
		for _, part := range []string{l.text, l.html} {
			if !strings.Contains(part, p["confirm_url"]) {
				t.Errorf("%s: a part lacks the patient's own link", m.To)
			}
		}
		for _, word := range []string{p["first_name"], p["last_name"], p["clinic"]} {
			if !strings.Contains(l.text, word) {
				t.Errorf("%s: the text lacks %q:\n%s", m.To, word, l.text)
			}
		}
		data := map[string]any{}
		for column, value := range p {
			data[column] = value
		}
		want, err := set.Render("appointment-reminder", p["locale"], data)
		if err != nil {
			t.Fatal(err)
		}
		if l.subject != want.Subject || flat(l.text) != flat(want.Text) || flat(l.html) != flat(want.HTML) {
			t.Errorf("%s: the message is not the %s rendering", m.To, want.Locale)
		}
		if greeting := map[string]string{"de": "Termin", "es": "cita", "en": "appointment"}[want.Locale]; !strings.Contains(l.text, greeting) {
			t.Errorf("%s: no %q in the %s text", m.To, greeting, want.Locale)
		}
	}
	for to := range people {
		if seen[to] != 1 {
			t.Errorf("%s got %d messages, want 1", to, seen[to])
		}
	}
	for to, p := range people {
		if strings.Contains(log, to) || strings.Contains(log, p["confirm_url"]) {
			t.Fatalf("the worker's log shows a patient: %s", to)
		}
	}
}

// flat forgets how lines end.
func flat(s string) string { return strings.TrimSpace(strings.ReplaceAll(s, "\r\n", "\n")) }

// Of the dirty file the good lines are sent and nothing of the bad ones.
func TestEndToEnd_DirtyFile(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	source, err := os.ReadFile(testdata(t, "recipients-dirty.csv"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.dir, "dirty.csv"), source, 0o600); err != nil {
		t.Fatal(err)
	}
	f.worker(t)
	_, stderr, code := f.enqueue(t, "bulk", "dirty.csv", "--template", "appointment-reminder")
	if code != 1 {
		t.Errorf("exit %d, want 1\n%s", code, stderr)
	}
	f.delivered(t, 200)
	for _, line := range []string{"27", "53", "79", "105", "131", "157", "184", "210"} {
		if !strings.Contains(stderr, "dirty.csv:"+line+": to: ") {
			t.Errorf("line %s is not reported:\n%s", line, stderr)
		}
	}
	if n := strings.Count(stderr, ": to: "); n != 8 {
		t.Errorf("%d lines reported, want 8:\n%s", n, stderr)
	}
	rejected, err := os.ReadFile(filepath.Join(f.dir, "dirty.csv.rejected"))
	if err != nil {
		t.Fatal(err)
	}
	if rows := patients(t, filepath.Join(f.dir, "dirty.csv.rejected")); len(rows) != 8 || !bytes.HasPrefix(rejected, []byte("to,first_name")) {
		t.Errorf("%d rows in the rejected file, want a header and 8", len(rows))
	}
	got := f.smtp.Messages()
	if len(got) != 200 {
		t.Fatalf("%d messages, want 200", len(got))
	}
	for _, m := range got {
		if !strings.HasPrefix(m.To, "patient0") {
			t.Errorf("a message went to %q", m.To)
		}
		if bytes.Contains(m.Raw, []byte("spy@")) || bytes.Contains(bytes.ToLower(m.Raw), []byte("\nbcc:")) {
			t.Errorf("an injected header reached the wire:\n%s", m.Raw)
		}
	}
}
