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

// The files every locale of an email template has.
const (
	subjectFile = "subject.txt"
	htmlFile    = "body.html"
	textFile    = "body.txt"
)

// template is one template with everything Render needs.
type template struct {
	name                string
	email, notification bool // the parts it has; of an email, of a notification, or both
	schema              *jsonschema.Schema
	shape               *shape
	sample              map[string]any
	locales             map[string]*variant
	match               *matcher
	webhook             *texttemplate.Template // nil without webhook.json
	pool                sync.Pool              // of *workspace
}

// variant is a template in one locale: parsed, escaped, ready to execute.
type variant struct {
	lang          string
	subject, text *texttemplate.Template
	html          *htmltemplate.Template
	// inSubject are the fields a subject shows; a line break in one of them is
	// refused, since it would end the header.
	inSubject []string
	note      variantNote
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
	set := &Set{templates: map[string]*template{}}
	for name, has := range l.group() {
		if t := l.loadTemplate(name, has); t != nil {
			set.templates[name] = t
		}
	}
	if len(l.problems) == 0 {
		l.checkOwn(set)
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
	trees := l.parse(name, src, layoutName, (&locale{}).funcs())
	if trees != nil && !strings.Contains(src, `template "`+contentName+`"`) {
		l.report(name, 1, `the layout has no {{template "content" .}}`)
	}
	return trees
}

// parse returns the trees of one file: its own under main, and its defines.
// The trees keep the file's path, which errors of execution then show.
func (l *loader) parse(name, src, main string, funcs texttemplate.FuncMap) map[string]*parse.Tree {
	t, err := texttemplate.New(name).Funcs(funcs).Parse(src)
	if err != nil {
		l.reportTemplate(name, err)
		return nil
	}
	trees := map[string]*parse.Tree{}
	for _, t := range t.Templates() {
		switch {
		case t.Name() == name:
			trees[main] = t.Tree
		case slices.Contains([]string{layoutName, contentName, subjectName, main}, t.Name()):
			l.report(name, 1, "the name %q is taken: define another", t.Name())
		default:
			trees[t.Name()] = t.Tree
		}
	}
	return trees
}

var templateName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// contents is what the folder of a template holds.
type contents struct {
	locales             []string // of its locale folders, each once
	email, notification bool     // whether there is any part of the kind
}

// group finds the templates and the locale folders of each.
func (l *loader) group() map[string]*contents {
	found := map[string]*contents{}
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
		has := found[parts[0]]
		if has == nil {
			has = &contents{}
			found[parts[0]] = has
		}
		if len(parts) == 2 && (parts[1] == "schema.json" || parts[1] == "sample.json") {
			continue
		}
		email, notification := kindOf(strings.Join(parts[1:], "/"))
		if !email && !notification {
			l.report(name, 1, "not a part of a template; it has schema.json, sample.json and per locale %s for an email, %s for a notification; and webhook.json",
				strings.Join(emailFiles, ", "), strings.Join(noteFiles(), ", "))
			continue
		}
		has.email, has.notification = has.email || email, has.notification || notification
		if len(parts) == 3 && !slices.Contains(has.locales, parts[1]) {
			has.locales = append(has.locales, parts[1])
		}
	}
	return found
}

var emailFiles = []string{subjectFile, htmlFile, textFile}

func noteFiles() []string {
	names := make([]string, len(noteParts))
	for i := range noteParts {
		names[i] = noteParts[i].file
	}
	return names
}

// kindOf says what a file is a part of, by its path in the folder of a template.
func kindOf(name string) (email, notification bool) {
	_, base, inLocale := strings.Cut(name, "/")
	if !inLocale {
		return false, name == webhookFile
	}
	return slices.Contains(emailFiles, base), slices.Contains(noteFiles(), base)
}

func (l *loader) loadTemplate(name string, has *contents) *template {
	slices.Sort(has.locales)
	t := &template{name: name, email: has.email, notification: has.notification, locales: map[string]*variant{}}
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
	l.loadWebhook(t)

	var tags []language.Tag
	for _, folder := range has.locales {
		tag, ok := canonicalTag(folder)
		if !ok {
			l.report(t.firstFile(folder), 1, "%q is not a BCP 47 tag in canonical form, such as pt-BR", folder)
			continue
		}
		if folder == defaultLocale {
			tags = slices.Insert(tags, 0, tag) // the matcher takes the first for the default
		} else {
			tags = append(tags, tag)
		}
		t.locales[folder] = l.loadVariant(t, tag)
	}
	if !slices.Contains(has.locales, defaultLocale) {
		l.problems = append(l.problems, Problem{
			File: l.missing(name + "/" + defaultLocale), Line: 1,
			Text: "the default locale is missing, which every other falls back to",
		})
		return nil
	}
	t.match = newMatcher(tags)
	return t
}

// firstFile is the file that problems of a whole locale folder are reported at.
func (t *template) firstFile(locale string) string {
	if t.email {
		return t.name + "/" + locale + "/" + subjectFile
	}
	return t.name + "/" + locale + "/" + noteParts[0].file
}

func (l *loader) loadSample(t *template, name string) {
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

// loadVariant builds one locale of a template, and reports what is wrong with it.
func (l *loader) loadVariant(t *template, tag language.Tag) *variant {
	v := &variant{lang: tag.String()}
	loc := l.localeFor(tag)
	if loc == nil {
		l.report(t.firstFile(v.lang), 1, "no locale data: add %s/%s.json", localesDir, v.lang)
	}
	if t.email {
		l.loadEmail(t, v, loc)
	}
	if t.notification {
		l.loadNote(t, v, loc)
	}
	return v
}

// loadEmail builds the email of one locale, or reports why not.
func (l *loader) loadEmail(t *template, v *variant, loc *locale) {
	before := len(l.problems)
	folder := t.name + "/" + v.lang + "/"
	source := func(name string) string { return strings.TrimRight(l.files[folder+name].data, "\n") }
	funcs := (&locale{}).funcs()
	var subject, html, text map[string]*parse.Tree
	if l.has(folder + subjectFile) {
		subject = l.parse(folder+subjectFile, source(subjectFile), subjectName, funcs)
	}
	if l.has(folder + htmlFile) {
		html = l.parse(folder+htmlFile, strings.TrimRight(l.inline(folder+htmlFile), "\n"), contentName, funcs)
		if html != nil && html[preheaderName] == nil {
			l.report(folder+htmlFile, 1, `{{define "preheader"}} is missing: the line an inbox shows beside the subject`)
			html[preheaderName] = &parse.Tree{} // said once is enough
		}
	}
	if l.has(folder + textFile) {
		text = l.parse(folder+textFile, source(textFile), contentName, funcs)
	}
	if l.layout.html == nil || l.layout.text == nil || t.shape == nil {
		return
	}

	// Fields are checked in the parts that could be parsed, whatever became of
	// the others.
	refuse := map[string]marks{subjectName: private, preheaderName: private}
	join := func(sets ...map[string]*parse.Tree) map[string]*parse.Tree {
		trees := map[string]*parse.Tree{}
		for _, s := range sets {
			maps.Copy(trees, s)
		}
		return trees
	}
	if subject != nil {
		v.inSubject = l.checkFields(t, subjectName, subject, refuse)
		if html != nil {
			html = join(l.layout.html, html, subject)
			l.checkFields(t, layoutName, html, refuse)
		}
	}
	if text != nil {
		text = join(l.layout.text, text)
		l.checkFields(t, layoutName, text, refuse)
	}
	if len(l.problems) > before || loc == nil {
		return
	}

	var err error
	if v.subject, err = textSet(loc, loc.funcs(), subject, subjectName); err != nil {
		l.reportTemplate(folder+subjectFile, err)
	}
	if v.text, err = textSet(loc, loc.funcs(), text, layoutName); err != nil {
		l.reportTemplate(folder+textFile, err)
	}
	if v.html, err = htmlSet(loc, html); err != nil {
		l.reportTemplate(folder+htmlFile, err)
	}
	if len(l.problems) == before && t.sample != nil {
		l.trySamples(t, func(try trial) { try.email(folder, v) })
	}
}

// checkFields walks the trees from main and returns the top-level fields they read.
func (l *loader) checkFields(t *template, main string, trees map[string]*parse.Tree, refuse map[string]marks) []string {
	c := fieldCheck{trees: trees, refuse: refuse, report: func(file string, line int, problem string) {
		l.report(file, line, "%s", problem)
	}}
	c.checkFields(main, t.shape)
	return slices.Sorted(maps.Keys(c.used))
}

// textSet makes trees executable. A nil loc is for trees without functions of a locale.
func textSet(loc *locale, funcs texttemplate.FuncMap, trees map[string]*parse.Tree, main string) (*texttemplate.Template, error) {
	t := texttemplate.New("").Funcs(funcs).Option("missingkey=error")
	f := folder{loc: loc}
	for name, tree := range trees {
		tree = tree.Copy() // the layout's is shared by every locale
		if loc != nil {
			f.list(tree.Root)
		}
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

// trial is a sample that is being rendered.
type trial struct {
	l     *loader
	which string // of the samples
	root  map[string]any
}

// trySamples renders the sample as it is and without its optional fields, and
// looks for what must never reach a patient.
func (l *loader) trySamples(t *template, render func(trial)) {
	samples := []map[string]any{t.sample}
	if least := t.required(); len(least) < len(t.sample) && t.schema.Validate(least) == nil {
		samples = append(samples, least)
	}
	before := len(l.problems)
	for i, sample := range samples {
		try := trial{l: l, which: "the sample", root: map[string]any{}}
		if i > 0 {
			if len(l.problems) > before {
				return // the same again would help nobody
			}
			try.which = "the sample without its optional fields"
		}
		t.shape.fill(try.root, sample)
		render(try)
	}
}

func (try trial) report(file, format string, args ...any) {
	try.l.report(file, 1, "%s %s", try.which, fmt.Sprintf(format, args...))
}

// run executes one tree of a file.
func (try trial) run(file, name string, exec interface {
	ExecuteTemplate(w io.Writer, name string, data any) error
}, trees map[string]*parse.Tree,
) string {
	w := newTracer(trees)
	if err := exec.ExecuteTemplate(w, name, try.root); err != nil {
		try.l.reportTemplate(file, err)
		return "-" // whatever else is wrong, it is not empty
	}
	for _, f := range w.faults {
		try.l.report(f.file, f.line, "%s renders %s: %s", try.which, f.mark, f.why)
	}
	return w.String()
}

// email renders a sample's email in one locale.
func (try trial) email(folder string, v *variant) {
	line := strings.TrimSpace(try.run(folder+subjectFile, subjectName, v.subject, textTrees(v.subject)))
	switch {
	case line == "":
		try.report(folder+subjectFile, "renders an empty subject")
	case strings.ContainsAny(line, "\r\n"):
		try.report(folder+subjectFile, "renders a subject with a line break")
	}
	trees := textTrees(v.text)
	if strings.TrimSpace(try.run(folder+textFile, contentName, v.text, trees)) == "" {
		try.report(folder+textFile, "renders an empty part")
	}
	try.run(folder+textFile, layoutName, v.text, trees)
	trees = escapedTrees(v.html)
	if strings.TrimSpace(try.run(folder+htmlFile, contentName, v.html, trees)) == "" {
		try.report(folder+htmlFile, "renders an empty part")
	}
	if whole := try.run(folder+htmlFile, layoutName, v.html, trees); len(whole) > maxSampleHTML {
		try.report(folder+htmlFile, "renders to %d bytes; mail programs cut off HTML beyond %d", len(whole), maxSampleHTML)
	}
}

// required returns the sample without what the schema does not demand.
func (t *template) required() map[string]any {
	least := map[string]any{}
	for _, name := range t.schema.Required {
		if v, ok := t.sample[name]; ok {
			least[name] = v
		}
	}
	return least
}

// symptoms are what the template packages print instead of failing.
var symptoms = map[string]string{
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
			for mark, why := range symptoms {
				if bytes.Contains(p, []byte(mark)) {
					t.faults = append(t.faults, fault{t.last, mark, why})
				}
			}
		}
	}
	return t.Builder.Write(p)
}

func eachText(n parse.Node, f func(*parse.TextNode)) {
	eachNode(n, func(n parse.Node) {
		if text, ok := n.(*parse.TextNode); ok {
			f(text)
		}
	})
}

// eachNode calls f for the nodes of a tree that print, at any depth of lists and branches.
func eachNode(n parse.Node, f func(parse.Node)) {
	branch := func(b *parse.BranchNode) {
		eachNode(b.List, f)
		if b.ElseList != nil {
			eachNode(b.ElseList, f)
		}
	}
	switch n := n.(type) {
	case *parse.ListNode:
		for _, c := range n.Nodes {
			eachNode(c, f)
		}
	case *parse.IfNode:
		branch(&n.BranchNode)
	case *parse.WithNode:
		branch(&n.BranchNode)
	case *parse.RangeNode:
		branch(&n.BranchNode)
	default:
		f(n)
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
