import { $, api, bytes, el, live, navCount, plural, serial, show, tabs, toast } from "./common.js";

const step = 200;
const wide = matchMedia("(min-width: 900px)");

let limit = step;
let rows = new Map(); // list items by message id, as they are shown
let newestSeen = null; // the newest id when the page was opened: what comes later is marked as new
const opened = new Set();
let current = null; // the open message's id
let openFirst = true; // on a wide screen the newest message opens by itself, once
let chosenTab = "tab-html"; // what the reader last chose, kept from message to message

const selectTab = tabs(document.querySelector("[role=tablist]"), (id) => {
  if (id === "tab-source") loadSource();
});
document.querySelector("[role=tablist]").addEventListener("click", rememberTab);
document.querySelector("[role=tablist]").addEventListener("keyup", rememberTab);
function rememberTab() {
  chosenTab = document.querySelector("[role=tab][aria-selected=true]").id;
}

const refresh = serial(async () => {
  const query = $("search").value.trim();
  const answer = await api(`/api/messages?limit=${limit}&q=${encodeURIComponent(query)}`);
  if (newestSeen === null) newestSeen = BigInt(answer.messages[0]?.id ?? 0);
  showList(answer, query);
  if (openFirst && current === null && location.hash === "" && wide.matches && answer.messages.length > 0) {
    history.replaceState(null, "", `#m${answer.messages[0].id}`);
    route();
  }
});

function showList(answer, query) {
  const next = new Map();
  for (const m of answer.messages) next.set(m.id, rows.get(m.id) ?? row(m));
  rows = next;
  // Only what changed is moved, so that focus and scroll position stay.
  let at = $("list").firstElementChild;
  for (const item of rows.values()) {
    if (item === at) at = at.nextElementSibling;
    else $("list").insertBefore(item, at);
  }
  while (at) {
    const gone = at;
    at = at.nextElementSibling;
    gone.remove();
  }
  mark();

  let text = query ? `${answer.matched.toLocaleString("en")} of ${plural(answer.total, "message", "messages")}` : plural(answer.total, "message", "messages");
  if (answer.dropped > 0) text += ` · ${plural(answer.dropped, "older one was", "older ones were")} dropped: the inbox keeps the newest ${answer.keep_messages.toLocaleString("en")}, ${answer.keep_bytes >> 20} MiB at most`;
  $("summary").textContent = answer.total === 0 ? "" : text;
  $("empty").hidden = answer.total > 0;
  $("no-match").hidden = answer.total === 0 || answer.matched > 0;
  $("more").hidden = answer.matched <= answer.messages.length;
  $("clear").disabled = answer.total === 0;
  navCount(answer.total);
  document.title = `${answer.total > 0 ? `(${answer.total}) ` : ""}Inbox · postroom dev`;
}

function row(m) {
  const who = m.to[0] ?? { address: "nobody" };
  const label = who.name || who.address;
  return el("li", {},
    el("a", { href: `#m${m.id}`, class: "row" },
      el("span", { class: `avatar hue-${hue(who.address)}`, "aria-hidden": "true" }, initials(label)),
      el("span", { class: "row-to" }, label, m.to.length > 1 ? ` +${m.to.length - 1}` : ""),
      el("time", { datetime: m.received, title: new Date(m.received).toLocaleString() }, shortTime(new Date(m.received))),
      el("span", { class: "row-subject" }, m.subject || "(no subject)"),
      el("span", { class: "row-snippet" }, m.snippet),
      m.attachments > 0 ? el("span", { class: "chip" }, plural(m.attachments, "file", "files")) : "",
      m.problems > 0 ? el("span", { class: "chip warn" }, plural(m.problems, "problem", "problems")) : "",
      el("span", { class: "visually-hidden new-word" }, "new"),
    ));
}

function mark() {
  for (const [id, item] of rows) {
    const link = item.firstElementChild;
    link.classList.toggle("new", BigInt(id) > newestSeen && !opened.has(id));
    if (id === current) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

function initials(name) {
  const words = name.replace(/[^\p{L}\p{N}\s@]/gu, "").split(/[\s@]+/).filter(Boolean);
  return ((words[0]?.[0] ?? "?") + (name.includes("@") ? "" : (words.at(-1) !== words[0] ? words.at(-1)[0] : ""))).toUpperCase();
}

function hue(text) {
  let h = 0;
  for (const c of text) h = (h * 31 + c.codePointAt(0)) >>> 0;
  return h % 6;
}

function shortTime(date) {
  const today = new Date().toDateString() === date.toDateString();
  return today ? date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) : date.toLocaleDateString([], { month: "short", day: "numeric" });
}

// The address bar says which message is open, so that back, reload and sharing a link work.
async function route() {
  const id = /^#m(\d+)$/.exec(location.hash)?.[1] ?? null;
  if (id === null) {
    close();
    return;
  }
  if (id === current) return;
  current = id;
  openFirst = false;
  opened.add(id);
  mark();
  try {
    const m = await api(`/api/messages/${id}`);
    if (current === id) open(m);
  } catch (error) {
    if (current === id) {
      close();
      history.replaceState(null, "", location.pathname);
      toast(error.message);
    }
  }
}

function close() {
  current = null;
  $("main").dataset.shows = "list";
  $("message").hidden = true;
  $("nothing").hidden = false;
  mark();
}

function open(m) {
  $("subject").textContent = m.subject || "(no subject)";
  const people = [["From", m.from], ["To", m.to], ["Cc", m.cc], ["Reply to", m.reply_to]];
  // The envelope decides where a mail goes; it is worth a line when the header says otherwise.
  const shown = new Set([...m.to, ...m.cc].map((a) => a.address));
  const hidden = m.envelope.to.filter((a) => !shown.has(a));
  if (hidden.length) people.push(["Delivered to", hidden.map((address) => ({ address }))]);
  $("people").replaceChildren(...people.filter(([, list]) => list.length).map(([label, list]) =>
    el("div", {}, el("dt", {}, label), el("dd", {}, ...list.flatMap((a, i) => [
      i > 0 ? ", " : "",
      a.name ? el("span", { class: "name" }, a.name) : "",
      a.name ? " " : "",
      el("span", { class: "addr" }, a.address),
    ])))));
  $("received").textContent = new Date(m.received).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
  $("received").setAttribute("datetime", m.received);
  $("size").textContent = bytes(m.size);
  $("download").href = `/api/messages/${m.id}/raw?download=1`;

  $("problems").hidden = m.problems.length === 0;
  $("problems").replaceChildren(el("strong", {}, "This message is not quite right."), el("ul", {}, ...m.problems.map((p) => el("li", {}, p))));

  $("attachments").hidden = m.attachments.length === 0;
  $("attachments").replaceChildren(...m.attachments.map((a, n) =>
    el("li", {}, el("a", { class: "attachment", href: `/api/messages/${m.id}/parts/${n}`, download: a.name, title: a.type },
      el("span", { class: "attachment-name" }, a.name), el("span", { class: "attachment-size" }, bytes(a.size))))));

  $("remote").hidden = m.remote === 0;
  $("remote").textContent = `${plural(m.remote, "thing", "things")} from other servers ${m.remote === 1 ? "is" : "are"} not loaded here: images, fonts or styles that a reader's mail program would ask for.`;
  show($("html"), m.has_html && `/api/messages/${m.id}/html`);
  $("text").textContent = m.text;
  $("headers").replaceChildren(...m.headers.map((h) => el("tr", {}, el("th", { scope: "row" }, h.name), el("td", {}, h.value))));
  $("source").textContent = "";
  $("source").dataset.of = "";

  $("tab-html").disabled = !m.has_html;
  $("tab-text").disabled = !m.has_text;
  const usable = !$(chosenTab).disabled ? chosenTab : m.has_html ? "tab-html" : m.has_text ? "tab-text" : "tab-headers";
  $("nothing").hidden = true;
  $("message").hidden = false;
  $("main").dataset.shows = "message";
  selectTab(usable);
  if (!wide.matches) {
    scrollTo(0, 0);
    $("subject").focus({ preventScroll: true });
  }
}

async function loadSource() {
  const id = current;
  if (id === null || $("source").dataset.of === id) return;
  const response = await fetch(`/api/messages/${id}/raw`);
  if (!response.ok || current !== id) return;
  $("source").textContent = await response.text();
  $("source").dataset.of = id;
}

function move(by) {
  const ids = [...rows.keys()];
  const at = ids.indexOf(current);
  const id = ids[at < 0 ? 0 : at + by];
  if (id === undefined) return;
  location.hash = `#m${id}`;
  const link = rows.get(id).firstElementChild;
  link.focus({ preventScroll: true });
  link.scrollIntoView({ block: "nearest" });
}

addEventListener("hashchange", route);
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("confirm").open) return;
  if (event.target.matches("input, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const action = {
    "/": () => $("search").select(),
    j: () => move(1),
    k: () => move(-1),
    Escape: () => current !== null && back(),
  }[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});

function back() {
  const link = rows.get(current)?.firstElementChild;
  history.pushState(null, "", location.pathname);
  route();
  link?.focus();
}
$("back").addEventListener("click", back);

let typing;
$("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    limit = step;
    refresh();
  }, 120);
});
$("more").addEventListener("click", () => {
  limit = Math.min(limit + step, 1000);
  refresh();
});

$("clear").addEventListener("click", () => {
  $("confirm").returnValue = "no"; // what Escape leaves
  $("confirm").showModal();
});
$("confirm").addEventListener("close", async () => {
  if ($("confirm").returnValue !== "yes") return;
  try {
    await api("/api/messages", { method: "DELETE" });
    history.replaceState(null, "", location.pathname);
    close();
    refresh();
  } catch (error) {
    toast(error.message);
  }
});

selectTab("tab-html");
route();
let last;
live((now) => {
  // After a restart the same ids are other messages.
  if (last && now.process !== last.process) location.reload();
  else if (now.inbox !== last?.inbox) refresh();
  last = now;
});
