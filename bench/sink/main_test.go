package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/smtp"
	"strings"
	"testing"
)

// startSink runs the whole program on pipes, as the benchmark does.
func startSink(t *testing.T) (mail, control string) {
	t.Helper()
	stdin, closeStdin := io.Pipe()
	lines, stdout := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- run(stdin, stdout) }()
	t.Cleanup(func() {
		_ = closeStdin.Close()
		if err := <-ended; err != nil {
			t.Errorf("the sink ended with %v", err)
		}
	})
	var addresses struct{ SMTP, Control string }
	if err := json.NewDecoder(lines).Decode(&addresses); err != nil {
		t.Fatal(err)
	}
	return addresses.SMTP, "http://" + addresses.Control
}

func stats(t *testing.T, control string) (s Stats) {
	t.Helper()
	resp, err := http.Get(control + "/stats")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

func reset(t *testing.T, control, prefix string) {
	t.Helper()
	resp, err := http.Post(control+"/reset?prefix="+prefix, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
}

func TestSink_CountsMessagesRecipientsAndStrangers(t *testing.T) {
	t.Parallel()
	mail, control := startSink(t)
	reset(t, control, "a-")
	client, err := smtp.Dial(mail)
	if err != nil {
		t.Fatal(err)
	}
	// A dot that begins a line, and a line longer than the sink's buffer.
	body := ".leading dot\r\n" + strings.Repeat("x", 100_000) + "\r\n"
	for _, to := range []string{"a-1@example.com", "a-2@example.com", "a-1@example.com", "b-1@example.com"} {
		if err := client.Mail("sender@example.com"); err != nil {
			t.Fatal(err)
		}
		if err := client.Rcpt(to); err != nil {
			t.Fatal(err)
		}
		w, err := client.Data()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.Quit(); err != nil {
		t.Fatal(err)
	}
	got := stats(t, control)
	if got.Messages != 4 || got.Recipients != 2 || got.Foreign != 1 {
		t.Errorf("%d messages, %d recipients, %d foreign; want 4, 2, 1", got.Messages, got.Recipients, got.Foreign)
	}
	if want := int64(4 * (len(body) + 1)); got.Bytes != want { // one byte of dot-stuffing
		t.Errorf("%d bytes, want %d", got.Bytes, want)
	}
	if got.First.IsZero() || got.Last.Before(got.First) {
		t.Errorf("accepted from %v to %v", got.First, got.Last)
	}
	reset(t, control, "a-")
	if got := stats(t, control); got != (Stats{}) {
		t.Errorf("after reset: %+v", got)
	}
}

func TestSink_AnswersPipelinedCommandsInOrder(t *testing.T) {
	t.Parallel()
	mail, control := startSink(t)
	reset(t, control, "p-")
	conn, err := net.Dial("tcp", mail)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	expect := func(codes ...string) {
		t.Helper()
		for _, code := range codes {
			line, err := in.ReadString('\n')
			if err != nil || !strings.HasPrefix(line, code+" ") {
				t.Fatalf("got %q and %v, want %s", line, err, code)
			}
		}
	}
	expect("220")
	send := func(text string) {
		t.Helper()
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
	}
	envelope := "MAIL FROM:<s@example.com>\r\nRCPT TO:<p-1@example.com>\r\nDATA\r\n"
	send(envelope)
	expect("250", "250", "354")
	// The next envelope follows the final dot in one write.
	send("one\r\n.\r\n" + strings.ReplaceAll(envelope, "p-1", "p-2"))
	expect("250", "250", "250", "354")
	send("two\r\n.\r\nQUIT\r\n")
	expect("250", "221")
	if got := stats(t, control); got.Messages != 2 || got.Recipients != 2 {
		t.Errorf("%d messages to %d recipients, want 2 to 2", got.Messages, got.Recipients)
	}
}
