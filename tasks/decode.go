package tasks

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// A DecodeError says why a payload cannot become a job. Trying again does not
// help.
type DecodeError struct {
	// Job is what the payload should have been: email, notification, delivery or
	// digest.
	Job string
	// Err is the cause. Its text holds no value of the payload.
	Err error
}

// Error returns the reason.
func (e *DecodeError) Error() string { return "decode " + e.Job + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *DecodeError) Unwrap() error { return e.Err }

// Permanent reports true.
func (e *DecodeError) Permanent() bool { return true }

// decode fills job from payload; version is the job's field of that name.
func decode(payload []byte, limit int, job any, version *int) error {
	if len(payload) > limit {
		return fmt.Errorf("payload has %d bytes, the limit is %d", len(payload), limit)
	}
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber()
	err := dec.Decode(job)
	// The version is judged first, also after an error: a newer payload may not
	// fit the type, and the answer is then not "bad JSON".
	if *version > Version {
		return fmt.Errorf("payload has version %d, this worker reads up to %d: deploy newer workers before newer producers", *version, Version)
	}
	if err != nil {
		return safeJSONError(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("payload goes on after the JSON object")
	}
	if *version < 1 {
		return errors.New("payload has no version: v must be 1 or more")
	}
	return nil
}

// safeJSONError rewrites an error of encoding/json so that it names fields and
// offsets but no value.
func safeJSONError(err error) error {
	if typeErr, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		field := typeErr.Field
		if field == "" {
			return errors.New("payload is not a JSON object")
		}
		return fmt.Errorf("field %s has the wrong JSON type, want %s", field, typeErr.Type)
	}
	if syntaxErr, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("payload is not valid JSON at byte %d", syntaxErr.Offset)
	}
	if corrupt, ok := errors.AsType[base64.CorruptInputError](err); ok {
		return fmt.Errorf("an attachment is not valid base64 at byte %d", int64(corrupt))
	}
	if errors.Is(err, errDuration) {
		return err
	}
	if _, ok := errors.AsType[*time.ParseError](err); ok {
		return errors.New("a time is not in the form of RFC 3339")
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return errors.New("payload ends too early")
	}
	return errors.New("payload is not valid JSON")
}

// plainNumbers replaces every json.Number in value. A float64 for everything
// would print 1000000 as 1e+06 in a template and round long identifiers.
func plainNumbers(value any) any {
	switch value := value.(type) {
	case json.Number:
		if n, err := value.Int64(); err == nil {
			return n
		}
		if f, err := value.Float64(); err == nil && strings.ContainsAny(string(value), ".eE") {
			return f
		}
		return value
	case map[string]any:
		for key, inner := range value {
			value[key] = plainNumbers(inner)
		}
	case []any:
		for i, inner := range value {
			value[i] = plainNumbers(inner)
		}
	}
	return value
}
