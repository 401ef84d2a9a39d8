package templates

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// notifications are the built-in templates with the parts of a notification.
func notifications(t testing.TB) []Info {
	t.Helper()
	return slices.DeleteFunc(builtinSet(t).List(), func(info Info) bool { return !info.Notification })
}

func TestSet_RenderNotification_Golden(t *testing.T) {
	t.Parallel()
	for _, info := range notifications(t) {
		for _, locale := range info.Locales {
			n, err := builtinSet(t).RenderNotification(info.Name, locale, info.Sample)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			enc := json.NewEncoder(&b)
			enc.SetIndent("", "  ")
			enc.SetEscapeHTML(false)
			if err := enc.Encode(n); err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join(info.Name, locale, "notification.json"), b.String())
		}
	}
}
