import { $, api, bytes, el, live, navCount, plural, post, serial, show, tabs, toast } from "./common.js";

let all = []; // templates as the server lists them
let current = null; // the chosen template's name
let locale = null;
const edited = new Map(); // JSON text by template, where it differs from the sample

const selectTab = tabs(document.querySelector("[role=tablist]"));
const pretty = (value) => JSON.stringify(value, null, 2);
const info = () => all.find((t) => t.name === current);
const kinds = (t) => [t.email && "email", t.notification && "notification"].filter(Boolean).join(" + ");

const refresh = serial(async () => {
  const answer = await api("/api/templates");
  all = answer.templates;
  $("watching").replaceChildren(...(answer.dir
    ? [el("span", { class: "dot", "aria-hidden": "true" }), el("span", {}, "Watching ", el("code", {}, answer.dir), ". Save a file and this page follows.")]
    : [el("span", {}, "The built-in templates. Set ", el("code", {}, "TEMPLATES_DIR"), " to edit your own here, live.")]));
  $("load-errors").hidden = answer.errors.length === 0;
  $("load-error-lines").replaceChildren(...answer.errors.map((line) => el("li", {}, line)));
  route();
});

// The address bar holds template and language: #welcome/de.
function route() {
  const [name, tag] = decodeURIComponent(location.hash.slice(1)).split("/");
  const template = all.find((t) => t.name === name) ?? all.find((t) => t.name === current) ?? all[0];
  if (!template) return;
  const switched = template.name !== current;
  current = template.name;
  locale = [tag, locale, "en"].find((l) => template.locales.includes(l)) ?? template.locales[0];

  $("template-list").replaceChildren(...all.map((t) => el("li", {},
    el("a", { href: `#${t.name}/${t.locales.includes(locale) ? locale : t.locales[0]}`, "aria-current": t.name === current ? "true" : undefined },
      el("span", { class: "template-name" }, t.name), el("span", { class: "template-locales" }, `${kinds(t)} · ${t.locales.join(" · ")}`)))));
  offer(template);
  if (switched) $("template-list").scrollLeft = $("template-list").querySelector("[aria-current]").offsetLeft - 16; // on a phone it is one line
  const names = new Intl.DisplayNames("en", { type: "language" });
  const focused = document.activeElement?.name === "locale";
  $("locales").replaceChildren($("locales").firstElementChild, ...template.locales.map((l) => el("label", { title: names.of(l) },
    el("input", { type: "radio", name: "locale", value: l, checked: l === locale, "aria-label": names.of(l) }), el("span", {}, l))));
  if (focused) $("locales").querySelector("input:checked").focus();
  const text = edited.get(current) ?? pretty(template.sample);
  if (switched || !edited.has(current)) {
    if ($("data").value !== text) $("data").value = text;
  }
  $("reset").hidden = !edited.has(current);
  render();
}

// offer shows the tabs of the parts that the template has.
function offer(template) {
  const open = document.querySelector("[role=tab][aria-selected=true]");
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.hidden = tab.disabled = !(tab.id === "tab-notification" ? template.notification : template.email);
  }
  if (!open || open.hidden) selectTab(template.email ? "tab-html" : "tab-notification");
  for (const id of ["subject-line", "widths", "schemes", "send"]) $(id).hidden = !template.email;
}

let asked; // the rendering that is under way; a newer one replaces it
async function render() {
  asked?.abort();
  const mine = (asked = new AbortController());
  const data = input();
  if (data === undefined) return;
  try {
    const m = await post(`/api/templates/${encodeURIComponent(current)}/render`, { locale, data }, mine.signal);
    if (mine.signal.aborted) return;
    const mail = m.email;
    $("subject").textContent = mail?.subject ?? "";
    $("text").textContent = mail?.text ?? "";
    $("source").textContent = mail?.source ?? "";
    if (mail && $("html").getAttribute("src") !== mail.frame) show($("html"), mail.frame);
    $("facts").textContent = mail ? bytes(mail.size) + (mail.remote > 0 ? ` · ${plural(mail.remote, "remote thing", "remote things")} not loaded` : "") : "";
    $("notification").replaceChildren(...(m.notification ?? []).flatMap((part) => [
      el("dt", {}, part.name),
      el("dd", {}, part.text ? el("pre", {}, part.text) : el("p", {}, "No text of its own: the generic one is shown.")),
    ]));
    $("render-error").hidden = true;
    $("panel-html").dataset.stale = "no";
  } catch (error) {
    if (mine.signal.aborted) return;
    $("render-error").hidden = false;
    $("render-error").replaceChildren(el("strong", {}, "This data cannot be rendered."), el("ul", { class: "error-lines" }, ...error.message.split("\n").map((line) => el("li", {}, line))));
    $("panel-html").dataset.stale = "yes";
  }
}

// input returns the edited data, or undefined after saying what is wrong with it.
function input() {
  try {
    const data = JSON.parse($("data").value);
    if (data === null || typeof data !== "object" || Array.isArray(data)) throw new Error("it must be an object: { … }");
    $("data-problem").textContent = "";
    $("data").removeAttribute("aria-invalid");
    return data;
  } catch (error) {
    $("data-problem").textContent = `Not JSON yet: ${error.message}`;
    $("data").setAttribute("aria-invalid", "true");
    return undefined;
  }
}

let typing;
$("data").addEventListener("input", () => {
  if ($("data").value === pretty(info().sample)) edited.delete(current);
  else edited.set(current, $("data").value);
  $("reset").hidden = !edited.has(current);
  clearTimeout(typing);
  typing = setTimeout(render, 150);
});
$("reset").addEventListener("click", () => {
  edited.delete(current);
  route();
  $("data").focus();
});
$("locales").addEventListener("change", (event) => (location.hash = `#${current}/${event.target.value}`));
$("widths").addEventListener("change", (event) => ($("panel-html").dataset.width = event.target.value));
// The frame's own colour scheme is what its document takes for the reader's.
$("schemes").addEventListener("change", (event) => ($("panel-html").dataset.scheme = event.target.value));
$("send").addEventListener("click", async () => {
  const data = input();
  if (data === undefined) return;
  $("send").disabled = true;
  try {
    await post(`/api/templates/${encodeURIComponent(current)}/send`, { locale, data });
    toast("Enqueued.", { href: "/inbox/", text: "Open the inbox" });
  } catch (error) {
    toast(error.message);
  } finally {
    $("send").disabled = false;
  }
});
addEventListener("hashchange", route);

selectTab("tab-html");
let last;
live(async (now) => {
  const before = now.process === last?.process ? last : undefined;
  last = now;
  if (now.templates !== before?.templates) refresh();
  if (now.inbox !== before?.inbox) navCount((await api("/api/messages?limit=1")).total);
});
