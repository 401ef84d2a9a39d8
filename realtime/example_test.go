package realtime_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/realtime"
	"github.com/medicalink/postroom/rediskit"
)

func ExampleNew() {
	ctx := context.Background()
	cfg, stop := testenv.ExampleRedis()
	defer stop()
	client, err := rediskit.Open(ctx, cfg)
	if err != nil {
		panic(err)
	}
	defer func() { _ = client.Close() }()

	handler, err := realtime.New(client, realtime.Config{
		Authenticate: func(r *http.Request) (realtime.Identity, error) {
			session, err := r.Cookie("session")
			if err != nil || session.Value != "of-ada" { // a service asks its session store
				return realtime.Identity{}, errors.New("no session")
			}
			return realtime.Identity{User: "ada"}, nil
		},
	})
	if err != nil {
		panic(err)
	}
	if err := handler.Start(ctx); err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/realtime/", http.StripPrefix("/realtime", handler))
	server := httptest.NewServer(mux)
	defer server.Close()

	// What a browser's EventSource does.
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/realtime/events", nil)
	if err != nil {
		panic(err)
	}
	r.AddCookie(&http.Cookie{Name: "session", Value: "of-ada"})
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		panic(err)
	}
	defer func() { _ = resp.Body.Close() }()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			fmt.Println(resp.Header.Get("Content-Type"), name)
			break
		}
	}
	fmt.Println(handler.Ready(), handler.Close(ctx)) // before server.Shutdown
	// Output:
	// text/event-stream unread
	// <nil> <nil>
}
