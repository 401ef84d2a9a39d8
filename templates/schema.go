package templates

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
)

const draft = "https://json-schema.org/draft/2020-12/schema"

// shape is what a schema says about the structure of a value: which fields a
// template may use, and what an absent optional one is taken for.
type shape struct {
	types  []string // JSON types, empty if the schema does not say
	props  map[string]*shape
	names  []string // of props, sorted
	elem   *shape   // of an array's items, or of an object's additionalProperties
	marks  marks    // of the value as a whole
	within marks    // of the value and everything in it
	absent any      // stands in for an absent optional field
}

// marks say where a value may not be shown, see [fieldCheck].
type marks uint8

// The marks of a schema. What is phi is private as well.
const (
	private marks = 1 << iota // "private": true
	phi                       // "phi": true, protected health information
)

func (m marks) String() string {
	if m&phi != 0 {
		return "phi"
	}
	return "private"
}

func (s *shape) is(typ string) bool { return slices.Contains(s.types, typ) }

// structured says that the value is an object or an array, which printed as a
// whole would be Go syntax in a mail.
func (s *shape) structured() bool { return s.props != nil || s.elem != nil }

// compileSchema reads a schema.json. A returned position is a line, 0 if unknown.
func compileSchema(name string, src []byte, z *zones) (*jsonschema.Schema, *shape, int, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(src))
	if err != nil {
		return nil, nil, jsonErrorLine(src, err), fmt.Errorf("read JSON: %w", err)
	}
	root, ok := doc.(map[string]any)
	if !ok || root["$schema"] != draft || root["type"] != "object" {
		return nil, nil, 1, fmt.Errorf(`a schema is an object with "$schema": %q and "type": "object"`, draft)
	}

	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	c.UseLoader(jsonschema.SchemeURLLoader{}) // a schema never makes the worker fetch another
	for format, check := range map[string]func(string) error{
		"line":      checkLine,
		"http-url":  checkURL,
		"time-zone": z.check,
		// The library's accepts leap seconds and lower case, which the renderer could not read.
		"date-time": func(s string) error { _, err := z.parseTime(s, ""); return err },
	} {
		c.RegisterFormat(&jsonschema.Format{Name: format, Validate: func(v any) error {
			if s, ok := v.(string); ok {
				return check(s)
			}
			return nil
		}})
	}
	location := "mem:///" + name + "/schema.json"
	if err := c.AddResource(location, doc); err != nil {
		return nil, nil, 1, fmt.Errorf("add schema: %w", err)
	}
	compiled, err := c.Compile(location)
	if err != nil {
		if invalid, ok := errors.AsType[*jsonschema.SchemaValidationError](err); ok {
			if v, ok := errors.AsType[*jsonschema.ValidationError](invalid.Err); ok {
				leaf := leaves(v)[0]
				return nil, nil, jsonLine(src, leaf.InstanceLocation), fmt.Errorf("%s %s", fieldName(leaf.InstanceLocation), problemOf(leaf))
			}
		}
		return nil, nil, 1, fmt.Errorf("compile schema: %w", err)
	}
	b := shapeBuilder{root: root}
	s := &shape{}
	b.add(s, root, 0)
	if b.problem != nil {
		return nil, nil, 1, b.problem
	}
	s.finish(0)
	return compiled, s, 0, nil
}

func checkLine(s string) error {
	if strings.ContainsAny(s, "\r\n\u0085\u2028\u2029") {
		return valueError("must be one line")
	}
	return nil
}

func (z *zones) check(s string) error {
	if s == "" {
		return nil // an empty column of a CSV file
	}
	_, err := z.load(s)
	return err
}

// shapeBuilder walks the JSON of a schema, because the compiled form drops
// the annotations of ours.
type shapeBuilder struct {
	root    map[string]any
	problem error
}

// maxDepth ends a schema that refers to itself; a mail has no use for one.
const maxDepth = 20

// add merges what one schema object says into s. Alternatives (anyOf, if, …)
// are merged as well: a field that one of them declares is a known field.
func (b *shapeBuilder) add(s *shape, node any, depth int) {
	obj, ok := node.(map[string]any)
	if !ok {
		return
	}
	if depth > maxDepth {
		b.problem = fmt.Errorf("the schema is nested deeper than %d or refers to itself", maxDepth)
		return
	}
	if ref, ok := obj["$ref"].(string); ok {
		b.add(s, b.resolve(ref), depth+1)
	}
	switch t := obj["type"].(type) {
	case string:
		s.types = append(s.types, t)
	case []any:
		for _, name := range t {
			if name, ok := name.(string); ok {
				s.types = append(s.types, name)
			}
		}
	}
	if b.mark(obj, "private") {
		s.marks |= private
	}
	if b.mark(obj, "phi") {
		s.marks |= phi | private
	}
	for _, key := range unfollowed {
		if b.marked(obj[key]) {
			b.problem = fmt.Errorf("a field within %s cannot be marked private or phi: declare it in properties, items or additionalProperties", key)
		}
	}
	if v, ok := obj["default"]; ok {
		s.absent = v
	}
	if props, ok := obj["properties"].(map[string]any); ok {
		if s.props == nil {
			s.props = make(map[string]*shape, len(props))
		}
		for name, sub := range props {
			if s.props[name] == nil {
				s.props[name] = &shape{}
			}
			b.add(s.props[name], sub, depth+1)
		}
	}
	for _, key := range []string{"items", "additionalProperties"} {
		if sub, ok := obj[key].(map[string]any); ok {
			if s.elem == nil {
				s.elem = &shape{}
			}
			b.add(s.elem, sub, depth+1)
		}
	}
	for _, key := range []string{"allOf", "anyOf", "oneOf"} {
		if list, ok := obj[key].([]any); ok {
			for _, sub := range list {
				b.add(s, sub, depth+1)
			}
		}
	}
	for _, key := range []string{"if", "then", "else"} {
		b.add(s, obj[key], depth+1)
	}
}

// unfollowed are the keywords with schemas that add does not merge. The values that only
// they describe are out of the reach of templates.
var unfollowed = []string{
	"patternProperties", "propertyNames", "unevaluatedProperties", "dependentSchemas",
	"prefixItems", "contains", "unevaluatedItems", "not",
}

// mark reads a mark. One that is misspelt would protect nothing.
func (b *shapeBuilder) mark(obj map[string]any, key string) bool {
	v, there := obj[key]
	on, ok := v.(bool)
	if there && !ok {
		b.problem = fmt.Errorf("%s must be true or false", key)
	}
	return on
}

// marked says whether there is a mark anywhere in a part of the schema.
func (b *shapeBuilder) marked(node any) bool {
	switch node := node.(type) {
	case map[string]any:
		if node["private"] == true || node["phi"] == true {
			return true
		}
		for _, sub := range node {
			if b.marked(sub) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(node, b.marked)
	}
	return false
}

// resolve follows a reference within the schema ("#/$defs/address").
func (b *shapeBuilder) resolve(ref string) any {
	var node any = b.root
	path, ok := strings.CutPrefix(ref, "#")
	if ok && path == "" {
		return node
	}
	for token := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		if obj, isObj := node.(map[string]any); isObj {
			node = obj[strings.NewReplacer("~1", "/", "~0", "~").Replace(token)]
		} else {
			ok = false
		}
	}
	if !ok || node == nil {
		b.problem = fmt.Errorf("$ref %q: only references within the schema, such as #/$defs/address, are followed", ref)
	}
	return node
}

// finish completes s once all of the schema is merged. What is in a marked value is
// marked; and a list of marked values is, since its length tells of them.
func (s *shape) finish(outer marks) {
	s.marks |= outer
	if s.elem != nil {
		s.elem.finish(s.marks)
		s.within |= s.elem.within
		if s.props == nil {
			s.marks |= s.elem.marks
		}
	}
	s.names = slices.Sorted(maps.Keys(s.props))
	for _, p := range s.props {
		p.finish(s.marks)
		s.within |= p.within
	}
	s.within |= s.marks
	if s.absent != nil {
		s.absent = s.prepare(s.absent)
		return
	}
	// A template with missingkey=error could not even ask {{if .optional}}
	// otherwise. An absent object or list stays nil, which is false.
	switch {
	case s.is("string"):
		s.absent = ""
	case s.is("boolean"):
		s.absent = false
	case s.is("integer"):
		s.absent = int64(0)
	case s.is("number"):
		s.absent = float64(0)
	}
}

// prepare copies a validated value into what templates see: declared fields
// only, absent ones filled in, text without control characters, whole numbers
// as integers.
func (s *shape) prepare(v any) any {
	switch v := v.(type) {
	case nil:
		return s.absent
	case string:
		if clean := cleanText(v); clean != v {
			return clean
		}
	case map[string]any:
		out := make(map[string]any, max(len(s.props), len(v)))
		s.fill(out, v)
		return out
	case []any:
		out := make([]any, len(v))
		if s.elem != nil {
			for i, e := range v {
				out[i] = s.elem.prepare(e)
			}
		}
		return out
	case bool:
	default:
		return s.prepareNumber(v)
	}
	return v
}

// fill is prepare for an object, into a map the caller brings.
func (s *shape) fill(out, v map[string]any) {
	for _, name := range s.names {
		p := s.props[name]
		if e, ok := v[name]; ok {
			out[name] = p.prepare(e)
		} else {
			out[name] = p.absent
		}
	}
	if s.elem != nil && !s.is("array") {
		for name, e := range v {
			if s.props[name] == nil {
				out[cleanText(name)] = s.elem.prepare(e)
			}
		}
	}
}

// prepareNumber makes one type of each of JSON's two, whatever Go type it came
// in: float64(1000000) would print as 1e+06.
func (s *shape) prepareNumber(v any) any {
	var f float64
	switch n := v.(type) {
	case json.Number:
		if i, err := n.Int64(); err == nil && !s.is("number") {
			return i
		}
		f, _ = n.Float64() // the schema has seen that it is a number
	case float64:
		f = n
	default:
		// The remaining types of Go's numbers; the schema admits nothing else.
		f, _ = strconv.ParseFloat(fmt.Sprint(n), 64)
	}
	if !s.is("number") && f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		return int64(f)
	}
	return f
}

// isControl reports characters that have no place in a mail: controls except
// tab and line feed, and the characters that reorder the text around them,
// with which a name could rewrite the sentence it stands in. Joiners and
// direction marks stay: Persian and Hindi names need them.
func isControl(r rune) bool {
	switch {
	case r == '\t' || r == '\n':
		return false
	case r < 0x20, r >= 0x7f && r <= 0x9f:
		return true
	case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
		return true
	}
	return r == 0xfeff || r == 0xfffe || r == 0xffff
}

// cleanText drops control characters and makes the text valid UTF-8.
func cleanText(s string) string {
	ascii := true
	for i := range len(s) {
		if c := s[i]; c < 0x20 && c != '\t' && c != '\n' || c >= 0x7f {
			ascii = false
			break
		}
	}
	if ascii {
		return s
	}
	s = strings.ReplaceAll(s, "\r\n", "\n")
	return strings.Map(func(r rune) rune {
		if isControl(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd"))
}

// dataErrors turns what the schema library found into errors that name fields
// and never contain a value, which the library's own do.
func dataErrors(template string, err error) error {
	v, ok := errors.AsType[*jsonschema.ValidationError](err)
	if !ok {
		return &DataError{Template: template, Problem: "does not satisfy the schema"}
	}
	var errs []error
	for _, leaf := range leaves(v) {
		path := leaf.InstanceLocation
		var missing []string
		switch k := leaf.ErrorKind.(type) {
		case *kind.Required:
			missing = k.Missing
		case *kind.DependentRequired:
			missing = k.Missing
		case *kind.AdditionalProperties:
			for _, name := range k.Properties {
				errs = append(errs, &DataError{template, fieldName(append(slices.Clip(path), name)), "is not a field of this template"})
			}
		default:
			errs = append(errs, &DataError{template, fieldName(path), problemOf(leaf)})
		}
		for _, name := range missing {
			errs = append(errs, &DataError{template, fieldName(append(slices.Clip(path), name)), "is required"})
		}
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// leaves returns the causes at the bottom; of alternatives of which none
// matched only the first, since each one's complaints would contradict the
// next one's.
func leaves(v *jsonschema.ValidationError) []*jsonschema.ValidationError {
	if len(v.Causes) == 0 {
		return []*jsonschema.ValidationError{v}
	}
	causes := v.Causes
	switch v.ErrorKind.(type) {
	case *kind.AnyOf, *kind.OneOf:
		causes = causes[:1]
	}
	var all []*jsonschema.ValidationError
	for _, c := range causes {
		all = append(all, leaves(c)...)
	}
	return all
}

// fieldName writes a path with dots. The names of undeclared fields come with
// the data, so only what looks like a name is repeated.
func fieldName(path []string) string {
	clean := make([]string, len(path))
	for i, name := range path {
		odd := func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-$", r))
		}
		if clean[i] = name; name == "" || len(name) > 64 || strings.ContainsFunc(name, odd) {
			clean[i] = "(odd name)"
		}
	}
	return strings.Join(clean, ".")
}

// problemOf words one failure, using the schema's side of it only.
func problemOf(v *jsonschema.ValidationError) string {
	switch k := v.ErrorKind.(type) {
	case *kind.Type:
		return "must be " + strings.Join(k.Want, " or ") + ", not " + k.Got
	case *kind.InvalidJsonValue:
		return "has a Go type that is not JSON's; use strings, numbers, booleans, []any and map[string]any"
	case *kind.Required:
		return "lacks " + strings.Join(k.Missing, ", ")
	case *kind.MinLength:
		if k.Want == 1 {
			return "must not be empty"
		}
		return fmt.Sprintf("must have at least %d characters", k.Want)
	case *kind.MaxLength:
		return fmt.Sprintf("must have at most %d characters", k.Want)
	case *kind.Minimum:
		return "must be at least " + k.Want.RatString()
	case *kind.Maximum:
		return "must be at most " + k.Want.RatString()
	case *kind.MinItems:
		return fmt.Sprintf("must have at least %d entries", k.Want)
	case *kind.MaxItems:
		return fmt.Sprintf("must have at most %d entries", k.Want)
	case *kind.Pattern:
		return "must match the pattern " + k.Want
	case *kind.Format:
		if own, ok := errors.AsType[valueError](k.Err); ok {
			return own.Error()
		}
		return "is not a valid " + k.Want
	case *kind.Enum:
		return fmt.Sprintf("must be one of %v", k.Want)
	}
	if path := v.ErrorKind.KeywordPath(); len(path) > 0 {
		return "does not satisfy the schema's " + path[0]
	}
	return "does not satisfy the schema"
}

// jsonErrorLine returns the line of a JSON error, 1 if it has no position.
func jsonErrorLine(src []byte, err error) int {
	offset := int64(0)
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		offset = syntax.Offset
	} else if typ, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		offset = typ.Offset
	}
	return 1 + bytes.Count(src[:min(offset, int64(len(src)))], []byte("\n"))
}

// jsonLine returns the line where the value at path begins, or that of the
// nearest enclosing value.
func jsonLine(src []byte, path []string) int {
	dec := json.NewDecoder(bytes.NewReader(src))
	line := func() int { return 1 + bytes.Count(src[:dec.InputOffset()], []byte("\n")) }
	at := 1
	for _, want := range path {
		open, err := dec.Token()
		if err != nil {
			return at
		}
		found := false
		for i := 0; dec.More() && !found; i++ {
			name := strconv.Itoa(i)
			if open == json.Delim('{') {
				key, err := dec.Token()
				if err != nil {
					return at
				}
				name, _ = key.(string)
			}
			if name == want {
				found, at = true, line()
				break
			}
			var skipped json.RawMessage
			if dec.Decode(&skipped) != nil {
				return at
			}
		}
		if !found {
			return at
		}
	}
	return at
}
