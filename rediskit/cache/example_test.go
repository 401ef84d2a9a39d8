package cache_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/medicalink/postroom/rediskit/cache"
)

// User is what the Examples keep.
type User struct {
	Name string `json:"name"`
}

func ExampleOf() {
	// client comes from rediskit.Open; its service is api-gateway.
	users, err := cache.Of[User](client, "user", cache.Config{
		TTL:         time.Hour,
		Jitter:      0.1, // 54 to 60 minutes
		NegativeTTL: time.Minute,
		OnError:     cache.Bypass, // the database bears the load when Redis is down
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	if err := users.Set(ctx, "123", User{Name: "Ada"}); err != nil {
		fmt.Println(err)
	}
	fmt.Println(client.Get(ctx, "api-gateway:user:123").Val())
	// Output: {"name":"Ada"}
}

func ExampleCache_GetOrLoad() {
	ctx := context.Background()
	users, _ := cache.Of[User](client, "loaded", cache.Config{TTL: time.Hour, NegativeTTL: time.Minute, OnError: cache.Fail})
	database := map[string]User{"123": {Name: "Ada"}}
	find := func(id string) (User, error) {
		return users.GetOrLoad(ctx, id, func(context.Context) (User, error) {
			fmt.Println("asking the database for", id)
			user, ok := database[id]
			if !ok {
				return User{}, cache.ErrNotFound
			}
			return user, nil
		})
	}
	for _, id := range []string{"123", "123", "404", "404"} {
		user, err := find(id)
		fmt.Println(user.Name, errors.Is(err, cache.ErrNotFound))
	}
	// Output:
	// asking the database for 123
	// Ada false
	// Ada false
	// asking the database for 404
	//  true
	//  true
}

func ExampleCache_Get() {
	ctx := context.Background()
	users, _ := cache.Of[User](client, "got", cache.Config{TTL: time.Hour, OnError: cache.Fail})
	_, found, err := users.Get(ctx, "123")
	fmt.Println(found, err)
	// Output: false <nil>
}

func ExampleCache_Set() {
	ctx := context.Background()
	users, _ := cache.Of[User](client, "set", cache.Config{TTL: time.Hour, OnError: cache.Fail})
	if err := users.Set(ctx, "123", User{Name: "Ada"}); err != nil {
		fmt.Println(err)
	}
	user, found, err := users.Get(ctx, "123")
	fmt.Println(user.Name, found, err)
	// Output: Ada true <nil>
}

func ExampleTTL() {
	ctx := context.Background()
	users, _ := cache.Of[User](client, "short", cache.Config{TTL: time.Hour, OnError: cache.Fail})
	if err := users.Set(ctx, "123", User{Name: "Ada"}, cache.TTL(10*time.Minute)); err != nil {
		fmt.Println(err)
	}
	left := client.TTL(ctx, "api-gateway:short:123").Val()
	fmt.Println(left <= 10*time.Minute)
	// Output: true
}

func ExampleCache_Delete() {
	ctx := context.Background()
	users, _ := cache.Of[User](client, "deleted", cache.Config{TTL: time.Hour, OnError: cache.Fail})
	_ = users.Set(ctx, "123", User{Name: "Ada"})
	// After the change of the database, so that no load that is under way brings
	// the old value back.
	if err := users.Delete(ctx, "123"); err != nil {
		fmt.Println(err)
	}
	_, found, _ := users.Get(ctx, "123")
	fmt.Println(found)
	// Output: false
}

func ExampleCache_GetMany() {
	ctx := context.Background()
	users, _ := cache.Of[User](client, "several", cache.Config{TTL: time.Hour, OnError: cache.Fail})
	_ = users.Set(ctx, "1", User{Name: "Ada"})
	found, err := users.GetMany(ctx, "1", "2")
	fmt.Println(found, err)
	// Output: map[1:{Ada}] <nil>
}

func ExampleCache_SetMany() {
	ctx := context.Background()
	users, _ := cache.Of[User](client, "many", cache.Config{TTL: time.Hour, OnError: cache.Fail})
	if err := users.SetMany(ctx, map[string]User{"1": {Name: "Ada"}, "2": {Name: "Grace"}}); err != nil {
		fmt.Println(err)
	}
	found, err := users.GetMany(ctx, "1", "2")
	fmt.Println(found, err)
	// Output: map[1:{Ada} 2:{Grace}] <nil>
}

func ExampleCache_Stats() {
	ctx := context.Background()
	users, _ := cache.Of[User](client, "counted", cache.Config{TTL: time.Hour, OnError: cache.Fail})
	_ = users.Set(ctx, "1", User{Name: "Ada"})
	_, _, _ = users.Get(ctx, "1")
	_, _, _ = users.Get(ctx, "2")
	stats := users.Stats()
	fmt.Println(stats.Hits, "hit,", stats.Misses, "miss")
	// Output: 1 hit, 1 miss
}

func ExampleCache_Wait() {
	users, _ := cache.Of[User](client, "waited", cache.Config{TTL: time.Hour, OnError: cache.Fail})
	ctx, giveUp := context.WithCancel(context.Background())
	_, err := users.GetOrLoad(ctx, "123", func(context.Context) (User, error) {
		giveUp() // the caller leaves while its load is under way
		return User{Name: "Ada"}, nil
	})
	users.Wait() // the load is over and stored: now the client may be closed
	_, found, _ := users.Get(context.Background(), "123")
	fmt.Println(err == nil || errors.Is(err, context.Canceled), found)
	// Output: true true
}
