package worker

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/medicalink/postroom/internal/digest"
	"github.com/medicalink/postroom/internal/ledger"
	"github.com/medicalink/postroom/tasks"
	"github.com/medicalink/postroom/templates"
)

// A digestItem is one notification of a digest: how it reads in the app, and what it
// asked for.
type digestItem struct {
	Text         templates.Text  `json:"text"`
	Notification json.RawMessage `json:"notification"`
}

// gather adds n to its digest and makes sure that somebody will close it.
func (w *Worker) gather(ctx context.Context, j *job, n tasks.Notification, texts texts) *failure {
	item, err := json.Marshal(digestItem{Text: texts.app, Notification: j.payload})
	if err != nil {
		return fail(OutcomeRejected, reasonInternal, errors.New("a notification cannot be kept for its digest"))
	}
	added, err := w.digests.Add(ctx, n.User, n.Digest.Key, j.id, item, time.Duration(n.Digest.Window), n.Digest.Max, w.bare(j.queue))
	if err != nil {
		return redisFailed(ctx, "add to the digest", err)
	}
	end := tasks.DigestClose{User: n.User, Key: n.Digest.Key, Generation: added.Generation}
	queue := tasks.Queue(added.Queue)
	if _, err := w.producer.SendDigestClose(ctx, end, queue, tasks.At(added.Ends)); err != nil {
		return enqueueFailed(ctx, err)
	}
	if added.Full {
		end.Full = true
		if _, err := w.producer.SendDigestClose(ctx, end, queue); err != nil {
			return enqueueFailed(ctx, err)
		}
	}
	return nil
}

// closeDigest ends the window of a digest and delivers what has gathered as one
// notification, by the plan of the newest.
func (w *Worker) closeDigest(ctx context.Context, j *job, a *ledger.Attempt) *failure {
	d, err := tasks.DecodeDigestClose(j.payload)
	if err != nil {
		a.Release(ctx)
		return fail(OutcomeRejected, reasonUndecodable, err)
	}
	items, err := w.digests.Close(ctx, d.User, d.Key, d.Generation, j.id)
	if errors.Is(err, digest.ErrClosed) {
		return conclude(ctx, a, skip(reasonClosedBefore))
	}
	if err != nil {
		return conclude(ctx, a, redisFailed(ctx, "close the digest", err))
	}
	j.enqueued = w.due(j) // what came first is as old as the window, the digest is not
	n, err := digestOf(items)
	if err != nil {
		return conclude(ctx, a, fail(OutcomeRejected, reasonUndecodable, err))
	}
	if f := w.notify(ctx, j, n); f != nil && f.outcome != OutcomeSkipped {
		return conclude(ctx, a, f)
	}
	if err := w.digests.Done(ctx, d.User, d.Key, d.Generation); err != nil {
		return conclude(ctx, a, redisFailed(ctx, "finish the digest", err))
	}
	return conclude(ctx, a, nil)
}

// maxListed bounds the items that a digest names one by one.
const maxListed = 10

// digestOf makes one notification of the items of a window. A single one stays as it is.
func digestOf(items [][]byte) (tasks.Notification, error) {
	var n tasks.Notification
	list := make([]any, 0, min(len(items), maxListed))
	rank := 0
	for i, raw := range items {
		var item digestItem
		if json.Unmarshal(raw, &item) != nil {
			return n, errors.New("an item of the digest cannot be read")
		}
		one, err := tasks.DecodeNotification(item.Notification)
		if err != nil {
			return n, err
		}
		if i < maxListed {
			list = append(list, map[string]any{"title": item.Text.Title})
		}
		rank = max(rank, sensitivityRank(one.Sensitivity))
		n = one
	}
	n.Digest, n.Dedupe, n.DedupeFor = nil, "", 0
	if len(items) == 1 {
		return n, nil
	}
	n.Title, n.Body, n.Action = "", "", ""
	n.Template = templates.Digest
	n.Data = map[string]any{"count": int64(len(items)), "items": list, "more": int64(len(items) - len(list))}
	n.Sensitivity = sensitivities[rank]
	return n, nil
}

// sensitivities from the least to the most: a digest is as sensitive as its most
// sensitive item.
var sensitivities = []tasks.Sensitivity{tasks.SensitivityNone, tasks.SensitivityPersonal, tasks.SensitivityHealth}

func sensitivityRank(s tasks.Sensitivity) int {
	for i, known := range sensitivities {
		if s == known {
			return i
		}
	}
	return len(sensitivities) - 1
}
