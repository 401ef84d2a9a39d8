package rediskit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

func TestClient_Preflight_everywhere(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		got, err := client.Preflight(t.Context(), rediskit.ForQueues)
		if err != nil {
			t.Fatal(err)
		}
		want := 1
		if client.Config().Cluster {
			want = 3
		}
		if len(got.Servers) != want {
			t.Errorf("%d servers, want %d", len(got.Servers), want)
		}
		for _, s := range got.Servers {
			if s.Role != "master" || s.Version == "" {
				t.Errorf("%+v", s)
			}
			replicas := map[bool]int64{true: 1}[client.Config().Cluster]
			if client.Config().Master != "" {
				replicas = 2
			}
			if s.ConnectedReplicas != replicas {
				t.Errorf("%d replicas, want %d", s.ConnectedReplicas, replicas)
			}
		}
		if len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "append-only") {
			t.Errorf("warnings: %q, want one about persistence", got.Warnings)
		}
		if one, err := client.Server(t.Context()); err != nil || one.Role != "master" {
			t.Errorf("Server() = %+v, %v", one, err)
		}
	})
}

func TestClient_Preflight_evictionIsRefusedForQueues(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t, testenv.AOF(), testenv.RedisSetting("maxmemory-policy volatile-ttl"))
	client := srv.Open(t)
	_, err := client.Preflight(t.Context(), rediskit.ForQueues)
	unfit, ok := errors.AsType[*rediskit.UnfitError](err)
	if !ok || len(unfit.Faults) != 1 || !strings.Contains(err.Error(), "volatile-ttl") || !strings.Contains(err.Error(), srv.Addr()) {
		t.Errorf("Preflight = %v", err)
	}
	if got, err := client.Preflight(t.Context(), rediskit.ForCache); err != nil || len(got.Warnings) != 0 {
		t.Errorf("for a cache: %+v, %v", got, err)
	}
	cfg := srv.Config()
	cfg.AllowEviction = true
	allowed, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = allowed.Close() }()
	if got, err := allowed.Preflight(t.Context(), rediskit.ForQueues); err != nil || len(got.Warnings) != 1 {
		t.Errorf("overridden: %+v, %v", got, err)
	}
}

func TestClient_Preflight_replicaAndNodeAreRefused(t *testing.T) {
	t.Parallel()
	master := testenv.Redis(t)
	_, port, _ := strings.Cut(master.Addr(), ":")
	replica := testenv.Redis(t, testenv.RedisSetting("replicaof 127.0.0.1 "+port))
	if _, err := replica.Open(t).Preflight(t.Context(), rediskit.ForCache); err == nil || !strings.Contains(err.Error(), "replica") {
		t.Errorf("a replica: %v", err)
	}
	node := testenv.Redis(t, testenv.RedisSetting("cluster-enabled yes"))
	if _, err := node.Open(t).Preflight(t.Context(), rediskit.ForCache); err == nil || !strings.Contains(err.Error(), "REDIS_CLUSTER") {
		t.Errorf("a node of a cluster: %v", err)
	}
}

func TestClient_Preflight_withoutAnswer(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t, testenv.ACL("service", "s3cret", "-@all +ping"))
	client := srv.Open(t)
	got, err := client.Preflight(t.Context(), rediskit.ForQueues)
	if err != nil || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "+info") {
		t.Errorf("without permission: %+v, %v", got, err)
	}
	srv.Kill()
	if _, err := client.Preflight(t.Context(), rediskit.ForQueues); err == nil {
		t.Error("a dead server is fit")
	} else if _, ok := errors.AsType[*rediskit.ConnError](err); !ok {
		t.Errorf("%T is not a ConnError", err)
	}
}
