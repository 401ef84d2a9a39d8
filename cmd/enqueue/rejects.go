package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// rejects is the file that refused records are copied to, as they are, so that it can be corrected and
// sent like the input. It comes into being with the first record. Only its owner can read it: it holds
// what the input holds.
type rejects struct {
	path      string
	header    string // goes in front of the first record
	continued bool   // a run that goes on adds to what the interrupted one refused
	dry       bool   // nothing is written

	file *os.File
	w    *bufio.Writer
}

// begin removes what an earlier run left.
func (r *rejects) begin() error {
	if r.continued || r.dry {
		return nil
	}
	if err := os.Remove(r.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove rejected lines of an earlier run: %w", err)
	}
	return nil
}

func (r *rejects) add(raw string) error {
	if r.dry {
		return nil
	}
	if r.file == nil {
		if err := r.create(); err != nil {
			return err
		}
	}
	_, err := r.w.WriteString(raw)
	return err
}

func (r *rejects) create() error {
	flags := os.O_WRONLY | os.O_CREATE
	if r.continued {
		flags |= os.O_APPEND
	} else {
		flags |= os.O_EXCL
	}
	file, err := os.OpenFile(r.path, flags, 0o600)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	r.file, r.w = file, bufio.NewWriter(file)
	if info.Size() == 0 {
		_, err = r.w.WriteString(r.header)
	}
	return err
}

// written reports whether the file holds anything from this run.
func (r *rejects) written() bool { return r.file != nil }

// flush writes out what was added.
func (r *rejects) flush() error {
	if r.file == nil {
		return nil
	}
	return r.w.Flush()
}

func (r *rejects) close() error {
	if r.file == nil {
		return nil
	}
	return errors.Join(r.w.Flush(), r.file.Close())
}
