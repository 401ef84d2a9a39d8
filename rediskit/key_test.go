package rediskit_test

import (
	"strings"
	"testing"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

func TestClient_Key(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t)
	for _, tt := range []struct {
		service string
		parts   []string
		want    string
	}{
		{"api-gateway", []string{"user", "123"}, "api-gateway:user:123"},
		{"accounts-service", []string{"user", "123"}, "accounts-service:user:123"},
		{"accounts-service", []string{"session", "{ada}", "1"}, "accounts-service:session:{ada}:1"},
		{"", []string{"user", "123"}, "user:123"},
	} {
		cfg := srv.Config()
		cfg.Service = tt.service
		client, err := rediskit.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := client.Key(tt.parts...); got != tt.want {
			t.Errorf("Key(%q) of %q = %q, want %q", tt.parts, tt.service, got, tt.want)
		}
		if got := client.Service(); got != tt.service {
			t.Errorf("Service() = %q, want %q", got, tt.service)
		}
		// The client list names the service without being told.
		if got := client.ClientGetName(t.Context()).Val(); got != tt.service {
			t.Errorf("client name = %q, want %q", got, tt.service)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestConfig_Validate_service(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a:b", "A", "{a}", "1a", "a b", "-", "asynq", strings.Repeat("a", 64)} {
		if err := (rediskit.Config{Service: name}).Validate(); err == nil {
			t.Errorf("service %q is accepted", name)
		}
	}
	if err := (rediskit.Config{Service: strings.Repeat("a", 63)}).Validate(); err != nil {
		t.Error(err)
	}
}
