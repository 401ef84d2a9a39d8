package monitor

import (
	"strings"
	"testing"

	"github.com/medicalink/postroom/tasks"
)

func TestDescribePayload_ShowsNoValues(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		kind, payload, want string
	}{
		{tasks.TypeEmail, `{"to":"canary@example.org","template":"welcome","class":"otp","attachments":[{}],"data":{"name":"canary"}}`, `{"type":"email:send","template":"welcome","class":"otp","attachments":1,"bytes":`},
		{tasks.TypeNotification, `{"kind":"lab.result.ready","user":"canary","title":"canary","class":"clinical"}`, `{"type":"notification:send","kind":"lab.result.ready","class":"clinical","bytes":`},
		{tasks.TypeDelivery, `{"kind":"lab.result.ready","channel":"sms","target":"canary","body":"canary"}`, `{"type":"notification:deliver","kind":"lab.result.ready","channel":"sms","bytes":`},
		{tasks.TypeDigest, `{"user":"canary","key":"canary"}`, `{"type":"notification:digest","bytes":`},
		// A producer can write anything into any field.
		{tasks.TypeDelivery, `{"kind":"canary@example.org","channel":"canary","template":"canary <x>","class":"canary"}`, `{"type":"notification:deliver","bytes":`},
		{tasks.TypeNotification, `canary`, `{"type":"notification:send","bytes":`},
	} {
		got := describePayload(tc.kind, []byte(tc.payload))
		if !strings.HasPrefix(got, tc.want) || strings.Contains(got, "canary") {
			t.Errorf("%s %s is shown as %s, want %s…", tc.kind, tc.payload, got, tc.want)
		}
	}
}
