package testenv

import "syscall"

// dieWithParent makes the kernel kill the child when the test process dies
// without cleaning up (a panic in another goroutine, a timeout, kill -9).
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
