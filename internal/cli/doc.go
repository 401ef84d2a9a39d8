// Package cli is what postroom's binaries have in common at the edge of the process: arguments,
// environment, streams and signals enter a program here and nowhere else, and an error leaves it
// here as one line and an exit code.
//
//	func main() { os.Exit(cli.Main(newRootCommand)) }
//
// Exit codes: 0 done, 1 failed, 2 wrong usage (nothing was attempted).
//
// The first SIGINT or SIGTERM cancels the context that commands find in cobra's Context, with the
// signal as its cause; a second one finds Go's own handling back in place and ends the process at once.
package cli
