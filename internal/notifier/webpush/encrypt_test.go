package webpush

import (
	"crypto/ecdh"
	"testing"
)

func raw(t *testing.T, s string) []byte {
	t.Helper()
	b, err := b64.DecodeString(s)
	if err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return b
}

// RFC 8291, section 5 and appendix A.
func TestEncrypt_vectorOfRFC8291(t *testing.T) {
	t.Parallel()
	sender, err := ecdh.P256().NewPrivateKey(raw(t, "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := encryptWith(
		[]byte("When I grow up, I want to be a watermelon"), 0,
		raw(t, "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"),
		raw(t, "BTBZMqHH6r4Tts7J_aSIgg"), sender, raw(t, "DGv6ra1nlYgDCS1FRnbzlw"),
	)
	if err != nil {
		t.Fatal(err)
	}
	const want = "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6Tlz" +
		"AC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
	if b64.EncodeToString(got) != want {
		t.Errorf("got  %s\nwant %s", b64.EncodeToString(got), want)
	}
}

// RFC 8188, section 3.1.
func TestSeal_vectorOfRFC8188(t *testing.T) {
	t.Parallel()
	got, err := seal([]byte("I am the walrus"), 0, raw(t, "yqdlZ-tYemfogSmv7Ws5PQ"), raw(t, "I1BsxtFttlv3u_Oo94xnmw"), nil)
	if err != nil {
		t.Fatal(err)
	}
	const want = "I1BsxtFttlv3u_Oo94xnmwAAEAAA-NAVub2qFgBEuQKRapoZu-IxkIva3MEB1PD-ly8Thjg"
	if b64.EncodeToString(got) != want {
		t.Errorf("got  %s\nwant %s", b64.EncodeToString(got), want)
	}
}

func TestEncrypt_length(t *testing.T) {
	t.Parallel()
	browser := newBrowserKeys(t)
	for _, tt := range []struct{ text, body int }{
		{0, 512}, {511, 512}, {512, 1024}, {3583, 3584}, {3584, maxPlaintext}, {maxPlaintext, maxPlaintext},
	} {
		got, err := encrypt(make([]byte, tt.text), browser.p256dh, browser.auth)
		if err != nil {
			t.Fatal(err)
		}
		if want := headerLen + tt.body + 1 + tagLen; len(got) != want || len(got) > recordSize {
			t.Errorf("%d bytes became %d, want %d and at most %d", tt.text, len(got), want, recordSize)
		}
	}
	again, err := encrypt(nil, browser.p256dh, browser.auth)
	if err != nil {
		t.Fatal(err)
	}
	other, err := encrypt(nil, browser.p256dh, browser.auth)
	if err != nil {
		t.Fatal(err)
	}
	if string(again[:saltLen]) == string(other[:saltLen]) || string(again[21:headerLen]) == string(other[21:headerLen]) {
		t.Error("salt or key was used twice")
	}
	if _, err := encrypt(nil, make([]byte, keyLen), browser.auth); err == nil {
		t.Error("a key that is no point was taken")
	}
}
