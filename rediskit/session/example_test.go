package session_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/medicalink/postroom/rediskit/session"
)

// Login is what the Examples keep of a session.
type Login struct {
	Role string `json:"role"`
}

func ExampleNew() {
	// client comes from rediskit.Open.
	sessions, err := session.New[Login](client, session.Config{
		Idle:     30 * time.Minute, // without a request
		Absolute: 12 * time.Hour,   // in any case
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	token, err := sessions.Create(context.Background(), "new-example", Login{Role: "doctor"})
	fmt.Println(len(token), err)
	// Output: 64 <nil>
}

func ExampleStore_Create() {
	ctx := context.Background()
	sessions, _ := session.New[Login](client, session.Config{Idle: time.Hour, Absolute: 12 * time.Hour})
	token, err := sessions.Create(ctx, "create-example", Login{Role: "doctor"})
	if err != nil {
		fmt.Println(err) // Redis is down: 503
		return
	}
	// http.SetCookie(w, &http.Cookie{Name: "__Host-session", Value: token, Path: "/",
	//	Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	s, err := sessions.Read(ctx, token)
	fmt.Println(s.User, s.Data.Role, err)
	// Output: create-example doctor <nil>
}

func ExampleStore_Read() {
	ctx := context.Background()
	sessions, _ := session.New[Login](client, session.Config{Idle: time.Hour, Absolute: 12 * time.Hour})
	_, err := sessions.Read(ctx, "what a stranger sent")
	fmt.Println(errors.Is(err, session.ErrNotFound)) // 401; any other error is 503
	// Output: true
}

func ExampleStore_Renew() {
	ctx := context.Background()
	sessions, _ := session.New[Login](client, session.Config{Idle: time.Hour, Absolute: 12 * time.Hour})
	token, _ := sessions.Create(ctx, "renew-example", Login{Role: "doctor"})
	s, err := sessions.Renew(ctx, token)
	fmt.Println(s.IdleEnds.Sub(s.LastSeen), err)
	// Output: 1h0m0s <nil>
}

func ExampleStore_Rotate() {
	ctx := context.Background()
	sessions, _ := session.New[Login](client, session.Config{Idle: time.Hour, Absolute: 12 * time.Hour})
	token, _ := sessions.Create(ctx, "rotate-example", Login{Role: "awaiting second factor"})
	fresh, err := sessions.Rotate(ctx, token, Login{Role: "doctor"})
	if err != nil {
		fmt.Println(err)
	}
	s, _ := sessions.Read(ctx, fresh)
	_, err = sessions.Read(ctx, token)
	fmt.Println(s.Data.Role, "/", err)
	// Output: doctor / session not found
}

func ExampleStore_Revoke() {
	ctx := context.Background()
	sessions, _ := session.New[Login](client, session.Config{Idle: time.Hour, Absolute: 12 * time.Hour})
	token, _ := sessions.Create(ctx, "revoke-example", Login{})
	if err := sessions.Revoke(ctx, token); err != nil { // log out
		fmt.Println(err)
	}
	_, err := sessions.Read(ctx, token)
	fmt.Println(err)
	// Output: session not found
}

func ExampleStore_RevokeID() {
	ctx := context.Background()
	sessions, _ := session.New[Login](client, session.Config{Idle: time.Hour, Absolute: 12 * time.Hour})
	_, _ = sessions.Create(ctx, "id-example", Login{}) // on a telephone that was lost
	all, _ := sessions.List(ctx, "id-example")
	if err := sessions.RevokeID(ctx, "id-example", all[0].ID); err != nil {
		fmt.Println(err)
	}
	all, _ = sessions.List(ctx, "id-example")
	fmt.Println(len(all))
	// Output: 0
}

func ExampleStore_RevokeAll() {
	ctx := context.Background()
	sessions, _ := session.New[Login](client, session.Config{Idle: time.Hour, Absolute: 12 * time.Hour})
	_, _ = sessions.Create(ctx, "all-example", Login{})
	_, _ = sessions.Create(ctx, "all-example", Login{})
	if err := sessions.RevokeAll(ctx, "all-example"); err != nil { // the password changed
		fmt.Println(err)
	}
	all, err := sessions.List(ctx, "all-example")
	fmt.Println(len(all), err)
	// Output: 0 <nil>
}

func ExampleStore_List() {
	ctx := context.Background()
	sessions, _ := session.New[Login](client, session.Config{Idle: time.Hour, Absolute: 12 * time.Hour})
	_, _ = sessions.Create(ctx, "list-example", Login{Role: "doctor"})
	all, err := sessions.List(ctx, "list-example")
	for _, s := range all {
		fmt.Println(s.User, s.Data.Role, s.Ends.Sub(s.Created))
	}
	fmt.Println(err)
	// Output:
	// list-example doctor 12h0m0s
	// <nil>
}

func ExampleStore_Stats() {
	ctx := context.Background()
	sessions, _ := session.New[Login](client, session.Config{Idle: time.Hour, Absolute: 12 * time.Hour})
	_, _ = sessions.Create(ctx, "stats-example", Login{})
	_, _ = sessions.Read(ctx, "a guess")
	stats := sessions.Stats()
	fmt.Println(stats.Created, "created,", stats.Unknown, "unknown")
	// Output: 1 created, 1 unknown
}
