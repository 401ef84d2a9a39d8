package realtime

import (
	"context"
	"crypto/ecdh"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/medicalink/postroom/internal/notifier/webpush"
)

// checkPushKey says whether key is what a browser takes. What a browser is told is told
// to everybody: a private key that was set by mistake must not come through.
func checkPushKey(key string) error {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(key)
	if err == nil {
		_, err = ecdh.P256().NewPublicKey(raw)
	}
	if err != nil {
		return errors.New("realtime config: PushPublicKey is not the public key that worker push-key shows: want 87 characters of base64url")
	}
	return nil
}

// pushInfo is what a page needs to subscribe, and whether it is reached already.
func (h *Handler) pushInfo(w http.ResponseWriter, r *http.Request, id Identity) {
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	subscriptions, err := h.push.List(ctx, id.User)
	if err != nil {
		h.unavailable(w, err)
		return
	}
	answer(w, struct {
		PublicKey     string `json:"public_key"`
		Subscriptions int    `json:"subscriptions"`
	}{h.cfg.PushPublicKey, len(subscriptions)})
}

func (h *Handler) subscribe(w http.ResponseWriter, r *http.Request, id Identity) {
	var body json.RawMessage
	if !decode(w, r, &body) {
		return
	}
	subscription, err := webpush.ParseSubscription(body)
	if err == nil {
		ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
		defer cancel()
		_, err = h.push.Add(ctx, id.User, *subscription)
	}
	switch {
	case errors.Is(err, webpush.ErrInvalidSubscription):
		http.Error(w, err.Error(), http.StatusBadRequest)
	case err != nil:
		h.unavailable(w, err)
	default:
		w.WriteHeader(http.StatusCreated)
	}
}

// unsubscribe ends the user's subscription with this endpoint. That there is none is no
// failure: a page that logs out has what it wanted.
func (h *Handler) unsubscribe(w http.ResponseWriter, r *http.Request, id Identity) {
	var body struct {
		Endpoint string `json:"endpoint"`
	}
	if !decode(w, r, &body) {
		return
	}
	if body.Endpoint == "" {
		http.Error(w, `want {"endpoint":"…"}`, http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	subscriptions, err := h.push.List(ctx, id.User)
	if i := slices.IndexFunc(subscriptions, func(s webpush.Subscription) bool { return s.Endpoint == body.Endpoint }); i >= 0 {
		err = h.push.Remove(ctx, id.User, subscriptions[i].ID)
	}
	if err != nil {
		h.unavailable(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
