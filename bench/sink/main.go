// Command sink is the mail server of the benchmarks: it accepts everything as fast as it can, throws the bodies
// away and counts. It listens on two free loopback ports, prints them as one line of JSON
// ({"smtp":"127.0.0.1:…","control":"127.0.0.1:…"}) and ends with its standard input, so it never outlives whoever
// started it.
//
// Control is HTTP: POST /reset?prefix=P starts a round whose recipients all begin with P, GET /stats tells what
// arrived since.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sink:", err)
		os.Exit(1)
	}
}

func run(stdin io.Reader, stdout io.Writer) error {
	mail, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for mail: %w", err)
	}
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for control: %w", err)
	}
	var round round
	mux := http.NewServeMux()
	mux.HandleFunc("POST /reset", func(w http.ResponseWriter, r *http.Request) {
		round.reset(r.FormValue("prefix"))
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(round.stats())
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(control) }()
	go func() {
		for {
			conn, err := mail.Accept()
			if err != nil {
				return
			}
			go serve(conn, &round)
		}
	}()
	if err := json.NewEncoder(stdout).Encode(map[string]string{
		"smtp": mail.Addr().String(), "control": control.Addr().String(),
	}); err != nil {
		return fmt.Errorf("print addresses: %w", err)
	}
	_, err = io.Copy(io.Discard, stdin)
	return err
}

// Stats is what one round brought.
type Stats struct {
	Messages   int       `json:"messages"`   // accepted, repeats included
	Recipients int       `json:"recipients"` // different ones with the round's prefix
	Foreign    int       `json:"foreign"`    // messages to anybody else: late ones of an earlier round
	Bytes      int64     `json:"bytes"`      // of all bodies, as sent
	First      time.Time `json:"first"`      // when the first and the last message was accepted
	Last       time.Time `json:"last"`
}

type round struct {
	mu     sync.Mutex
	prefix string
	seen   map[string]bool
	now    Stats
}

func (r *round) reset(prefix string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.prefix, r.seen, r.now = prefix, map[string]bool{}, Stats{}
}

func (r *round) stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now.Recipients = len(r.seen)
	return r.now
}

func (r *round) accept(recipient string, size int64) {
	at := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now.Messages == 0 {
		r.now.First = at
	}
	r.now.Last = at
	r.now.Messages++
	r.now.Bytes += size
	if r.seen != nil && strings.HasPrefix(recipient, r.prefix) {
		r.seen[recipient] = true
	} else {
		r.now.Foreign++
	}
}

// serve speaks just enough SMTP. Replies are held back while more commands are already here (RFC 2920).
func serve(conn net.Conn, round *round) {
	defer conn.Close()
	in := bufio.NewReaderSize(conn, 32<<10)
	out := bufio.NewWriterSize(conn, 4<<10)
	reply := func(text string) error {
		_, _ = out.WriteString(text)
		if in.Buffered() > 0 {
			return nil
		}
		return out.Flush()
	}
	if reply("220 sink ESMTP\r\n") != nil {
		return
	}
	var recipient string
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return
		}
		verb, argument, _ := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(" "))
		answer := "250 2.0.0 ok\r\n"
		switch strings.ToUpper(string(verb)) {
		case "EHLO":
			answer = "250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-ENHANCEDSTATUSCODES\r\n250 SIZE 52428800\r\n"
		case "RCPT":
			recipient = address(argument)
		case "DATA":
			_, _ = out.WriteString("354 go ahead\r\n")
			if out.Flush() != nil {
				return
			}
			size, err := discardBody(in)
			if err != nil {
				return
			}
			round.accept(recipient, size)
		case "QUIT":
			_, _ = out.WriteString("221 2.0.0 bye\r\n")
			_ = out.Flush()
			return
		}
		if reply(answer) != nil {
			return
		}
	}
}

// address reads what stands between the angle brackets of a RCPT command.
func address(argument []byte) string {
	_, after, _ := bytes.Cut(argument, []byte("<"))
	inside, _, _ := bytes.Cut(after, []byte(">"))
	return string(inside)
}

// discardBody reads up to and including the line that is a single dot.
func discardBody(in *bufio.Reader) (size int64, err error) {
	lineStart := true
	for {
		line, err := in.ReadSlice('\n')
		if lineStart && (string(line) == ".\r\n" || string(line) == ".\n") {
			return size, nil
		}
		size += int64(len(line))
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return size, err
		}
		lineStart = err == nil
	}
}
