// The first part is the script of the documentation of package realtime.
let source, loads = 0
async function start() {
  source?.close()
  const load = ++loads
  const answer = await fetch("/realtime/notifications").catch(() => null)
  if (answer?.status === 401) return login()
  if (!answer?.ok) return again()
  const inbox = await answer.json()
  if (load !== loads) return // another start was quicker
  show(inbox.notifications)
  source = new EventSource("/realtime/events?last_event_id=" + inbox.last_id)
  source.addEventListener("notification", e => add(JSON.parse(e.data)))
  source.addEventListener("read", e => markRead(JSON.parse(e.data)))
  source.addEventListener("unread", e => { if (JSON.parse(e.data).count !== countShown()) start() })
  source.addEventListener("reset", start)
  // A browser comes back by itself after a lost connection, but not after an answer
  // other than 200: the session has ended, or there are too many connections.
  source.onerror = () => { if (source.readyState === EventSource.CLOSED) again() }
}
function again() { setTimeout(start, 5000 + 5000 * Math.random()) }

// What the page shows.
const $ = id => document.getElementById(id)
const entries = new Map() // by id, the oldest first
function countShown() { return [...entries.values()].filter(n => !n.read).length }
function show(list) {
  $("login").hidden = true
  $("app").hidden = false
  entries.clear()
  for (const n of list.reverse()) entries.set(n.id, n)
  draw()
}
function add(n) {
  if (n.replaces) entries.delete(n.replaces)
  entries.set(n.id, n)
  draw()
}
function markRead(r) {
  for (const [id, n] of entries) if (r.ids?.includes(id) || r.up_to && !after(id, r.up_to)) n.read = true
  draw()
}
function after(a, b) {
  const [am, as] = a.split("-").map(Number), [bm, bs] = b.split("-").map(Number)
  return am > bm || am === bm && as > bs
}
function login() { $("login").hidden = false; $("app").hidden = true }
function draw() {
  const unread = countShown()
  $("count").textContent = unread
  $("count").hidden = unread === 0
  $("bell").setAttribute("aria-label", unread + " unread notifications")
  document.title = (unread ? "(" + unread + ") " : "") + "Notifications"
  $("read-all").disabled = unread === 0
  $("empty").hidden = entries.size > 0
  $("list").replaceChildren(...[...entries.values()].reverse().map(row))
}
// Text is set as text: what a notification says is never part of the page's code.
function row(n) {
  const li = document.createElement("li"), title = document.createElement("a"), body = document.createElement("p")
  li.className = n.read ? "read" : "unread"
  title.textContent = n.title
  if (/^(\/(?!\/)|https:)/.test(n.action ?? "")) title.href = n.action
  title.addEventListener("click", () => read(n.id))
  body.textContent = n.body ?? ""
  li.append(title, body)
  if (!n.read) {
    const button = document.createElement("button")
    button.textContent = "Mark as read"
    button.addEventListener("click", () => read(n.id))
    li.append(button)
  }
  return li
}
// The page changes when the server says so, as in every other tab.
async function post(path, body) {
  const answer = await fetch(path, {
    method: "POST", keepalive: true, headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
  }).catch(() => null)
  if (answer?.status === 401) login()
  $("failure").hidden = Boolean(answer?.ok)
}
function read(id) { return post("/realtime/read", {ids: [id]}) }
$("read-all").addEventListener("click", () => post("/realtime/read-all", {up_to: [...entries.keys()].at(-1)}))
$("send").addEventListener("click", () => post("/notify-me", {}))
start()
