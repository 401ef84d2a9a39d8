package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/bench/internal/child"
	"github.com/medicalink/postroom/bench/internal/report"
	"github.com/medicalink/postroom/internal/inbox"
	"github.com/medicalink/postroom/internal/notifier/endpoint"
	"github.com/medicalink/postroom/internal/notifier/webhook"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
)

const (
	// startLimit bounds the start of a process, waitLimit that of one round, whatever is wrong with them.
	startLimit = 30 * time.Second
	waitLimit  = 3 * time.Minute

	// mostEach is how many entries of a user the worker keeps.
	mostEach = inbox.DefaultMaxEntries

	endpointID = "bench"
)

// bench is everything that runs, and what has been measured.
type bench struct {
	options
	work     string // folder
	program  string // this one
	progress io.Writer
	stops    []func() error // in the order of starting
	begun    time.Time
	load     string // of the machine, before the run

	redis, worker, driver, receiver *child.Process
	redisPort                       int
	rdb                             *rediskit.Client
	producer                        *tasks.Producer
	inspector                       *asynq.Inspector

	checked   int // notifications that arrived exactly once
	rates     map[string][]rateRound
	enqueued  []float64 // a second, in bulk
	latencies map[string][]latencyRound
	memories  []memoryRound
	hooks     []rateRound
}

// notification is the one that everybody gets. Its payload is the size of a usual one.
func notification(user string) tasks.Notification {
	return tasks.Notification{
		Kind: "lab.result.ready", User: user, Title: "Your lab result is ready",
		Body:   "The result of your blood test of 3 March has arrived. Dr. Weber has added a note for you.",
		Action: "/results/8f14e45f",
	}
}

func start(ctx context.Context, o options, work string, progress io.Writer) (b *bench, err error) {
	b = &bench{
		options: o, work: work, progress: progress, begun: time.Now(), load: report.Load(),
		rates: map[string][]rateRound{}, latencies: map[string][]latencyRound{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.stop())
		}
	}()
	for _, program := range []string{"redis-server", "go"} {
		if _, err := exec.LookPath(program); err != nil {
			return b, fmt.Errorf("find %s: %w; `task setup` installs it", program, err)
		}
	}
	if err := checkFiles(o.clients); err != nil {
		return b, err
	}
	if b.program, err = os.Executable(); err != nil {
		return b, fmt.Errorf("find this program: %w", err)
	}
	fmt.Fprintln(progress, "building …")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", work+string(filepath.Separator), "./cmd/worker")
	build.Stderr = progress
	if err := build.Run(); err != nil {
		return b, fmt.Errorf("build worker: %w", err)
	}
	if b.redis, b.redisPort, err = child.Redis(ctx, work, false); err != nil {
		return b, err
	}
	b.stops = append(b.stops, b.redis.Stop)
	if b.rdb, err = open(ctx, b.redisURL(), 0); err != nil {
		return b, err
	}
	b.stops = append(b.stops, b.rdb.Close)
	if b.producer, err = tasks.NewProducer(b.rdb, tasks.FromService("bench")); err != nil {
		return b, err
	}
	b.inspector = asynq.NewInspectorFromRedisClient(b.rdb)
	if b.driver, _, err = b.spawn(ctx, roleDrive, b.redisURL()); err != nil {
		return b, err
	}
	b.stops = append(b.stops, b.driver.Stop)
	if err := b.startReceiver(ctx); err != nil {
		return b, err
	}
	return b, b.startWorker(ctx)
}

// otherFiles is more than a process has open besides the connections of the browsers.
const otherFiles = 100

// checkFiles fails if a process may not have so many connections. Go has raised the soft limit to the hard one.
func checkFiles(connections int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	if limit.Cur < uint64(connections+otherFiles) {
		return fmt.Errorf("a process may have %d files open, and %d browsers need %d: raise the limit (ulimit -Hn), or give -clients fewer", limit.Cur, connections, connections+otherFiles)
	}
	return nil
}

// stop ends everything in the opposite order of starting.
func (b *bench) stop() error {
	var errs []error
	for _, stop := range slices.Backward(b.stops) {
		errs = append(errs, stop())
	}
	b.stops = nil
	return errors.Join(errs...)
}

func (b *bench) redisURL() string { return fmt.Sprintf("redis://127.0.0.1:%d", b.redisPort) }

// spawn starts this program in another role and returns where it listens, if it does.
func (b *bench) spawn(ctx context.Context, role, argument string) (p *child.Process, address string, err error) {
	p, err = child.Spawn(child.Options{Dir: b.work, Talk: true}, role, b.program, "role", role, argument)
	if err != nil {
		return nil, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	var hello answer
	line, err := p.Line(ctx)
	if err == nil {
		err = json.Unmarshal([]byte(line), &hello)
	}
	if err != nil {
		return nil, "", errors.Join(fmt.Errorf("start %s: %w", role, err), p.Stop())
	}
	return p, hello.Address, nil
}

// startReceiver registers the receiver of webhooks, with room for all that the worker can send at once.
func (b *bench) startReceiver(ctx context.Context) error {
	key := webhook.NewSecret()
	receiver, address, err := b.spawn(ctx, roleReceive, string(key))
	if err != nil {
		return err
	}
	b.receiver = receiver
	b.stops = append(b.stops, receiver.Stop)
	_, err = endpoint.NewRegistry(b.rdb, "").Add(ctx, endpoint.Endpoint{
		ID: endpointID, Kind: endpoint.Standard, URL: rediskit.Secret("http://" + address + "/"),
		Keys:  []endpoint.Key{{Secret: key}},
		Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Concurrency: concurrency,
	})
	return err
}

// startWorker runs the program that is deployed. Nobody sends email, so that nothing listens where its relay would be.
func (b *bench) startWorker(ctx context.Context) error {
	relay, err := child.FreePort()
	if err != nil {
		return err
	}
	b.worker, err = child.Spawn(child.Options{Dir: b.work, Env: []string{
		"SERVICE_NAME=bench",
		"REDIS_URL=" + b.redisURL(),
		fmt.Sprintf("SMTP_URL=smtp://127.0.0.1:%d", relay),
		"MAIL_FROM=no-reply@example.com",
		"WORKER_CONCURRENCY=" + strconv.Itoa(concurrency),
		"MONITOR_ADDR=127.0.0.1:0",
	}}, "worker-log", filepath.Join(b.work, "worker"), "run")
	if err != nil {
		return err
	}
	b.stops = append(b.stops, b.worker.Stop)
	// The queue can be paused only once it exists, that is when a worker consumes it.
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := child.Poll(ctx, 50*time.Millisecond, func() (bool, error) {
		servers, err := b.inspector.Servers()
		if err != nil || len(servers) == 0 {
			return false, b.worker.Alive()
		}
		return true, nil
	}); err != nil {
		return fmt.Errorf("wait for the worker: %w\n%s", err, b.worker.Tail())
	}
	return nil
}

func queue() string { return tasks.NotificationQueue("", tasks.Default) }

// left counts the jobs that are not done; failed ones are an error.
func (b *bench) left() (int, error) {
	info, err := b.inspector.GetQueueInfo(queue())
	if err != nil {
		return 0, fmt.Errorf("look into the queue: %w", err)
	}
	if info.Retry+info.Archived > 0 {
		return 0, fmt.Errorf("%d jobs wait for a retry and %d are archived\n%s", info.Retry, info.Archived, b.worker.Tail())
	}
	return info.Pending + info.Active + info.Scheduled, b.worker.Alive()
}

// finish waits until nothing is left in the queue.
func (b *bench) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, waitLimit, errors.New("the round took too long"))
	defer cancel()
	if err := child.Poll(ctx, 50*time.Millisecond, func() (bool, error) {
		left, err := b.left()
		return left == 0, err
	}); err != nil {
		return fmt.Errorf("wait for the worker: %w", err)
	}
	return nil
}

// sweep makes room: it forgets the round's inboxes and finished jobs.
func (b *bench) sweep(ctx context.Context) error {
	if _, err := b.inspector.DeleteAllCompletedTasks(queue()); err != nil {
		return fmt.Errorf("delete finished jobs: %w", err)
	}
	for _, pattern := range []string{"postroom:inbox:*", "postroom:bench:*", "postroom:job:*", "postroom:endpoint:*:log"} {
		keys := b.rdb.Scan(ctx, 0, pattern, 1000).Iterator()
		var batch []string
		for more := true; more; {
			if more = keys.Next(ctx); more {
				batch = append(batch, keys.Val())
			}
			if len(batch) > 0 && (!more || len(batch) == 1000) {
				if err := b.rdb.Unlink(ctx, batch...).Err(); err != nil {
					return fmt.Errorf("make room: %w", err)
				}
				batch = batch[:0]
			}
		}
		if err := keys.Err(); err != nil {
			return fmt.Errorf("make room: %w", err)
		}
	}
	return nil
}

// stored reads all streams of the users: what is in them and since when.
func (b *bench) stored(ctx context.Context, stream func(user string) string, prefix string) ([]arrival, error) {
	var all []arrival
	const batch = 500
	for from := 0; from < b.users; from += batch {
		pipe := b.rdb.Pipeline()
		var answers []*redis.XMessageSliceCmd
		for n := from; n < min(from+batch, b.users); n++ {
			answers = append(answers, pipe.XRange(ctx, stream(userID(prefix, n)), "-", "+"))
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return nil, fmt.Errorf("read the streams: %w", err)
		}
		for i, a := range answers {
			for _, m := range a.Val() {
				id, _ := m.Values["n"].(string)
				ms, err := milliseconds(m.ID)
				if err != nil {
					return nil, err
				}
				all = append(all, arrival{User: from + i, ID: id, At: ms * 1000})
			}
		}
	}
	return all, nil
}

// milliseconds is the time in the id of an entry, which Redis' clock gave it.
func milliseconds(id string) (int64, error) {
	for i := range id {
		if id[i] == '-' {
			return strconv.ParseInt(id[:i], 10, 64)
		}
	}
	return 0, fmt.Errorf("an entry has the id %q", id)
}

// exactlyOnce fails unless what arrived is what was wanted: a user for each id.
func exactlyOnce(wanted map[string]int, arrived []arrival) error {
	seen := make(map[string]bool, len(wanted))
	doubled, foreign := 0, 0
	for _, a := range arrived {
		user, ok := wanted[a.ID]
		switch {
		case !ok || user != a.User:
			foreign++
		case seen[a.ID]:
			doubled++
		default:
			seen[a.ID] = true
		}
	}
	if lost := len(wanted) - len(seen); lost+doubled+foreign > 0 {
		return fmt.Errorf("of %d notifications %d were lost and %d doubled, and %d are of others", len(wanted), lost, doubled, foreign)
	}
	return nil
}

// verify is exactlyOnce that counts.
func (b *bench) verify(wanted map[string]int, arrived []arrival) error {
	if err := exactlyOnce(wanted, arrived); err != nil {
		return err
	}
	b.checked += len(wanted)
	return nil
}
