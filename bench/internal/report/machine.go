package report

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// Machine names the processor and the day.
func Machine() string {
	model := "unknown CPU"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d cores of %s, %s/%s, %s", runtime.NumCPU(), model, runtime.GOOS, runtime.GOARCH, time.Now().UTC().Format(time.DateOnly))
}

// Load is the load average of the last minute: what else the machine was doing.
func Load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	average, _, _ := strings.Cut(string(text), " ")
	return average
}

// Output is what a program prints, without space around it.
func Output(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// NPMVersions are the packages with the exact versions that a package.json asks for.
func NPMVersions(file string, packages ...string) (list []string) {
	text, err := os.ReadFile(file)
	var manifest struct{ Dependencies map[string]string }
	if err != nil || json.Unmarshal(text, &manifest) != nil {
		return nil
	}
	for _, name := range packages {
		list = append(list, name+" "+manifest.Dependencies[name])
	}
	return list
}
