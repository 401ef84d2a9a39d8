// Command worker is the deployed process of postroom: it consumes the queues
// and delivers what it finds there.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/medicalink/postroom/internal/cli"
)

func main() {
	os.Exit(cli.Main(newRootCommand))
}

func newRootCommand(p cli.Process) *cobra.Command {
	root := &cobra.Command{
		Use:   "worker",
		Short: "Deliver postroom's email and notifications",
		Long: `worker consumes the queues in Redis and delivers what services put there.

Settings come from the environment and from a .env file in the working
directory; "worker check" shows what they amount to and tries them.`,
	}
	root.AddCommand(newRunCommand(p), newDevCommand(p), newCheckCommand(p), newMonitorCommand(p), newVersionCommand())
	root.AddCommand(newWebhookCommand(p), newChatCommand(p), newPushKeyCommand(p))
	return root
}
