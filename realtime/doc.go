// Package realtime shows users their notifications as they arrive. A service mounts a
// [Handler]; a page in the browser opens an EventSource or a WebSocket to it.
//
//	GET  /events          server-sent events (WHATWG HTML, section 9.2)
//	GET  /ws              the same events as JSON messages of a WebSocket (RFC 6455)
//	GET  /notifications   the inbox: {"notifications":[…],"unread":3,"last_id":"…"}, the newest
//	                      first; ?limit=, default all
//	GET  /unread          {"unread":3}
//	POST /read            {"ids":["…"]} marks as read, and answers {"unread":2}
//	POST /read-all        {"up_to":"…"} marks everything up to that one
//	GET  /push            {"public_key":"…","subscriptions":1}: what a browser subscribes to
//	                      Web Push with, and how many browsers the user has that did
//	POST /push            PushSubscription.toJSON() of the browser: 201, from now on the
//	                      channel push reaches the user there, and no other user
//	DELETE /push          {"endpoint":"…"}: 204, and no longer
//
// The last three are there if Config.PushPublicKey is set. A body is JSON of at most
// 32 KiB, and its Content-Type says so.
//
// Events, of which only notification has an id:
//
//	notification  {"id","notification_id","kind","title","body","action","category","created_at",
//	              "read","replaces"}; title and what follows it may be missing, replaces is the
//	              id of an entry that this one takes the place of
//	unread        {"count":3}, after each change and at the beginning
//	read          {"ids":["…"]} or {"up_to":"…"}: another device of the user has read these
//	reset         {}: what the page shows may have gaps; it loads the inbox again
//
// A message of the WebSocket is {"type","id","data"} with these names and data. The
// client may send {"type":"read","ids":[…]} and {"type":"read_all","up_to":"…"}.
//
// In the browser: load the inbox, then listen from where it ended. Nothing that arrives
// in between is lost, and what is shown is complete if the number of unread entries
// agrees with the server's, because an entry never becomes unread again.
//
//	let source, loads = 0
//	async function start() {
//	  source?.close()
//	  const load = ++loads
//	  const answer = await fetch("/realtime/notifications").catch(() => null)
//	  if (answer?.status === 401) return login()
//	  if (!answer?.ok) return again()
//	  const inbox = await answer.json()
//	  if (load !== loads) return // another start was quicker
//	  show(inbox.notifications)
//	  source = new EventSource("/realtime/events?last_event_id=" + inbox.last_id)
//	  source.addEventListener("notification", e => add(JSON.parse(e.data)))
//	  source.addEventListener("read", e => markRead(JSON.parse(e.data)))
//	  source.addEventListener("unread", e => { if (JSON.parse(e.data).count !== countShown()) start() })
//	  source.addEventListener("reset", start)
//	  // A browser comes back by itself after a lost connection, but not after an answer
//	  // other than 200: the session has ended, or there are too many connections.
//	  source.onerror = () => { if (source.readyState === EventSource.CLOSED) again() }
//	}
//	function again() { setTimeout(start, 5000 + 5000 * Math.random()) }
//
// Web Push needs the user's consent, which a browser asks for after a click: call
// Notification.requestPermission there, then pushOn. Call pushOn at every start of the
// app and after each login too: it keeps the subscription alive, mends one that the
// browser has changed, and takes it over from who was logged in before. Call pushOff
// before the session ends.
//
//	const push = (method, body) => fetch("/realtime/push", {
//	  method, headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
//	})
//	async function pushOn() {
//	  if (Notification.permission !== "granted") return
//	  const {pushManager} = await navigator.serviceWorker.register("/sw.js")
//	  await navigator.serviceWorker.ready
//	  const {public_key} = await (await push("GET")).json()
//	  const subscribe = () => pushManager.subscribe({userVisibleOnly: true, applicationServerKey: public_key})
//	  const subscription = await subscribe().catch(async e => {
//	    if (e.name !== "InvalidStateError") throw e
//	    await (await pushManager.getSubscription())?.unsubscribe() // it was made with a former key
//	    return subscribe()
//	  })
//	  if (!(await push("POST", subscription)).ok) throw new Error("push is not on")
//	}
//	async function pushOff() {
//	  const registration = await navigator.serviceWorker.getRegistration()
//	  const subscription = await registration?.pushManager.getSubscription()
//	  if (!subscription) return
//	  await push("DELETE", {endpoint: subscription.endpoint})
//	  await subscription.unsubscribe()
//	}
//
// The service worker, /sw.js, gets {"id","kind","title","body","action"}, of which body
// and action may be missing. The tag shows a message once that comes twice.
//
//	addEventListener("push", e => {
//	  const {id, title, body, action} = e.data.json()
//	  e.waitUntil(registration.showNotification(title, {body, tag: id, data: {action}}))
//	})
//	addEventListener("notificationclick", e => {
//	  e.notification.close()
//	  e.waitUntil(clients.openWindow(e.notification.data.action ?? "/"))
//	})
//
// Invariants:
//
//   - The stream in Redis is the truth, its channel is the bell. A client knows the
//     position up to which it has seen everything, and is sent a live event only if
//     that event says that it comes right after this position. Otherwise the client is
//     first brought up to date from the stream. So none is left out and none is sent
//     twice on a connection, whatever was lost on the way here.
//   - After a lost subscription every client is brought up to date, once it works again.
//   - While Redis is away clients stay connected, and new ones are accepted: a browser
//     that got an answer other than 200 would not come back.
//   - A client that does not read is cut when Config.Buffer events wait for it, or one
//     has not gone out for ten seconds. It comes back and reads the rest from the stream.
//   - A connection ends when its identity expires, and at Close, at a random moment each.
//   - Requests from pages of other origins are refused, reading ones too: a page
//     elsewhere could use up the connections of a user who is logged in here.
//   - A process has one subscription, and beside net/http's goroutine no other for a
//     client of /events, and one for a client of /ws. An event is encoded once for all.
//
// Serve it over HTTP/2: over HTTP/1.1 a browser opens six connections to a host at most,
// and each open tab takes one. A write timeout of the http.Server does no harm. A
// middleware that wraps the http.ResponseWriter needs a method Unwrap, see
// [net/http.ResponseController]. Proxies must not buffer /events (nginx learns that from
// X-Accel-Buffering) and must allow longer silences than Config.Heartbeat.
//
// Redis needs to allow the service, for keys postroom:inbox:{…}* and the channel
// postroom:inbox, or postroom:inbox:NAMESPACE: evalsha, eval, xrange, xrevrange, zrange,
// zrem, zscore, zadd, zcard, publish and subscribe. With PushPublicKey it also needs, for
// keys postroom:push:{…} and postroom:push:endpoint:{…}: del, get, hdel, hgetall, hset,
// pexpire, set and time.
package realtime
