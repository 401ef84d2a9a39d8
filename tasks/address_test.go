package tasks

import (
	"net/mail"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var goodAddresses = []string{
	"ada@example.com",
	"Ada Lovelace <ada@example.com>",
	" Ada <ada@example.com> ",
	"<ada@example.com>",
	`"Lovelace, Ada" <ada@example.com>`,
	`"Riverside <Family> Health" <desk@example.com>`,
	`"Riverside (Family) \"Health\"" <desk@example.com>`,
	"O'Brien <siobhan.o'brien+portal@example.co.uk>",
	"Jürgen Müller <j@example.com>",
	"ليلى حسن <l@example.com>",
	"東京中央クリニック <t@example.com>",
	"नेहा शर्मा <n@example.com>",
	"=?utf-8?q?J=C3=B8rgen?= <j@example.com>",
	"ada@bücher.example",
	"ada@例え.テスト",
	"ada@xn--bcher-kva.example",
	"root@localhost",
	"a_b-c.d=e/f%g@sub.example.com",
	strings.Repeat("a", 64) + "@example.com",
	strings.Repeat("é", 128) + " <ada@example.com>",
	"ada@" + strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + "." + strings.Repeat("c", 63) + "." + strings.Repeat("d", 54) + ".org",
}

var badAddresses = []string{
	"", " ", "not-an-address", "two@@example.com", "missing-domain@", "@example.com", "spaces in@example.com",
	"victim@example.com\r\nBcc: spy@example.net", "victim@example.com\nBcc: spy@example.net", "a\x00@example.com",
	"Ada\t<ada@example.com>", "Ada\u0085 <ada@example.com>", "Ada\u2028 <ada@example.com>", "\xff <ada@example.com>",
	"=?utf-8?q?Ada=0D=0ABcc:_spy=40example.net?= <ada@example.com>", // control characters in an encoded word
	"=?utf-8?b?QWRhCg==?= <ada@example.com>",
	`"=?utf-8?q?=3D=3Fa?=" <ada@example.com>`, "=?utf-8?q?=3D=3Futf-8=3Fq=3Fa=3F=3D?= <ada@example.com>",
	"ada@example.com, bob@example.com", "ada@example.com; bob@example.com", "Lovelace, Ada <ada@example.com>",
	"friends: ada@example.com;", "friends: ada@example.com, bob@example.com;", "friends:;", "friends: Ada <ada@example.com>",
	"ada@example.com (Ada)", "(Ada) ada@example.com", "Ada (x) <ada@example.com>", "Ada <ada(x)@example.com>", "Ada <ada@example.com> (x)",
	"<@relay.example.net:ada@example.com>", "Ada <ada@example.com", "Ada ada@example.com", "Ada <>", "<<ada@example.com>>",
	"Ada < ada@example.com >", "ada @example.com", "ada@ example.com", "ada@example.com>",
	`"ada"@example.com`, `"ada lovelace"@example.com`, `"a@b"@example.com`, `Ada <"ada"@example.com>`,
	"ada@[192.0.2.1]", "ada@[IPv6:2001:db8::1]", "ada@192.0.2.1",
	"ada@example", "ada@example.com.", "ada@.example.com", "ada@exa..mple.com", "ada@-example.com", "ada@example-.com",
	"ada@exam_ple.com", "ada@exa!mple.com", "ada@example.123", "ada@example。com", "ada@ex\u200bample.com",
	".ada@example.com", "ada.@example.com", "a..b@example.com", "jürgen@example.com",
	strings.Repeat("a", 65) + "@example.com",
	strings.Repeat("é", 129) + " <ada@example.com>",
	"ada@" + strings.Repeat("a", 64) + ".com",
	"ada@" + strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + "." + strings.Repeat("c", 63) + "." + strings.Repeat("d", 55) + ".org",
	strings.Repeat("a", 10_000) + "@example.com",
}

func TestAddressProblem(t *testing.T) {
	t.Parallel()
	for _, text := range goodAddresses {
		if problem := addressProblem(text); problem != "" {
			t.Errorf("addressProblem(%q) = %q, want none", text, problem)
		}
	}
	for _, text := range badAddresses {
		if addressProblem(text) == "" {
			t.Errorf("addressProblem(%q) = none, want one", text)
		}
	}
}

// Whatever is accepted is one address for everybody who reads it: it cannot end
// a header line, and its text contains the parsed address as it stands.
func FuzzAddress(f *testing.F) {
	for _, text := range append(goodAddresses, badAddresses...) {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if addressProblem(text) != "" {
			return
		}
		parsed, err := mail.ParseAddress(text)
		if err != nil {
			t.Fatalf("accepted %q, which net/mail refuses: %v", text, err)
		}
		for _, s := range []string{text, parsed.Name, parsed.Address, parsed.String()} {
			if strings.ContainsFunc(s, isControl) {
				t.Errorf("accepted %q, which holds a control character in %q", text, s)
			}
		}
		trimmed := strings.TrimSpace(text)
		if trimmed != parsed.Address && !strings.HasSuffix(trimmed, "<"+parsed.Address+">") {
			t.Errorf("accepted %q, which does not end in its address %q", text, parsed.Address)
		}
		if strings.Count(parsed.Address, "@") != 1 || strings.ContainsAny(parsed.Address, " \"<>()[],;:\\") || len(parsed.Address) > 254 {
			t.Errorf("accepted %q with the address %q", text, parsed.Address)
		}
		if _, domain, _ := strings.Cut(parsed.Address, "@"); !strings.ContainsFunc(domain, func(r rune) bool { return r > 127 }) {
			e := message()
			e.To = text
			mustBuild(t, e)
		}
		if list, err := mail.ParseAddressList(text); err != nil || len(list) != 1 {
			t.Errorf("accepted %q, which is a list of %d (%v)", text, len(list), err)
		}
		if again, err := mail.ParseAddress(parsed.String()); err != nil || *again != *parsed {
			t.Errorf("%q does not survive being written out: %v, %v", text, again, err)
		}
	})
}

// The short way takes nothing that the long one refuses.
func TestIsBareAddress_IsStricter(t *testing.T) {
	t.Parallel()
	near := rapid.StringMatching(`[a-zA-Z0-9.+_-]{0,70}@[a-z0-9.-]{0,40}(\.[a-z0-9]{1,4})?`)
	strange := rapid.StringOf(rapid.SampledFrom([]rune("ab1.-_+@<>\"() ,:;\\ä\x00\u2028%!#"))) // what address parsers stumble over
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(near, strange).Draw(t, "address")
		if problem := fullAddressProblem(text); isBareAddress(text) && problem != "" {
			t.Fatalf("%q passes for a plain address, and %s", text, problem)
		}
	})
	for _, text := range []string{"ada@example.com", "a.b-c_d+e@mail.example.co.uk", "ada@localhost"} {
		if !isBareAddress(text) {
			t.Errorf("%q goes the long way", text)
		}
	}
}
