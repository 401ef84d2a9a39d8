package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/medicalink/postroom/bench/internal/peer"
	"github.com/medicalink/postroom/internal/engine"
)

// bareLoops is how many goroutines take and finish: while Redis works for one, the other prepares its call. Together they
// hold as many jobs as the worker of the row does.
const bareLoops = 2

// startBare drives the engine's scripts in bare loops: what this Redis can do with them.
func startBare(ctx context.Context, c peer.Config, handle func(id int)) (stop func() error, err error) {
	rdb, err := openRedis(ctx, c)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		wrong error
	)
	for range bareLoops {
		wg.Go(func() {
			if err := bareLoop(ctx, engine.NewBare(rdb, weights(c.Queues), bareBatch), handle); err != nil && ctx.Err() == nil {
				mu.Lock()
				defer mu.Unlock()
				wrong = errors.Join(wrong, err)
				fmt.Fprintln(os.Stderr, "bare loop:", err)
			}
		})
	}
	return func() error {
		cancel()
		wg.Wait()
		return errors.Join(wrong, rdb.Close())
	}, nil
}

// bareBatch is how many jobs a loop takes and finishes with one call each.
const bareBatch = 50

func bareLoop(ctx context.Context, scripts *engine.Bare, handle func(id int)) error {
	for {
		jobs, err := scripts.Take(ctx)
		if err != nil {
			return err
		}
		if len(jobs) == 0 {
			select {
			case <-time.After(time.Millisecond):
				continue
			case <-ctx.Done():
				return nil
			}
		}
		for _, j := range jobs {
			handle(peer.PayloadID([]byte(j.Message)))
		}
		if err := scripts.Finish(context.WithoutCancel(ctx), jobs); err != nil {
			return err
		}
	}
}
