//go:build unix && !linux

package testenv

import "syscall"

// dieWithParent has no counterpart here: a test process killed hard leaves its
// redis-server behind.
func dieWithParent() *syscall.SysProcAttr { return nil }
