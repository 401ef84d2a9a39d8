package sms

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestSegments(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, text string
		want       int
	}{
		{"nothing", "", 1},
		{"160 of 7 bits", strings.Repeat("a", 160), 1},
		{"161 of 7 bits", strings.Repeat("a", 161), 2},
		{"two parts", strings.Repeat("a", 306), 2},
		{"three parts", strings.Repeat("a", 459), 3},
		{"four parts", strings.Repeat("a", 460), 4},
		{"letters of the alphabet", strings.Repeat("äöüßñÅΩ@£", 17), 1},
		{"two places each", strings.Repeat("€", 80), 1},
		{"two places each, 81", strings.Repeat("€", 81), 2},
		// 152 places, then one that needs two: it begins the next part.
		{"not divided", strings.Repeat("a", 152) + "€" + strings.Repeat("a", 151), 2},
		{"not divided, and so one more", strings.Repeat("a", 152) + "€" + strings.Repeat("a", 152), 3},
		{"70 of 16 bits", strings.Repeat("ж", 70), 1},
		{"71 of 16 bits", strings.Repeat("ж", 71), 2},
		{"two parts of 16 bits", strings.Repeat("ж", 134), 2},
		{"one letter changes all", strings.Repeat("a", 70) + "ж", 2},
		{"surrogates", strings.Repeat("🩺", 35), 1},
		{"surrogates, 36", strings.Repeat("🩺", 36), 2},
		// 33 pairs fill 66 of 67: the last place of a part stays empty.
		{"surrogates are not divided", strings.Repeat("🩺", 66), 2},
		{"surrogates are not divided, 67", strings.Repeat("🩺", 67), 3},
	} {
		if got := segments(tt.text); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
	if n := utf8.RuneCountInString(gsmBasic) + utf8.RuneCountInString(gsmExtended); n != 127+10 || len(gsmWidth) != n {
		t.Errorf("%d characters, %d of them once: the alphabet has 127 and 10", n, len(gsmWidth))
	}
}

func TestCompose(t *testing.T) {
	t.Parallel()
	const link = "https://app.example/results/7"
	for _, tt := range []struct{ name, title, body, link, want string }{
		{"all", "New result", "Log in.", link, "New result\nLog in.\n" + link},
		{"title", "New result", "", "", "New result"},
		{"body", "", "Log in.", "", "Log in."},
		{"no body", "New result", "", link, "New result\n" + link},
		{"controls", "New\x00 result\t1", "a\r\nb\x1b[31m", "", "New  result 1\na\nb [31m"},
		{"not UTF-8", "New \xff result", "", "", "New ? result"},
		{
			"long", "Title", strings.Repeat("a", 1000), link,
			"Title\n" + strings.Repeat("a", 459-6-3-1-len(link)) + "...\n" + link,
		},
		{"long, 16 bits", "", strings.Repeat("ж", 500), "", strings.Repeat("ж", 201-3) + "..."},
		{"a long title", strings.Repeat("a", 500), "body", "", strings.Repeat("a", 456) + "..."},
		// Without what is cut, the rest is of 7 bits and may be longer.
		{"the cut saves", strings.Repeat("a", 300) + "🩺" + strings.Repeat("a", 200), "", "", strings.Repeat("a", 300) + "..."},
		{"no space before the dots", strings.Repeat("a ", 400), "", "", strings.Repeat("a ", 227) + "a..."},
		{"a long link", "Title", "body", "https://app.example/" + strings.Repeat("x", 450), "Title\nbody"},
	} {
		got := compose(tt.title, tt.body, tt.link)
		if got != tt.want {
			t.Errorf("%s: got  %q\nwant %q", tt.name, got, tt.want)
		}
	}
}

func FuzzCompose(f *testing.F) {
	f.Add("Title", "body €", "https://app.example/1", 100)
	f.Add("🩺", "\xff\x00", "", 300)
	f.Add("", "", "", 0)
	f.Fuzz(func(t *testing.T, title, body, link string, n int) {
		body = strings.Repeat(body, min(max(n, 0), 2000)/(len(body)+1)+1)
		text := compose(title, body, link)
		if got := segments(text); got > MaxSegments {
			t.Fatalf("%d segments: %q", got, text)
		}
		if link != "" && segments(link) < MaxSegments && !strings.HasSuffix(text, "\n"+link) {
			t.Fatalf("the link is gone: %q", text)
		}
		if utf8.ValidString(link) && !utf8.ValidString(text) {
			t.Fatalf("not UTF-8: %q", text)
		}
	})
}
