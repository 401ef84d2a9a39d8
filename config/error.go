package config

import "strconv"

// Error is a variable that cannot be used.
type Error struct {
	Name   string // of the variable; a line of .env is named ".env"
	Source Source
	Got    string // what it held; "<secret>" for a secret, "" for nothing
	Want   string // what is accepted
}

// Error names the variable, where it is set, what it held and what is accepted.
func (e *Error) Error() string {
	text := e.Name
	if e.Source != SourceDefault {
		text += " (" + string(e.Source) + ")"
	}
	switch e.Got {
	case "":
	case masked:
		text += ": " + masked + " is not accepted"
	default:
		text += ": " + strconv.Quote(e.Got) + " is not accepted"
	}
	return text + ": " + e.Want
}
