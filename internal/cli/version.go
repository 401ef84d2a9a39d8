package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Version says which build a binary is.
type Version struct {
	Name     string `json:"name"`
	Version  string `json:"version"`            // module version, else VCS revision (-dirty), else "devel"
	Revision string `json:"revision,omitempty"` // VCS revision the build was made from
	Time     string `json:"time,omitempty"`     // of that revision, RFC 3339
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (v Version) String() string {
	return fmt.Sprintf("%s %s (%s %s)", v.Name, v.Version, v.Go, v.Platform)
}

// ReadVersion returns the running binary's version as the Go tool recorded it.
func ReadVersion(name string) Version {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return versionOf(name, info)
}

func versionOf(name string, info *debug.BuildInfo) Version {
	v := Version{
		Name: name, Version: info.Main.Version,
		Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	dirty := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.time":
			v.Time = s.Value
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if v.Version != "" && v.Version != "(devel)" {
		return v
	}
	v.Version = "devel"
	if v.Revision != "" {
		v.Version = v.Revision[:min(12, len(v.Revision))]
		if dirty {
			v.Version += "-dirty"
		}
	}
	return v
}

// NewVersionCommand returns the version command of the binary called name.
func NewVersionCommand(name string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print which build this is",
		Example: fmt.Sprintf("  %[1]s version\n"+
			"  %[1]s version --output json", name),
		Args: cobra.NoArgs,
	}
	output := AddOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v := ReadVersion(name)
		if *output == JSON {
			return WriteJSON(cmd.OutOrStdout(), v)
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), v)
		return err
	}
	return cmd
}
