package devbox

import "testing"

func TestFrame(t *testing.T) {
	t.Parallel()
	parts := []part{{ContentID: "logo@x", Type: "image/png", Body: []byte("png")}, {ContentID: "evil", Type: "text/html", Body: []byte("<script>")}}
	tests := []struct {
		name, doc, want string
		remote          int
	}{
		{"as it is", "<!DOCTYPE html><P Class=x>a &amp; b<!-- c --></p><br/>", "<!DOCTYPE html><P Class=x>a &amp; b<!-- c --></p><br/>", 0},
		{"embedded image", `<img src="cid:logo@x" alt=a>`, `<img src="data:image/png;base64,cG5n" alt="a">`, 0},
		{"embedded image, escaped", `<img src="cid:logo%40x">`, `<img src="data:image/png;base64,cG5n">`, 0},
		{"embedded, but no image", `<img src="cid:evil">`, `<img src="cid:evil">`, 0},
		{"remote image", `<img src="https://t.example/p.gif"><td background=//t.example/b>`, `<img src="https://t.example/p.gif"><td background=//t.example/b>`, 2},
		{"remote style", `<link href="http://t.example/a.css"><p style="background:url( 'http://t.example/x')">`, `<link href="http://t.example/a.css"><p style="background:url( 'http://t.example/x')">`, 2},
		{"remote style sheet", `<style>@import "x"; a{background:url(//t.example)}</style>url(//no)`, `<style>@import "x"; a{background:url(//t.example)}</style>url(//no)`, 2},
		{"link", `<a href="https://x.example/?a=1&amp;b" target="_top">x</a>`, `<a href="https://x.example/?a=1&amp;b" target="_blank" rel="noopener noreferrer">x</a>`, 0},
		{"cut off", `<p>a<img src="`, `<p>a`, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, remote := frame(tt.doc, parts)
			if string(got) != tt.want || remote != tt.remote {
				t.Errorf("frame = %s (%d remote)\nwant    %s (%d remote)", got, remote, tt.want, tt.remote)
			}
		})
	}
}
