import { $, api, el, live, navCount, post, serial, toast } from "./common.js";

const kept = Number($("main").dataset.kept); // the server keeps that many, and drops the oldest

// newer compares two ids of entries, whose parts are numbers: by BigInt, because the first part has many digits.
function newer(a, b) {
  const [am, as] = a.split("-").map(BigInt);
  const [bm, bs] = b.split("-").map(BigInt);
  return am > bm || (am === bm && as > bs);
}

// A Pane is one browser of the user: it loads the inbox, listens from where that ended, and shares nothing
// with the other pane but the server.
class Pane {
  constructor(root) {
    this.root = root;
    this.entries = new Map(); // by id, the oldest first
    this.loads = 0;
    this.offline = false;
    this.part("read-all").addEventListener("click", () => this.send("read-all", { up_to: [...this.entries.keys()].at(-1) }));
    this.part("line").addEventListener("click", () => {
      this.offline = !this.offline;
      this.connect();
    });
    document.addEventListener("visibilitychange", () => this.connect());
    addEventListener("pagehide", () => this.close());
    addEventListener("pageshow", (event) => event.persisted && this.connect());
    this.connect();
  }

  part(name) {
    return this.root.querySelector(`[data-part="${name}"]`);
  }

  state(name, text) {
    this.root.dataset.state = name;
    this.part("state").textContent = text;
  }

  close() {
    clearTimeout(this.timer);
    this.loads++;
    this.source?.close();
    this.source = undefined;
  }

  // connect starts, unless nobody looks: a browser has six connections for all its tabs.
  connect() {
    this.part("line").textContent = this.offline ? "Connect" : "Disconnect";
    if (this.offline || document.hidden) {
      this.close();
      this.state("offline", "Disconnected");
    } else if (!this.source) {
      this.start();
    }
  }

  async start() {
    this.close();
    const load = this.loads;
    this.state("connecting", "Connecting");
    try {
      const response = await fetch("/realtime/notifications");
      if (!response.ok) throw new Error(await response.text());
      const inbox = await response.json();
      if (load !== this.loads) return; // another start was quicker
      this.show(inbox.notifications);
      this.listen(inbox.last_id);
    } catch (error) {
      if (load === this.loads) this.again(error.message);
    }
  }

  listen(from) {
    const source = (this.source = new EventSource(`/realtime/events?last_event_id=${from}`));
    source.onopen = () => this.state("live", "Live");
    source.addEventListener("notification", (event) => this.add(JSON.parse(event.data)));
    source.addEventListener("read", (event) => this.markRead(JSON.parse(event.data)));
    source.addEventListener("unread", (event) => JSON.parse(event.data).count !== this.unread() && this.start());
    source.addEventListener("reset", () => this.start());
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) this.again("the server refused");
      else this.state("lost", "Reconnecting");
    };
  }

  again(why) {
    this.close();
    this.state("lost", `Trying again: ${why}`);
    this.timer = setTimeout(() => this.connect(), 3000);
  }

  unread() {
    return [...this.entries.values()].filter((entry) => !entry.read).length;
  }

  show(notifications) {
    this.entries.clear();
    this.part("list").replaceChildren();
    for (const n of notifications.toReversed()) this.put(n);
    this.count();
  }

  add(n) {
    if (n.replaces) this.remove(n.replaces);
    this.put(n).classList.add("arrived");
    this.count();
  }

  put(n) {
    this.remove(n.id);
    const item = el("li", { class: n.read ? "note" : "note unread", "data-id": n.id },
      el("p", { class: "note-title" }, n.title ?? n.kind),
      el("time", { datetime: n.created_at, title: new Date(n.created_at).toLocaleString() },
        new Date(n.created_at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" })),
      n.body ? el("p", { class: "note-body" }, n.body) : "",
      el("p", { class: "note-kind" }, n.kind),
      el("button", { class: "copy", type: "button", "aria-label": `Mark as read: ${n.title ?? n.kind}` }, "Read"));
    item.querySelector("button").addEventListener("click", () => this.send("read", { ids: [n.id] }));
    this.entries.set(n.id, { read: n.read, item });
    this.part("list").prepend(item);
    if (this.entries.size > kept) this.remove(this.entries.keys().next().value);
    return item;
  }

  remove(id) {
    this.entries.get(id)?.item.remove();
    this.entries.delete(id);
  }

  markRead({ ids, up_to }) {
    for (const [id, entry] of this.entries) {
      if (ids ? !ids.includes(id) : newer(id, up_to)) continue;
      entry.read = true;
      entry.item.classList.remove("unread");
    }
    this.count();
  }

  count() {
    const unread = this.unread();
    this.part("count").textContent = String(unread);
    this.part("count").dataset.none = String(unread === 0);
    this.part("read-all").disabled = unread === 0;
    this.part("empty").hidden = this.entries.size > 0;
  }

  // send tells the server. What changes comes back as an event, to this pane as to every other.
  async send(what, body) {
    try {
      const response = await fetch(`/realtime/${what}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
      if (!response.ok) throw new Error(await response.text());
    } catch (error) {
      toast(error.message);
    }
  }
}

for (const root of document.querySelectorAll("[data-pane]")) new Pane(root);

let templates = [];
const refresh = serial(async () => {
  const chosen = $("template").value;
  templates = (await api("/api/templates")).templates.filter((t) => t.notification);
  $("template").replaceChildren(...templates.map((t) => el("option", { value: t.name, selected: t.name === (chosen || "lab-result-ready") }, t.name)));
  sample();
});
const template = () => templates.find((t) => t.name === $("template").value);
const sample = () => ($("sample").textContent = JSON.stringify(template()?.sample ?? {}, null, 2));
const byTemplate = () => $("form").elements.source.value === "template";

function fields() {
  $("fields-text").hidden = byTemplate();
  $("fields-template").hidden = !byTemplate();
}
$("sources").addEventListener("change", fields);
$("template").addEventListener("change", sample);
$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = byTemplate() ? { template: template().name, data: template().sample } : { title: $("title").value, body: $("body").value };
  $("send").disabled = true;
  try {
    await post("/api/notifications", { ...text, email: $("email").checked, also: new FormData($("form")).getAll("also") });
    $("problem").textContent = "";
  } catch (error) {
    $("problem").textContent = error.message;
  } finally {
    $("send").disabled = false;
  }
});

const names = { webhook: "Webhook", sms: "SMS", chat: "Chat" };
const arrivals = serial(async () => {
  const opened = new Set([...$("arrivals").querySelectorAll("details[open]")].map((d) => d.dataset.id));
  const { arrivals } = await api("/api/arrivals");
  $("arrivals").replaceChildren(...arrivals.map((a) => el("li", {},
    el("details", { "data-id": a.id, open: opened.has(a.id) },
      el("summary", {},
        el("span", { class: "chip" }, names[a.channel]),
        el("span", { class: "arrival-text" }, a.text),
        a.verified === undefined ? "" : el("span", { class: a.verified ? "chip good" : "chip warn" }, a.verified ? "signature verified" : "signature wrong"),
        el("time", { datetime: a.received }, new Date(a.received).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" }))),
      el("p", { class: "arrival-target" }, "To ", el("code", {}, a.target)),
      el("pre", {}, a.body)))));
});

fields(); // a reload keeps what was chosen
let last;
live(async (now) => {
  // After a restart the inbox is another one.
  if (last && now.process !== last.process) return location.reload();
  const before = last;
  last = now;
  if (now.templates !== before?.templates) refresh();
  if (now.arrivals !== before?.arrivals) arrivals();
  if (now.inbox !== before?.inbox) navCount((await api("/api/messages?limit=1")).total);
});
