package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/medicalink/postroom/bench/internal/child"
	"github.com/medicalink/postroom/bench/internal/peer"
	"github.com/medicalink/postroom/bench/internal/report"
	"github.com/medicalink/postroom/rediskit"
)

const (
	ours   = "postroom"
	stock  = "asynq"
	bullmq = "bullmq"
	river  = "river"
	bare   = "bare" // our scripts without asynq: no contender, but what can be reached
)

func systemNames() []string { return []string{ours, stock, bullmq, river} }

// Databases of the Redis systems.
var databases = map[string]int{ours: 0, stock: 1, bullmq: 2, bare: 3}

// bench is everything that runs, and what came of it.
type bench struct {
	options
	program    string // this one, for its own peers
	work       string // folder
	redis      *child.Process
	redisPort  int
	rdb        *rediskit.Client // to ask the server
	postgres   *child.Process
	database   string // Postgres's connection string
	river      string // program
	email      peer.Email
	contenders []*system
	measuring  string  // now
	problems   []error // with single systems
	results    results
	checked    int    // jobs that ran exactly once
	load       string // of the machine, before the run
	begun      time.Time
	progress   io.Writer
	stops      []func() error // in the order of starting
}

// system is one contender.
type system struct {
	name  string
	store *child.Process
	next  int            // number of the next job
	jobs  map[string]int // of a round, by case: what takes about the span
}

func start(ctx context.Context, o options, progress, stderr io.Writer) (b *bench, err error) {
	b = &bench{options: o, results: results{}, load: report.Load(), begun: time.Now(), progress: progress, email: benchEmail()}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.stop())
		}
	}()
	if b.work, err = os.MkdirTemp("", "postroom-bench-"); err != nil {
		return b, fmt.Errorf("make work folder: %w", err)
	}
	b.stops = append(b.stops, func() error { return os.RemoveAll(b.work) })
	if b.program, err = os.Executable(); err != nil {
		return b, fmt.Errorf("find this program: %w", err)
	}
	for _, program := range []string{"redis-server", "go"} {
		if _, err := exec.LookPath(program); err != nil {
			return b, fmt.Errorf("find %s: %w; `task setup` installs it", program, err)
		}
	}
	// First what can be missing.
	if slices.Contains(o.systems, bullmq) {
		if err := child.NPM(ctx, bullmqFolder, "-without bullmq", stderr); err != nil {
			return b, err
		}
	}
	if slices.Contains(o.systems, river) {
		if err := b.startPostgres(ctx); err != nil {
			return b, err
		}
		if err := b.buildRiver(ctx, stderr); err != nil {
			return b, err
		}
	}
	if b.redis, b.redisPort, err = child.Redis(ctx, b.work, false); err != nil {
		return b, err
	}
	b.stops = append(b.stops, b.redis.Stop)
	if b.rdb, err = openRedis(ctx, peer.Config{Redis: b.address(), DB: len(databases)}); err != nil {
		return b, err
	}
	b.stops = append(b.stops, b.rdb.Close)
	for _, name := range o.systems {
		s := &system{name: name, store: b.redis, jobs: map[string]int{}}
		if name == river {
			s.store = b.postgres
		}
		b.contenders = append(b.contenders, s)
	}
	return b, nil
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

func (b *bench) address() string { return "127.0.0.1:" + strconv.Itoa(b.redisPort) }

// payloadBytes is the size of a job's encoded email.
const payloadBytes = 300

func benchEmail() peer.Email {
	e := peer.Email{V: 1, Subject: "Your appointment on Monday", Class: "transactional"}
	text, err := json.Marshal(e.For(0))
	if err != nil {
		panic(err) // strings and a number
	}
	const sentence = "we look forward to seeing you on Monday at nine; please bring your card. "
	e.Body = strings.Repeat(sentence, payloadBytes/len(sentence)+1)[:payloadBytes-len(text)]
	return e
}

var (
	bullmqFolder = filepath.Join("bench", "engine", "bullmq")
	riverFolder  = filepath.Join("bench", "engine", "river")
)

// buildRiver works on copies of River's module files, so that a dependency that it shares with the product, and that
// the product has raised, raises it here too instead of failing. The product itself is the checkout's.
func (b *bench) buildRiver(ctx context.Context, stderr io.Writer) error {
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(riverFolder, name))
		if name == "go.mod" {
			text = append(text, "\nreplace github.com/medicalink/postroom => ../../..\n"...)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(b.work, name), text, 0o600)
		}
		if err != nil {
			return fmt.Errorf("copy River's module: %w", err)
		}
	}
	b.river = filepath.Join(b.work, "river")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-mod=mod", "-modfile="+filepath.Join(b.work, "go.mod"), "-o", b.river, ".")
	build.Dir, build.Stderr = riverFolder, stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the River peer: %w; -without river measures without it", err)
	}
	return nil
}

// postgresPrograms finds Postgres's own folder of programs: Debian keeps it off the PATH.
func postgresPrograms() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil { // the other programs are beside the real one
			return filepath.Dir(path), nil
		}
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return "", errors.New("find initdb for River: no PostgreSQL is installed (Debian: apt-get install postgresql); -without river measures without it")
	}
	newest := slices.MaxFunc(found, func(a, b string) int { return cmp.Compare(version(a), version(b)) })
	return filepath.Dir(newest), nil
}

func version(path string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return n
}

// startPostgres makes and starts a database in a folder of its own. Postgres refuses to run as root.
func (b *bench) startPostgres(ctx context.Context) error {
	programs, err := postgresPrograms()
	if err != nil {
		return err
	}
	// Not within the work folder, which other users may not enter.
	dir, err := os.MkdirTemp("", "postroom-bench-pg-")
	if err != nil {
		return fmt.Errorf("make Postgres's folder: %w", err)
	}
	b.stops = append(b.stops, func() error { return os.RemoveAll(dir) })
	// Postgres's quick end: the data goes anyway.
	o := child.Options{Dir: dir, End: syscall.SIGQUIT}
	if os.Geteuid() == 0 {
		if o.Credential, err = unprivileged(); err != nil {
			return err
		}
		if err := os.Chown(dir, int(o.Credential.Uid), int(o.Credential.Gid)); err != nil {
			return fmt.Errorf("give Postgres its folder: %w", err)
		}
	}
	data := filepath.Join(dir, "data")
	initdb := exec.CommandContext(ctx, filepath.Join(programs, "initdb"), "-D", data, "-U", "bench", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	initdb.Dir = dir
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: o.Credential}
	if text, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("make a Postgres database: %w\n%s", err, text)
	}
	args := []string{"-D", data, "-k", dir}
	for _, setting := range postgresSettings {
		args = append(args, "-c", setting)
	}
	if b.postgres, err = child.Spawn(o, "postgres", filepath.Join(programs, "postgres"), args...); err != nil {
		return err
	}
	b.stops = append(b.stops, b.postgres.Stop)
	b.database = "host=" + dir + " user=bench dbname=postgres pool_max_conns=" + strconv.Itoa(riverConnections)
	limit, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := child.Poll(limit, 50*time.Millisecond, func() (bool, error) {
		err := exec.CommandContext(limit, filepath.Join(programs, "pg_isready"), "-q", "-h", dir).Run()
		return err == nil, b.postgres.Alive()
	}); err != nil {
		return fmt.Errorf("wait for Postgres: %w\n%s", err, b.postgres.Tail())
	}
	return nil
}

// riverConnections is the size of a pool. pgx's default, the larger of four and the number of cores, enqueues less from
// many callers, and many more than this do so too.
const riverConnections = 10

// postgresSettings differ from Postgres's defaults: no waiting for the disk, as Redis does not wait either, and room.
var postgresSettings = []string{
	"listen_addresses=", "synchronous_commit=off", "shared_buffers=512MB", "max_wal_size=4GB", "max_connections=300",
}

// unprivileged is a user that Postgres may run as.
func unprivileged() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errU := strconv.ParseUint(u.Uid, 10, 32)
		gid, errG := strconv.ParseUint(u.Gid, 10, 32)
		if errU == nil && errG == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("find a user to run Postgres as: there is neither postgres nor nobody, and Postgres refuses root; -without river measures without it")
}
