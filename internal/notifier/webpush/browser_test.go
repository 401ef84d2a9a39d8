package webpush

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// page is a browser's side of RFC 8291, on the browser's own cryptography. Its decrypt
// shares nothing with the code here: it follows RFC 8188 for any number of records.
const page = `<!doctype html><meta charset="utf-8"><script>
const utf8 = new TextEncoder(), subtle = crypto.subtle
const b64 = bytes => btoa(String.fromCharCode(...new Uint8Array(bytes))).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '')
const join = (...parts) => new Uint8Array(parts.flatMap(p => [...new Uint8Array(p)]))
let keys, auth, p256dh
async function subscribe(endpoint) {
  keys = await subtle.generateKey({name: 'ECDH', namedCurve: 'P-256'}, false, ['deriveBits'])
  p256dh = await subtle.exportKey('raw', keys.publicKey)
  auth = crypto.getRandomValues(new Uint8Array(16))
  return JSON.stringify({endpoint, expirationTime: null, keys: {p256dh: b64(p256dh), auth: b64(auth)}})
}
async function hkdf(salt, ikm, info, bytes) {
  const key = await subtle.importKey('raw', ikm, 'HKDF', false, ['deriveBits'])
  return subtle.deriveBits({name: 'HKDF', hash: 'SHA-256', salt, info}, key, 8 * bytes)
}
async function decrypt(text) {
  const body = Uint8Array.from(atob(text), c => c.charCodeAt(0))
  const salt = body.slice(0, 16), size = new DataView(body.buffer).getUint32(16), end = 21 + body[20]
  const sender = body.slice(21, end)
  const publicKey = await subtle.importKey('raw', sender, {name: 'ECDH', namedCurve: 'P-256'}, false, [])
  const secret = await subtle.deriveBits({name: 'ECDH', public: publicKey}, keys.privateKey, 256)
  const ikm = await hkdf(auth, secret, join(utf8.encode('WebPush: info\0'), p256dh, sender), 32)
  const key = await subtle.importKey('raw', await hkdf(salt, ikm, utf8.encode('Content-Encoding: aes128gcm\0'), 16), 'AES-GCM', false, ['decrypt'])
  const nonce = new Uint8Array(await hkdf(salt, ikm, utf8.encode('Content-Encoding: nonce\0'), 12))
  let out = []
  for (let n = 0, at = end; at < body.length; n++, at += size) {
    const iv = nonce.slice(), view = new DataView(iv.buffer)
    view.setUint32(8, view.getUint32(8) ^ n)
    const record = new Uint8Array(await subtle.decrypt({name: 'AES-GCM', iv}, key, body.slice(at, at + size)))
    let last = record.length - 1
    while (last >= 0 && record[last] === 0) last--
    if (record[last] !== (at + size >= body.length ? 2 : 1)) throw new Error('delimiter ' + record[last] + ' of record ' + n)
    out.push(...record.slice(0, last))
  }
  return new TextDecoder('utf-8', {fatal: true}).decode(new Uint8Array(out))
}
// What PushManager.subscribe does with the application server's key before anything else.
async function takesKey(text) {
  const raw = Uint8Array.from(atob(text.replaceAll('-', '+').replaceAll('_', '/')), c => c.charCodeAt(0))
  return (await subtle.importKey('raw', raw, {name: 'ECDSA', namedCurve: 'P-256'}, true, ['verify'])).type
}
// What a push service does with the Authorization header.
async function verifies(header) {
  const bytes = s => Uint8Array.from(atob(s.replaceAll('-', '+').replaceAll('_', '/')), c => c.charCodeAt(0))
  const [, token, k] = header.match(/^vapid t=([^,]+), k=(.+)$/), [head, claims, signature] = token.split('.')
  const key = await subtle.importKey('raw', bytes(k), {name: 'ECDSA', namedCurve: 'P-256'}, true, ['verify'])
  return subtle.verify({name: 'ECDSA', hash: 'SHA-256'}, key, bytes(signature), utf8.encode(head + '.' + claims))
}
</script>`

// TestBrowser has Chromium's cryptography read what is sent. A push service of a browser's
// maker is out of reach of a test; everything else is as between it and a page.
func TestBrowser(t *testing.T) {
	t.Parallel()
	var chromium string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless-shell"} {
		if found, err := exec.LookPath(name); err == nil {
			chromium = found
			break
		}
	}
	if chromium == "" {
		t.Fatal("no Chromium on PATH: this test reads push messages with a real browser; `task setup` installs one")
	}
	// A page on loopback is a secure context, without which there is no crypto.subtle.
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte(page))
	}))
	t.Cleanup(site.Close)
	allocator, stop := chromedp.NewExecAllocator(
		t.Context(), chromedp.ExecPath(chromium), chromedp.UserDataDir(t.TempDir()),
		chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("disable-extensions", true),
	)
	t.Cleanup(stop)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 90*time.Second)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx, chromedp.Navigate(site.URL)); err != nil {
		t.Fatalf("open the page: %v", err)
	}

	f := setup(t, status(http.StatusCreated))
	form, err := chromedp.Run(ctx, chromedp.Evaluate[string](fmt.Sprintf(`subscribe(%q)`, f.service.URL+"/send/1"), chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := ParseSubscription([]byte(form))
	if err != nil {
		t.Fatal(err)
	}
	sub, err := f.subscriptions.Add(t.Context(), "u-1", *parsed)
	if err != nil {
		t.Fatal(err)
	}
	for i, body := range []string{"", "Grüße — 結果 🩺 \"quoted\" <b>", strings.Repeat("long 🩺 ", 900)} {
		m := message(sub)
		m.Body = body
		if err := f.Deliver(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		requests, bodies := f.service.taken()
		text, err := chromedp.Run(ctx, chromedp.Evaluate[string](
			fmt.Sprintf(`decrypt(%q)`, base64.StdEncoding.EncodeToString(bodies[i])), chromedp.EvalAwaitPromise,
		))
		if err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		var got payload
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatal(err)
		}
		if got.ID != m.ID || got.Title != m.Title || got.Action != m.Action || !strings.HasPrefix(m.Body, strings.TrimSuffix(got.Body, "…")) {
			t.Errorf("message %d: the browser reads %.200s", i, text)
		}
		ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool](
			fmt.Sprintf(`verifies(%q)`, requests[i].Header.Get("Authorization")), chromedp.EvalAwaitPromise,
		))
		if err != nil || !ok {
			t.Errorf("message %d: the browser takes our signature: %v, %v", i, ok, err)
		}
	}
	kind, err := chromedp.Run(ctx, chromedp.Evaluate[string](fmt.Sprintf(`takesKey(%q)`, f.signer.key.PublicKey()), chromedp.EvalAwaitPromise))
	if err != nil || kind != "public" {
		t.Errorf("the browser takes the public key as %q, %v", kind, err)
	}
}
