package sms

import (
	"sort"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxSegments is how many text messages one notification becomes at most.
const MaxSegments = 3

// A text message carries 140 octets: 160 characters of 7 bits, or 70 of 16. Each part
// of a longer one gives up six octets to tell where it belongs (3GPP TS 23.040).
const (
	gsmSingle, gsmPart   = 160, 153
	ucs2Single, ucs2Part = 70, 67
)

// The characters of the default alphabet, and those that take two places in it (3GPP TS
// 23.038, sections 6.2.1 and 6.2.1.1).
const (
	gsmBasic = "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?" +
		"¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
	gsmExtended = "\f^{}\\[~]|€"
)

var gsmWidth = func() map[rune]int {
	width := make(map[rune]int)
	for _, r := range gsmBasic {
		width[r] = 1
	}
	for _, r := range gsmExtended {
		width[r] = 2
	}
	return width
}()

// segments returns how many text messages carry text. A character that takes two places
// is not divided between two of them.
func segments(text string) int {
	width, single, part := func(r rune) int { return gsmWidth[r] }, gsmSingle, gsmPart
	for _, r := range text {
		if gsmWidth[r] == 0 { // one that the alphabet lacks has all of them sent in UCS-2
			width, single, part = utf16.RuneLen, ucs2Single, ucs2Part
			break
		}
	}
	total, parts, left := 0, 1, part
	for _, r := range text {
		n := width(r)
		total += n
		if n > left {
			parts, left = parts+1, part
		}
		left -= n
	}
	if total <= single {
		return 1
	}
	return parts
}

// compose returns title, body and link as at most MaxSegments text messages. Title and
// body are cut at a character; "..." shows it, because an ellipsis is not in the
// alphabet. A link so long that little else would fit is left out.
func compose(title, body, link string) string {
	head := strings.TrimSpace(clean(title) + "\n" + clean(body))
	tail := ""
	if link != "" && segments(link) < MaxSegments {
		tail = "\n" + link
	}
	if segments(head+tail) <= MaxSegments {
		return head + tail
	}
	// The first cut that is too long: so are all after it.
	n := sort.Search(len(head), func(n int) bool { return segments(cut(head, n)+tail) > MaxSegments })
	return cut(head, n-1) + tail
}

// cut returns the first n bytes of s without the character that they may end within.
func cut(s string, n int) string {
	for n > 0 && n < len(s) && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.TrimRight(s[:max(n, 0)], " \n") + "..."
}

// clean returns s without what a telephone would not show as text.
func clean(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\r\n", "\n")
	return strings.Map(func(r rune) rune {
		if r != '\n' && unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}
