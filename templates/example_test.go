package templates_test

import (
	"errors"
	"fmt"
	"strings"

	"github.com/medicalink/postroom/templates"
)

func Example() {
	set, err := templates.Load("") // or a directory laid over the built-in templates
	if err != nil {
		fmt.Println(err)
		return
	}
	m, err := set.Render("one-time-code", "de-AT", map[string]any{"code": "042719", "expires_in": "10m"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(m.Locale, "-", m.Subject)
	text, _, _ := strings.Cut(m.Text, "\n-- \n") // the footer follows
	fmt.Println(text)
	// Output:
	// de - Ihr Anmeldecode für MedicaLink
	// Geben Sie diesen Code ein, um die Anmeldung abzuschließen:
	//
	//     042719
	//
	// Der Code ist 10 Minuten lang gültig.
	//
	// Geben Sie den Code an niemanden weiter. Wir werden Sie nie danach
	// fragen.
	//
	// Wenn Sie sich nicht anmelden wollten, können Sie diese E-Mail
	// ignorieren.
}

func ExampleSet_RenderNotification() {
	set, err := templates.Load("")
	if err != nil {
		fmt.Println(err)
		return
	}
	n, err := set.RenderNotification("lab-result-ready", "en", map[string]any{"test_name": "HbA1c", "result_id": "r-42"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("app:    ", n.Title, "-", n.Body)
	fmt.Println("push:   ", n.Push.Body)
	fmt.Println("sms:    ", n.SMS.IsZero()) // true: the text of templates.Generic is shown
	fmt.Println("webhook:", string(n.Webhook))
	// Output:
	// app:     New lab result - The result of your test HbA1c is ready.
	// push:    There is something new in your record. Log in to read it.
	// sms:     true
	// webhook: {"result":"r-42"}
}

func ExampleSet_Check() {
	set, err := templates.Load("")
	if err != nil {
		fmt.Println(err)
		return
	}
	err = set.Check("password-reset", map[string]any{"name": "Ada", "reset_url": "javascript:alert(1)", "expires_in": 30})
	if bad, ok := errors.AsType[*templates.DataError](err); ok {
		fmt.Println(bad.Field, bad.Problem)
		fmt.Println("permanent:", bad.Permanent())
	}
	// Output:
	// reset_url must be an absolute http or https address without user name and spaces
	// permanent: true
}
