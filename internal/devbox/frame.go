package devbox

import (
	"bytes"
	"encoding/base64"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/net/html"
)

// framePolicy is the Content-Security-Policy of a message in its frame: no
// script, no form, nothing from the network, an origin of its own. Links open in
// a new tab.
const framePolicy = "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; " +
	"img-src data:; font-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; frame-ancestors 'self'"

var (
	remoteURL   = regexp.MustCompile(`(?i)^\s*(https?:)?//`)
	remoteStyle = regexp.MustCompile(`(?i)(url\(\s*['"]?\s*(https?:)?//|@import)`)
)

// frame returns a message's HTML as it is shown: cid: images put in, links told
// to open in a new tab, the rest byte by byte as it came. remote is how many
// things it would load from elsewhere, which the policy forbids.
func frame(doc string, parts []part) (out []byte, remote int) {
	var b bytes.Buffer
	z := html.NewTokenizer(strings.NewReader(doc))
	inStyle := false
	for {
		kind := z.Next()
		if kind == html.ErrorToken {
			return b.Bytes(), remote // only ever io.EOF
		}
		raw := bytes.Clone(z.Raw()) // Token reuses it
		if kind == html.TextToken && inStyle {
			remote += len(remoteStyle.FindAll(raw, -1))
		}
		if kind != html.StartTagToken && kind != html.SelfClosingTagToken {
			inStyle = false
			b.Write(raw)
			continue
		}
		token := z.Token()
		inStyle = token.Data == "style" && kind == html.StartTagToken
		changed := false
		for i, a := range token.Attr {
			switch {
			case a.Key == "style":
				remote += len(remoteStyle.FindAllString(a.Val, -1))
			case a.Key != "src" && a.Key != "background" && a.Key != "srcset" && a.Key != "poster" && (a.Key != "href" || token.Data != "link"):
			case remoteURL.MatchString(a.Val):
				remote++
			default:
				if data, ok := inlineImage(a.Val, parts); ok {
					token.Attr[i].Val, changed = data, true
				}
			}
		}
		if token.Data == "a" || token.Data == "area" {
			token.Attr = append(
				slices.DeleteFunc(token.Attr, func(a html.Attribute) bool { return a.Key == "target" || a.Key == "rel" }),
				html.Attribute{Key: "target", Val: "_blank"}, html.Attribute{Key: "rel", Val: "noopener noreferrer"})
			changed = true
		}
		if changed {
			b.WriteString(token.String())
		} else {
			b.Write(raw)
		}
	}
}

// inlineImage resolves a cid: URL (RFC 2392) to a data: URL.
func inlineImage(ref string, parts []part) (string, bool) {
	id, ok := strings.CutPrefix(strings.TrimSpace(ref), "cid:")
	if !ok {
		return "", false
	}
	if decoded, err := url.PathUnescape(id); err == nil {
		id = decoded
	}
	for _, p := range parts {
		if p.ContentID == id && strings.HasPrefix(p.Type, "image/") {
			return "data:" + p.Type + ";base64," + base64.StdEncoding.EncodeToString(p.Body), true
		}
	}
	return "", false
}
