//go:build !unix

package devbox

import "syscall"

func childAttributes() *syscall.SysProcAttr { return nil }
