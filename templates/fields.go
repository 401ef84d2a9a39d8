package templates

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/template/parse"
)

// opaque is a value whose structure nobody declared: a text, a number, the
// result of a function. It has no fields.
var opaque = &shape{}

// unknown is the value of a field that was already reported; anything may be
// asked of it, so that one mistake is one message.
var unknown = &shape{}

// linkShape is what {{link …}} returns, see [Link].
var linkShape = &shape{props: map[string]*shape{"URL": opaque, "Label": opaque}, names: []string{"Label", "URL"}}

// fieldCheck walks parse trees as the template engine would, carrying what the
// schema knows about dot and every variable, and reports what a sample might
// not show: a field that no schema declares, in a branch the sample does not
// take, would otherwise fail in production.
type fieldCheck struct {
	trees  map[string]*parse.Tree
	report func(file string, line int, problem string)
	// refuse has, by the names of trees, the marks of the fields that these and what
	// they call may not read: a subject would show a diagnosis on a locked screen.
	refuse map[string]marks
	used   map[string]bool // top-level fields that were read

	root  *shape
	tree  *parse.Tree
	vars  []variable
	calls []call // templates being walked, against endless recursion
}

type variable struct {
	name string
	s    *shape
}

type call struct {
	name string
	dot  *shape
}

// checkFields walks the tree called name with dot as its data.
func (c *fieldCheck) checkFields(name string, dot *shape) {
	c.used = map[string]bool{}
	c.root = dot
	c.template(name, dot)
}

func (c *fieldCheck) problem(n parse.Node, format string, args ...any) {
	location, _ := c.tree.ErrorContext(n)
	file, line := splitLocation(location)
	c.report(file, line, fmt.Sprintf(format, args...))
}

// splitLocation reads the "file:line:column" of the template packages.
func splitLocation(location string) (file string, line int) {
	parts := strings.Split(location, ":")
	if len(parts) < 2 {
		return location, 1
	}
	line, err := strconv.Atoi(parts[1])
	if err != nil {
		return location, 1
	}
	return parts[0], line
}

func (c *fieldCheck) template(name string, dot *shape) {
	tree := c.trees[name]
	if tree == nil || tree.Root == nil || slices.Contains(c.calls, call{name, dot}) {
		return
	}
	outer, vars := c.tree, c.vars
	c.tree, c.vars = tree, []variable{{"$", dot}}
	c.calls = append(c.calls, call{name, dot})
	c.list(tree.Root, dot)
	c.calls = c.calls[:len(c.calls)-1]
	c.tree, c.vars = outer, vars
}

func (c *fieldCheck) list(l *parse.ListNode, dot *shape) {
	if l == nil {
		return
	}
	for _, n := range l.Nodes {
		c.node(n, dot)
	}
}

func (c *fieldCheck) node(n parse.Node, dot *shape) {
	switch n := n.(type) {
	case *parse.ActionNode:
		s := c.pipe(n.Pipe, dot)
		if len(n.Pipe.Decl) == 0 && s.structured() {
			c.problem(n, "%s prints a whole object or list; name the field", n)
		}
	case *parse.IfNode:
		c.branch(&n.BranchNode, dot)
	case *parse.WithNode:
		c.branch(&n.BranchNode, dot)
	case *parse.RangeNode:
		c.branch(&n.BranchNode, dot)
	case *parse.TemplateNode:
		arg := opaque
		if n.Pipe != nil {
			arg = c.pipe(n.Pipe, dot)
		}
		if c.trees[n.Name] == nil {
			c.problem(n, "no template %q is defined", n.Name)
		}
		c.template(n.Name, arg)
	case *parse.ListNode:
		c.list(n, dot)
	}
}

func (c *fieldCheck) branch(n *parse.BranchNode, dot *shape) {
	mark := len(c.vars)
	value := c.pipe(n.Pipe, dot)
	inner := dot
	switch n.NodeType {
	case parse.NodeWith:
		inner = value
	case parse.NodeRange:
		inner = c.element(n.Pipe, value)
		// The variables of range hold key and element, not the list.
		switch decl := c.vars[mark:]; len(n.Pipe.Decl) {
		case 1:
			decl[0].s = inner
		case 2:
			decl[0].s, decl[1].s = opaque, inner
		}
	}
	body := len(c.vars)
	c.list(n.List, inner)
	c.vars = c.vars[:body]
	c.list(n.ElseList, dot)
	c.vars = c.vars[:mark]
}

// element is the value of which only running the template shows which of s it is. It may
// be any field of an object.
func (c *fieldCheck) element(n parse.Node, s *shape) *shape {
	if s.props != nil {
		c.whole(n, s)
	}
	switch {
	case s == unknown:
		return unknown
	case s.elem != nil:
		return s.elem
	}
	return opaque
}

// pipe evaluates a pipeline and declares or assigns its variables.
func (c *fieldCheck) pipe(p *parse.PipeNode, dot *shape) *shape {
	if p == nil {
		return opaque
	}
	value := opaque
	for i, cmd := range p.Cmds {
		value = c.command(cmd, dot, i > 0, value)
	}
	for _, v := range p.Decl {
		if p.IsAssign {
			for i := range slices.Backward(c.vars) {
				if c.vars[i].name == v.Ident[0] {
					// From here on it is either, depending on the branch taken.
					c.whole(p, c.vars[i].s)
					c.whole(p, value)
					c.vars[i].s = value
					break
				}
			}
			continue
		}
		c.vars = append(c.vars, variable{v.Ident[0], value})
	}
	return value
}

func (c *fieldCheck) command(cmd *parse.CommandNode, dot *shape, piped bool, final *shape) *shape {
	name := ""
	if id, ok := cmd.Args[0].(*parse.IdentifierNode); ok {
		name = id.Ident
	}
	if name == "" {
		return c.arg(cmd.Args[0], dot)
	}
	args := make([]*shape, 0, len(cmd.Args))
	for _, a := range cmd.Args[1:] {
		args = append(args, c.arg(a, dot))
	}
	if piped {
		args = append(args, final)
	}
	return c.function(cmd, name, args, piped)
}

func (c *fieldCheck) function(cmd *parse.CommandNode, name string, args []*shape, piped bool) *shape {
	switch name {
	case "index", "slice":
		// They take a part of it.
	case "len", "not":
		// They tell how many or whether, which is no secret of what is in it.
	default:
		for _, a := range args {
			c.whole(cmd, a)
		}
	}
	switch name {
	case "mso":
		c.literalMarkup(cmd, piped)
	case "link":
		return linkShape
	case "index":
		return c.index(cmd, args, piped)
	case "slice":
		if len(args) > 0 {
			return args[0]
		}
	case "and", "or":
		// The result is one of the arguments.
		if i := slices.IndexFunc(args, (*shape).structured); i >= 0 {
			return args[i]
		}
		return opaque
	case "print", "printf", "println", "html", "js", "urlquery":
		if slices.ContainsFunc(args, (*shape).structured) {
			c.problem(cmd, "%s prints a whole object or list; name the field", name)
		}
	}
	return opaque
}

// index follows the keys that can be read, and takes any element for those that cannot.
func (c *fieldCheck) index(cmd *parse.CommandNode, args []*shape, piped bool) *shape {
	if len(args) == 0 {
		return opaque
	}
	s := args[0]
	for _, a := range cmd.Args[min(2, len(cmd.Args)):] {
		if key, ok := a.(*parse.StringNode); ok && s.props != nil && (s.elem == nil || s.props[key.Text] != nil) {
			s = c.field(a, s, key.Text)
			continue
		}
		s = c.element(a, s)
	}
	if piped && len(cmd.Args) > 1 {
		s = c.element(cmd, s) // the last key comes through the pipe
	}
	return s
}

// literalMarkup holds the one function that returns markup to literals.
func (c *fieldCheck) literalMarkup(cmd *parse.CommandNode, piped bool) {
	if !piped && len(cmd.Args) == 2 {
		if lit, ok := cmd.Args[1].(*parse.StringNode); ok {
			if strings.Contains(lit.Text, "--") || strings.Contains(lit.Text, "<!") {
				c.problem(cmd, "the text of mso must not contain a comment")
			}
			return
		}
	}
	c.problem(cmd, "mso takes one literal text: data in it would not be escaped")
}

func (c *fieldCheck) arg(n parse.Node, dot *shape) *shape {
	switch n := n.(type) {
	case *parse.DotNode:
		c.see(n, dot, ".")
		return dot
	case *parse.FieldNode:
		return c.fields(n, dot, n.Ident)
	case *parse.VariableNode:
		for i := range slices.Backward(c.vars) {
			if c.vars[i].name == n.Ident[0] {
				if len(n.Ident) == 1 {
					c.see(n, c.vars[i].s, n.Ident[0])
				}
				return c.fields(n, c.vars[i].s, n.Ident[1:])
			}
		}
	case *parse.ChainNode:
		return c.fields(n, c.arg(n.Node, dot), n.Field)
	case *parse.PipeNode:
		return c.pipe(n, dot)
	case *parse.IdentifierNode:
		return opaque // a function without arguments
	}
	return opaque
}

func (c *fieldCheck) fields(n parse.Node, s *shape, names []string) *shape {
	for _, name := range names {
		s = c.field(n, s, name)
	}
	return s
}

func (c *fieldCheck) field(n parse.Node, s *shape, name string) *shape {
	if s == unknown {
		return unknown
	}
	f, ok := s.props[name]
	if !ok {
		known := "it has no fields"
		if len(s.props) > 0 {
			known = "declared are " + strings.Join(slices.Sorted(maps.Keys(s.props)), ", ")
		}
		c.problem(n, "unknown field %s in %s: schema.json does not declare it; %s", name, n, known)
		return unknown
	}
	if s == c.root {
		c.used[name] = true
	}
	c.see(n, f, name)
	return f
}

// see reports a marked value used where its mark forbids it.
func (c *fieldCheck) see(n parse.Node, s *shape, name string) {
	if place, refused := c.place(); s.marks&refused != 0 {
		c.problem(n, "%s field %s in the %s, %s", s.marks, name, place, exposure(refused))
	}
}

// whole reports a value whose parts cannot be told apart any more, if one of them may
// not be seen here. A value that is marked itself was reported where it was read.
func (c *fieldCheck) whole(n parse.Node, s *shape) {
	place, refused := c.place()
	if s.within&refused == 0 || s.marks&refused != 0 {
		return
	}
	field, mark := s.find(refused)
	c.problem(n, "%s takes a whole object or list and with it the %s field %s into the %s, %s", n, mark, field, place, exposure(refused))
}

// place says where the output of the tree being walked is shown, and which marks must
// not be there.
func (c *fieldCheck) place() (name string, refused marks) {
	for _, call := range c.calls {
		if m := c.refuse[call.name]; m != 0 {
			return call.name, m
		}
	}
	return "", 0
}

func exposure(refused marks) string {
	if refused&private != 0 {
		return "which shows on locked screens and in notifications"
	}
	return "which leaves the platform"
}

// find returns the first field within s that has one of the marks.
func (s *shape) find(m marks) (string, marks) {
	for _, name := range s.names {
		if p := s.props[name]; p.marks&m != 0 {
			return name, p.marks
		} else if p.within&m != 0 {
			return p.find(m)
		}
	}
	if s.elem != nil && s.elem.marks&m == 0 {
		return s.elem.find(m)
	}
	return "of any other name", s.within
}
