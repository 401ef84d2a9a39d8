package devbox

import "syscall"

// childAttributes keeps the terminal's Ctrl-C from the child, which must outlive
// the worker's last job, and ends the child if this process is killed.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
