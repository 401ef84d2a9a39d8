package cli

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// Output is the value of --output: how a command prints its result on standard output.
type Output string

// The outputs every command knows.
const (
	Text Output = "text" // for people, the default
	JSON Output = "json" // for programs
)

func (o Output) String() string { return string(o) }

// Set makes Output a flag value; anything but text and json is refused.
func (o *Output) Set(s string) error {
	switch Output(s) {
	case Text, JSON:
		*o = Output(s)
		return nil
	}
	return fmt.Errorf("must be %s or %s", Text, JSON)
}

// Type names the value in help texts.
func (Output) Type() string { return "text|json" }

// AddOutput gives cmd the --output flag, text by default, and returns where its value will be.
func AddOutput(cmd *cobra.Command) *Output {
	o := new(Text)
	cmd.Flags().VarP(o, "output", "o", "print the result for people (text) or programs (json)")
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("output",
		cobra.FixedCompletions([]string{string(Text), string(JSON)}, cobra.ShellCompDirectiveNoFileComp))
	return o
}

// WriteJSON writes v as one line of JSON. <, > and & stay as they are: nobody pastes this into a page.
func WriteJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}
