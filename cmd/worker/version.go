package main

import (
	"github.com/spf13/cobra"

	"github.com/medicalink/postroom/internal/cli"
)

func newVersionCommand() *cobra.Command { return cli.NewVersionCommand("worker") }
