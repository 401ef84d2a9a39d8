package devbox

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"mime"
	"strings"
	"time"

	"github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset" // bodies in other charsets than UTF-8
	"github.com/emersion/go-message/mail"
)

// maxParts bounds how many parts of one message are looked at.
const maxParts = 200

type address struct {
	Name    string `json:"name,omitempty"`
	Address string `json:"address"`
}

func (a address) String() string {
	if a.Name == "" {
		return a.Address
	}
	return a.Name + " <" + a.Address + ">"
}

type headerField struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// part is an attachment, or a part that a body refers to.
type part struct {
	Name      string
	Type      string // media type without parameters
	ContentID string
	Inline    bool
	Body      []byte
}

// parsed is a message taken apart. Parsing never fails: what cannot be read is
// named in Problems, for a broken message is what a developer looks for here.
type parsed struct {
	From, To, Cc, ReplyTo []address
	Subject               string
	Date                  time.Time // zero if missing or unreadable
	Headers               []headerField
	Text, HTML            string
	HasText, HasHTML      bool
	Parts                 []part
	Problems              []string
}

func parseMail(raw []byte) *parsed {
	p := &parsed{}
	entity, err := message.Read(bytes.NewReader(raw))
	if entity == nil {
		p.problem("the message cannot be read", err)
		return p
	}
	if err != nil {
		p.problem("the body's encoding is not known", err)
	}
	header := mail.Header{Header: entity.Header}
	p.From, p.To = p.addresses(header, "From"), p.addresses(header, "To")
	p.Cc, p.ReplyTo = p.addresses(header, "Cc"), p.addresses(header, "Reply-To")
	p.Subject, _ = header.Subject()
	if header.Has("Date") {
		if p.Date, err = header.Date(); err != nil {
			p.problem("the Date header cannot be read", err)
		}
	} else {
		p.problem("there is no Date header", nil)
	}
	for fields := header.Fields(); fields.Next(); {
		value, err := fields.Text()
		if err != nil {
			value = fields.Value()
		}
		p.Headers = append(p.Headers, headerField{fieldName(fields), strings.ToValidUTF8(value, "\uFFFD")})
	}
	parts := 0
	err = entity.Walk(func(_ []int, e *message.Entity, err error) error {
		if err != nil {
			p.problem("a part's encoding is not known", err)
		}
		if e.MultipartReader() != nil {
			return nil
		}
		if parts++; parts > maxParts {
			return fmt.Errorf("only the first %d parts are shown", maxParts)
		}
		return p.add(e)
	})
	if err != nil {
		p.problem("the message ends too early or is malformed", err)
	}
	return p
}

// fieldName is a header's name as it was written: go-message's key is in its own
// capitals.
func fieldName(f message.HeaderFields) string {
	raw, err := f.Raw()
	if err != nil {
		return f.Key()
	}
	name, _, _ := bytes.Cut(raw, []byte(":"))
	return strings.ToValidUTF8(string(bytes.TrimSpace(name)), "\uFFFD")
}

func (p *parsed) problem(what string, err error) {
	if err != nil {
		what += ": " + err.Error()
	}
	p.Problems = append(p.Problems, strings.ToValidUTF8(what, "\uFFFD"))
}

// add puts one leaf where it belongs: the first text and HTML parts are the
// bodies, everything else is listed as an attachment.
func (p *parsed) add(e *message.Entity) error {
	body, readErr := io.ReadAll(e.Body)
	mediaType, params, err := e.Header.ContentType()
	if err != nil || mediaType == "" {
		mediaType = "text/plain" // RFC 2045, section 5.2
	}
	disposition, dispParams, _ := e.Header.ContentDisposition()
	switch {
	case disposition != "attachment" && mediaType == "text/plain" && !p.HasText:
		p.HasText, p.Text = true, text(body)
	case disposition != "attachment" && mediaType == "text/html" && !p.HasHTML:
		p.HasHTML, p.HTML = true, text(body)
	default:
		p.Parts = append(p.Parts, part{
			Name:      partName(cmp.Or(dispParams["filename"], params["name"]), mediaType, len(p.Parts)+1),
			Type:      mediaType,
			ContentID: strings.Trim(e.Header.Get("Content-Id"), "<> "),
			Inline:    disposition == "inline",
			Body:      body,
		})
	}
	return readErr
}

func text(body []byte) string {
	return strings.ReplaceAll(strings.ToValidUTF8(string(body), "\uFFFD"), "\r\n", "\n")
}

func partName(name, mediaType string, n int) string {
	if decoded, err := (&mime.WordDecoder{}).DecodeHeader(name); err == nil {
		name = decoded
	}
	// A name is shown and offered for saving: no directories, no controls.
	name = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '/' || r == '\\' {
			return '_'
		}
		return r
	}, strings.ToValidUTF8(name, "_"))
	if name != "" {
		return name
	}
	name = fmt.Sprintf("part-%d", n)
	if extensions, err := mime.ExtensionsByType(mediaType); err == nil && len(extensions) > 0 {
		name += extensions[len(extensions)-1]
	}
	return name
}

func (p *parsed) addresses(h mail.Header, key string) []address {
	if !h.Has(key) {
		return nil
	}
	list, err := h.AddressList(key)
	if err != nil {
		p.problem("the "+key+" header cannot be read", errors.Unwrap(err))
		value, _ := h.Text(key)
		return []address{{Address: strings.ToValidUTF8(value, "\uFFFD")}}
	}
	out := make([]address, len(list))
	for i, a := range list {
		out[i] = address{Name: a.Name, Address: a.Address}
	}
	return out
}
