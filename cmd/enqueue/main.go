// Command enqueue hands emails and notifications to postroom's workers by hand: one, or one for every
// line of a file. The help of each command is its manual.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/medicalink/postroom/internal/cli"
)

func main() { os.Exit(cli.Main(newRootCommand)) }

func newRootCommand(p cli.Process) *cobra.Command {
	root := &cobra.Command{
		Use:   "enqueue",
		Short: "Hand emails and notifications to postroom's workers",
		Long: `Hand emails and notifications to postroom's workers.

Settings come from the environment, or from a .env file in the working directory:
REDIS_URL (or REDIS_HOST and so on), QUEUE_NAMESPACE, SERVICE_NAME and TEMPLATES_DIR.

Exit codes: 0 done, 1 failed, 2 wrong usage (nothing was attempted).`,
	}
	root.AddCommand(newEmailCommand(p), newNotificationCommand(p), newBulkCommand(p), cli.NewVersionCommand("enqueue"))
	return root
}
