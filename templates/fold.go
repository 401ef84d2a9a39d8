package templates

import (
	"bytes"
	"fmt"
	htmltemplate "html/template"
	"text/template/parse"
)

// folder replaces actions whose result is the same for every mail of a locale
// ({{lang}}, {{dir}}, {{word "…"}}, {{mso "…"}}) by their text. A layout has
// many of them, and each would cost a call by reflection in every mail.
type folder struct {
	loc  *locale
	html bool
	// comments are the conditional comments of {{mso}}. html/template drops
	// comments from text, so a mark holds their place until it has escaped.
	comments []string
}

// commentMark uses characters of Unicode's private area; they mean nothing.
func commentMark(i int) string { return fmt.Sprintf("\ue000%d\ue001", i) }

func (f *folder) list(l *parse.ListNode) {
	if l == nil {
		return
	}
	for i, n := range l.Nodes {
		switch n := n.(type) {
		case *parse.ActionNode:
			if text, ok := f.constant(n); ok {
				l.Nodes[i] = &parse.TextNode{NodeType: parse.NodeText, Pos: n.Pos, Text: []byte(text)}
			}
		case *parse.IfNode:
			f.branch(&n.BranchNode)
		case *parse.WithNode:
			f.branch(&n.BranchNode)
		case *parse.RangeNode:
			f.branch(&n.BranchNode)
		}
	}
}

func (f *folder) branch(b *parse.BranchNode) {
	f.list(b.List)
	f.list(b.ElseList)
}

func (f *folder) constant(n *parse.ActionNode) (string, bool) {
	if len(n.Pipe.Decl) > 0 || len(n.Pipe.Cmds) != 1 {
		return "", false
	}
	args := n.Pipe.Cmds[0].Args
	id, ok := args[0].(*parse.IdentifierNode)
	if !ok {
		return "", false
	}
	literal := ""
	if len(args) == 2 {
		if s, isString := args[1].(*parse.StringNode); isString {
			literal = s.Text
		}
	}
	var text string
	switch {
	case id.Ident == "lang":
		text = f.loc.lang
	case id.Ident == "dir":
		text = f.loc.data.Direction
	case id.Ident == "word":
		// An unknown word stays an action and fails with its position.
		if text, ok = f.loc.data.Words[literal]; !ok {
			return "", false
		}
	case id.Ident == "mso" && f.html && literal != "":
		f.comments = append(f.comments, string(msoComment(literal)))
		return commentMark(len(f.comments) - 1), true
	default:
		return "", false
	}
	if f.html {
		text = htmltemplate.HTMLEscapeString(text)
	}
	return text, true
}

// putComments fills in the comments once html/template is done with the trees.
func (f *folder) putComments(t *htmltemplate.Template) {
	for _, tree := range escapedTrees(t) {
		if tree == nil || tree.Root == nil {
			continue
		}
		eachText(tree.Root, func(n *parse.TextNode) {
			for i, c := range f.comments {
				n.Text = bytes.ReplaceAll(n.Text, []byte(commentMark(i)), []byte(c))
			}
		})
	}
}
