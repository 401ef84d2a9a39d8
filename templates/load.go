package templates

import (
	"bytes"
	"errors"
	"fmt"
	htmltemplate "html/template"
	"io"
	"maps"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/template/parse"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/text/language"

	texttemplate "text/template"
)

// maxSampleHTML is the most a sample may render to, in bytes. Gmail cuts a
// mail near 102 kB and hides the rest behind a link.
const maxSampleHTML = 90_000

// Names of parsed templates. An author's file defines none of the first three.
const (
	layoutName    = "layout"
	contentName   = "content"
	subjectName   = "subject"
	preheaderName = "preheader"
)

// The parts every locale of a template has.
var partNames = []string{"subject.txt", "body.html", "body.txt"}

// mailTemplate is one template with everything Render needs.
type mailTemplate struct {
	name    string
	schema  *jsonschema.Schema
	shape   *shape
	sample  map[string]any
	locales map[string]*variant
	match   *matcher
	pool    sync.Pool // of *workspace
}

// variant is a template in one locale: parsed, escaped, ready to execute.
type variant struct {
	lang          string
	subject, text *texttemplate.Template
	html          *htmltemplate.Template
	// inSubject are the fields a subject shows; a line break in one of them is
	// refused, since it would end the header.
	inSubject []string
}

// loader collects the problems of one Load.
type loader struct {
	files    tree
	problems []Problem
	sheet    stylesheet
	noInline bool // for the test that inlining changes no text
	locales  map[string]*locale
	zones    *zones
	layout   struct{ html, text map[string]*parse.Tree }
}

// report takes a path of the tree or, from a message of the template
// packages, the same path.
func (l *loader) report(name string, line int, format string, args ...any) {
	display := name
	if f, ok := l.files[name]; ok {
		display = f.display
	}
	l.problems = append(l.problems, Problem{File: display, Line: max(line, 1), Text: fmt.Sprintf(format, args...)})
}

// reportTemplate reports an error of text/template or html/template, which
// carries its position in its text.
func (l *loader) reportTemplate(name string, err error) {
	line, text := 1, err.Error()
	if m := templateError.FindStringSubmatch(text); m != nil {
		if n, err := strconv.Atoi(m[2]); err == nil {
			name, line, text = m[1], n, m[3]
		}
	}
	l.report(name, line, "%s", text)
}

var templateError = regexp.MustCompile(`(?s)^(?:html/)?template: ?([^:]+):(\d+):(?:\d+:)? ?(.*)$`)

// has says whether the file exists and has content, and reports if not.
func (l *loader) has(name string) bool {
	f, ok := l.files[name]
	switch {
	case !ok:
		l.problems = append(l.problems, Problem{File: l.missing(name), Line: 1, Text: "the file is missing"})
		return false
	case strings.TrimSpace(f.data) == "":
		l.report(name, 1, "the file is empty")
		return false
	}
	return true
}

// missing says where an absent file should be: beside those that are there.
func (l *loader) missing(name string) string {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		best := ""
		for other, f := range l.files {
			if strings.HasPrefix(other, dir+"/") {
				at := f.display[:len(f.display)-len(other)+len(dir)] + filepath.FromSlash(name[len(dir):])
				if best == "" || strings.HasPrefix(best, "builtin") {
					best = at
				}
			}
		}
		if best != "" {
			return best
		}
	}
	return name
}

// load builds the set. Whatever can be checked although something else failed
// is checked, so that an author sees all of it at once.
func (l *loader) load() (*Set, error) {
	l.zones = new(zones)
	l.loadLocales()
	l.loadLayout()
	set := &Set{templates: map[string]*mailTemplate{}}
	for name, folders := range l.group() {
		if t := l.loadTemplate(name, folders); t != nil {
			set.templates[name] = t
		}
	}
	if err := newLoadError(l.problems); err != nil {
		return nil, err
	}
	return set, nil
}

func (l *loader) loadLocales() {
	l.locales = map[string]*locale{}
	for name, f := range l.files {
		base, ok := strings.CutPrefix(name, localesDir+"/")
		if !ok {
			continue
		}
		lang, isJSON := strings.CutSuffix(base, ".json")
		tag, ok := canonicalTag(lang)
		if !isJSON || !ok {
			l.report(name, 1, "a locale file is called by its BCP 47 tag in canonical form, such as pt-BR.json")
			continue
		}
		loc, err := parseLocale(tag, []byte(f.data), l.zones)
		if err != nil {
			for msg := range strings.SplitSeq(err.Error(), "\n") {
				l.report(name, jsonErrorLine([]byte(f.data), err), "%s", msg)
			}
			continue
		}
		l.locales[lang] = loc
	}
}

func canonicalTag(s string) (language.Tag, bool) {
	tag, err := language.Parse(s)
	return tag, err == nil && tag.String() == s
}

// localeFor returns the locale data of a tag or of its nearest parent: a
// template in pt-BR can use locales/pt.json.
func (l *loader) localeFor(tag language.Tag) *locale {
	for t := tag; !t.IsRoot(); t = t.Parent() {
		if loc, ok := l.locales[t.String()]; ok {
			own := *loc
			own.tag, own.lang = tag, tag.String()
			return &own
		}
	}
	return nil
}

func (l *loader) loadLayout() {
	before := len(l.problems)
	html, text, css := layoutDir+"/body.html", layoutDir+"/body.txt", layoutDir+"/style.css"
	if l.has(css) {
		sheet, line, err := parseCSS(l.files[css].data)
		if err != nil {
			l.report(css, line, "%s", err)
		}
		l.sheet = sheet
	}
	for name := range l.files {
		if strings.HasPrefix(name, layoutDir+"/") && name != html && name != text && name != css {
			l.report(name, 1, "not a part of the layout; it has body.html, body.txt and style.css")
		}
	}
	if l.has(html) {
		for _, must := range []string{stylesheetMark, `name="color-scheme"`, "{{lang}}"} {
			if !strings.Contains(l.files[html].data, must) {
				l.report(html, 1, "the layout has no %s", must)
			}
		}
		l.layout.html = l.parseLayout(html, l.inline(html))
	}
	if l.has(text) {
		l.layout.text = l.parseLayout(text, strings.TrimRight(l.files[text].data, "\n"))
	}
	if len(l.problems) > before {
		l.layout.html, l.layout.text = nil, nil // every template would report the consequences
	}
}

func (l *loader) inline(name string) string {
	if l.noInline {
		return strings.Replace(l.files[name].data, stylesheetMark, "", 1)
	}
	return l.sheet.inline(l.files[name].data, func(line int, problem string) { l.report(name, line, "%s", problem) })
}

func (l *loader) parseLayout(name, src string) map[string]*parse.Tree {
	trees := l.parse(name, src, layoutName)
	if trees != nil && !strings.Contains(src, `template "`+contentName+`"`) {
		l.report(name, 1, `the layout has no {{template "content" .}}`)
	}
	return trees
}

// parse returns the trees of one file: its own under main, and its defines.
// The trees keep the file's path, which errors of execution then show.
func (l *loader) parse(name, src, main string) map[string]*parse.Tree {
	t, err := texttemplate.New(name).Funcs((&locale{}).funcs()).Parse(src)
	if err != nil {
		l.reportTemplate(name, err)
		return nil
	}
	trees := map[string]*parse.Tree{}
	for _, t := range t.Templates() {
		switch {
		case t.Name() == name:
			trees[main] = t.Tree
		case t.Name() == layoutName || t.Name() == contentName || t.Name() == subjectName:
			l.report(name, 1, "the name %q is taken: define another", t.Name())
		default:
			trees[t.Name()] = t.Tree
		}
	}
	return trees
}

var templateName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// group finds the templates and the locale folders of each.
func (l *loader) group() map[string][]string {
	found := map[string][]string{}
	for name := range l.files {
		parts := strings.Split(name, "/")
		switch {
		case parts[0] == layoutDir || parts[0] == localesDir:
			continue
		case len(parts) == 1:
			l.report(name, 1, "not part of a template; a template is a folder")
			continue
		case !templateName.MatchString(parts[0]):
			l.report(name, 1, "a template's name has lower case letters, digits, - and _, at most 64")
			continue
		}
		folders := found[parts[0]]
		switch {
		case len(parts) == 2 && (parts[1] == "schema.json" || parts[1] == "sample.json"):
		case len(parts) == 3 && slices.Contains(partNames, parts[2]):
			if !slices.Contains(folders, parts[1]) {
				folders = append(folders, parts[1])
			}
		default:
			l.report(name, 1, "not a part of a template; it has schema.json, sample.json and per locale %s", strings.Join(partNames, ", "))
		}
		found[parts[0]] = folders
	}
	return found
}

func (l *loader) loadTemplate(name string, folders []string) *mailTemplate {
	slices.Sort(folders)
	t := &mailTemplate{name: name, locales: map[string]*variant{}}
	t.pool.New = func() any { return &workspace{root: map[string]any{}} }
	schemaFile, sampleFile := name+"/schema.json", name+"/sample.json"
	if l.has(schemaFile) {
		var line int
		var err error
		if t.schema, t.shape, line, err = compileSchema(name, []byte(l.files[schemaFile].data), l.zones); err != nil {
			l.report(schemaFile, line, "%s", err)
		}
	}
	if l.has(sampleFile) {
		l.loadSample(t, sampleFile)
	}

	var tags []language.Tag
	for _, folder := range folders {
		tag, ok := canonicalTag(folder)
		if !ok {
			l.report(name+"/"+folder+"/"+partNames[0], 1, "%q is not a BCP 47 tag in canonical form, such as pt-BR", folder)
			continue
		}
		if folder == defaultLocale {
			tags = slices.Insert(tags, 0, tag) // the matcher takes the first for the default
		} else {
			tags = append(tags, tag)
		}
		if v := l.loadVariant(t, tag); v != nil {
			t.locales[folder] = v
		}
	}
	if !slices.Contains(folders, defaultLocale) {
		l.problems = append(l.problems, Problem{
			File: l.missing(name + "/" + defaultLocale), Line: 1,
			Text: "the default locale is missing, which every other falls back to",
		})
		return nil
	}
	t.match = newMatcher(tags)
	return t
}

func (l *loader) loadSample(t *mailTemplate, name string) {
	src := []byte(l.files[name].data)
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(src))
	if err != nil {
		l.report(name, jsonErrorLine(src, err), "read JSON: %s", err)
		return
	}
	sample, ok := doc.(map[string]any)
	if !ok {
		l.report(name, 1, "a sample is a JSON object")
		return
	}
	if t.schema == nil {
		return
	}
	if err := t.schema.Validate(doc); err != nil {
		v, ok := errors.AsType[*jsonschema.ValidationError](err)
		if !ok {
			l.report(name, 1, "does not satisfy the schema")
			return
		}
		for _, leaf := range leaves(v) {
			l.report(name, jsonLine(src, leaf.InstanceLocation), "the sample does not satisfy the schema: %s %s", fieldName(leaf.InstanceLocation), problemOf(leaf))
		}
		return
	}
	t.sample = sample
}

// loadVariant builds one locale of a template, or reports why not.
func (l *loader) loadVariant(t *mailTemplate, tag language.Tag) *variant {
	lang := tag.String()
	before := len(l.problems)
	subjectFile, htmlFile, textFile := t.name+"/"+lang+"/subject.txt", t.name+"/"+lang+"/body.html", t.name+"/"+lang+"/body.txt"
	loc := l.localeFor(tag)
	if loc == nil {
		l.report(subjectFile, 1, "no locale data: add %s/%s.json", localesDir, lang)
	}
	var subject, html, text map[string]*parse.Tree
	if l.has(subjectFile) {
		subject = l.parse(subjectFile, strings.TrimRight(l.files[subjectFile].data, "\n"), subjectName)
	}
	if l.has(htmlFile) {
		html = l.parse(htmlFile, strings.TrimRight(l.inline(htmlFile), "\n"), contentName)
		if html != nil && html[preheaderName] == nil {
			l.report(htmlFile, 1, `{{define "preheader"}} is missing: the line an inbox shows beside the subject`)
			html[preheaderName] = &parse.Tree{} // said once is enough
		}
	}
	if l.has(textFile) {
		text = l.parse(textFile, strings.TrimRight(l.files[textFile].data, "\n"), contentName)
	}
	if l.layout.html == nil || l.layout.text == nil || t.shape == nil {
		return nil
	}

	// Fields are checked in the parts that could be parsed, whatever became of
	// the others.
	public := map[string]bool{subjectName: true, preheaderName: true}
	check := func(main string, sets ...map[string]*parse.Tree) (map[string]*parse.Tree, []string) {
		trees := map[string]*parse.Tree{}
		for _, s := range sets {
			maps.Copy(trees, s)
		}
		c := fieldCheck{trees: trees, public: public, report: func(file string, line int, problem string) {
			l.report(file, line, "%s", problem)
		}}
		c.checkFields(main, t.shape)
		return trees, slices.Sorted(maps.Keys(c.used))
	}
	var inSubject []string
	if subject != nil {
		subject, inSubject = check(subjectName, subject)
		if html != nil {
			html, _ = check(layoutName, l.layout.html, html, subject)
		}
	}
	if text != nil {
		text, _ = check(layoutName, l.layout.text, text)
	}
	if len(l.problems) > before || loc == nil {
		return nil
	}

	v := &variant{lang: lang, inSubject: inSubject}
	var err error
	if v.subject, err = textSet(loc, subject, subjectName); err != nil {
		l.reportTemplate(subjectFile, err)
	}
	if v.text, err = textSet(loc, text, layoutName); err != nil {
		l.reportTemplate(textFile, err)
	}
	if v.html, err = htmlSet(loc, html); err != nil {
		l.reportTemplate(htmlFile, err)
	}
	if len(l.problems) > before || t.sample == nil {
		return nil
	}
	l.trySamples(t, v)
	return v
}

func textSet(loc *locale, trees map[string]*parse.Tree, main string) (*texttemplate.Template, error) {
	t := texttemplate.New("").Funcs(loc.funcs()).Option("missingkey=error")
	f := folder{loc: loc}
	for name, tree := range trees {
		tree = tree.Copy() // the layout's is shared by every locale
		f.list(tree.Root)
		if _, err := t.AddParseTree(name, tree); err != nil {
			return nil, err
		}
	}
	return t.Lookup(main), nil
}

func htmlSet(loc *locale, trees map[string]*parse.Tree) (*htmltemplate.Template, error) {
	t := htmltemplate.New("").Funcs(loc.funcs()).Option("missingkey=error")
	f := folder{loc: loc, html: true}
	for name, tree := range trees {
		tree = tree.Copy()
		f.list(tree.Root)
		if _, err := t.AddParseTree(name, tree); err != nil {
			return nil, err
		}
	}
	// The first execution escapes. Without data it need not come to its end;
	// only an escaping error counts.
	main := t.Lookup(layoutName)
	if escape, ok := errors.AsType[*htmltemplate.Error](main.Execute(io.Discard, nil)); ok {
		return nil, escape
	}
	f.putComments(main)
	return main, nil
}

// trySamples renders the sample as it is and without its optional fields, and
// looks for what must never reach a patient.
func (l *loader) trySamples(t *mailTemplate, v *variant) {
	folder := t.name + "/" + v.lang + "/"
	samples := []map[string]any{t.sample}
	if least := t.required(); len(least) < len(t.sample) && t.schema.Validate(least) == nil {
		samples = append(samples, least)
	}
	before := len(l.problems)
	for i, sample := range samples {
		which := "the sample"
		if i > 0 {
			if len(l.problems) > before {
				return // the same again would help nobody
			}
			which = "the sample without its optional fields"
		}
		root := map[string]any{}
		t.shape.fill(root, sample)

		run := func(name, part string, trees map[string]*parse.Tree) string {
			w := newTracer(trees)
			var exec interface {
				ExecuteTemplate(w io.Writer, name string, data any) error
			} = v.text
			switch part {
			case "subject.txt":
				exec = v.subject
			case "body.html":
				exec = v.html
			}
			if err := exec.ExecuteTemplate(w, name, root); err != nil {
				l.reportTemplate(folder+part, err)
				return "-" // whatever else is wrong, it is not empty
			}
			for _, f := range w.faults {
				l.report(f.file, f.line, "%s renders %s: %s", which, f.mark, f.why)
			}
			return w.String()
		}

		line := run(subjectName, "subject.txt", textTrees(v.subject))
		switch line = strings.TrimSpace(line); {
		case line == "":
			l.report(folder+"subject.txt", 1, "%s renders an empty subject", which)
		case strings.ContainsAny(line, "\r\n"):
			l.report(folder+"subject.txt", 1, "%s renders a subject with a line break", which)
		}
		for part, trees := range map[string]map[string]*parse.Tree{"body.html": escapedTrees(v.html), "body.txt": textTrees(v.text)} {
			if strings.TrimSpace(run(contentName, part, trees)) == "" {
				l.report(folder+part, 1, "%s renders an empty part", which)
			}
			if whole := run(layoutName, part, trees); part == "body.html" && len(whole) > maxSampleHTML {
				l.report(folder+part, 1, "%s renders to %d bytes; mail programs cut off HTML beyond %d", which, len(whole), maxSampleHTML)
			}
		}
	}
}

// required returns the sample without what the schema does not demand.
func (t *mailTemplate) required() map[string]any {
	least := map[string]any{}
	for _, name := range t.schema.Required {
		if v, ok := t.sample[name]; ok {
			least[name] = v
		}
	}
	return least
}

// marks are what the template packages print instead of failing.
var marks = map[string]string{
	"ZgotmplZ":   "html/template refuses the value in this place (an address that is not http or https, or data in CSS or JavaScript)",
	"<no value>": "an action has no value",
}

// tracer is a writer that knows which action printed what. The template
// packages write the text between actions straight from the parse tree, so
// the last such text before a mark tells the line.
type tracer struct {
	strings.Builder
	texts  map[*byte]position
	last   position
	faults []fault
}

type position struct {
	file string
	line int
}

type fault struct {
	position
	mark, why string
}

func newTracer(trees map[string]*parse.Tree) *tracer {
	t := &tracer{texts: map[*byte]position{}}
	for _, tree := range trees {
		if tree == nil || tree.Root == nil {
			continue
		}
		t.last = position{tree.ParseName, 1}
		eachText(tree.Root, func(n *parse.TextNode) {
			if len(n.Text) == 0 {
				return
			}
			location, _ := tree.ErrorContext(n)
			file, line := splitLocation(location)
			t.texts[&n.Text[0]] = position{file, line + bytes.Count(n.Text, []byte("\n"))}
		})
	}
	return t
}

func (t *tracer) Write(p []byte) (int, error) {
	if len(p) > 0 {
		if at, ok := t.texts[&p[0]]; ok {
			t.last = at
		} else {
			for mark, why := range marks {
				if bytes.Contains(p, []byte(mark)) {
					t.faults = append(t.faults, fault{t.last, mark, why})
				}
			}
		}
	}
	return t.Builder.Write(p)
}

func eachText(n parse.Node, f func(*parse.TextNode)) {
	branch := func(b *parse.BranchNode) {
		eachText(b.List, f)
		if b.ElseList != nil {
			eachText(b.ElseList, f)
		}
	}
	switch n := n.(type) {
	case *parse.TextNode:
		f(n)
	case *parse.ListNode:
		for _, c := range n.Nodes {
			eachText(c, f)
		}
	case *parse.IfNode:
		branch(&n.BranchNode)
	case *parse.WithNode:
		branch(&n.BranchNode)
	case *parse.RangeNode:
		branch(&n.BranchNode)
	}
}

func textTrees(t *texttemplate.Template) map[string]*parse.Tree {
	trees := map[string]*parse.Tree{}
	for _, t := range t.Templates() {
		trees[t.Name()] = t.Tree
	}
	return trees
}

// escapedTrees are what a html/template really executes.
func escapedTrees(t *htmltemplate.Template) map[string]*parse.Tree {
	trees := map[string]*parse.Tree{}
	for _, t := range t.Templates() {
		trees[t.Name()] = t.Tree
	}
	return trees
}
