//go:build unix && !linux

package devbox

import "syscall"

// childAttributes keeps the terminal's Ctrl-C from the child, which must outlive
// the worker's last job.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
