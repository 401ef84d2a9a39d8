// What every page shares: the live connection, small DOM helpers, tabs, copying.

export const $ = (id) => document.getElementById(id);

// el makes an element. Text only ever becomes text nodes: no markup of a mail is parsed here.
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((c) => c !== undefined && c !== ""));
  return node;
}

// api returns the decoded answer, or throws an Error with the server's words.
export async function api(path, options) {
  const response = await fetch(path, options);
  if (response.status === 204) return undefined;
  const body = await response.json();
  if (!response.ok) throw new Error(body.error);
  return body;
}

export const post = (path, body, signal) =>
  api(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

// live calls changed(versions) at once and after every change on the server, also after a lost connection.
// A page that nobody sees lets go of its connection: a browser has six for all its tabs.
export function live(changed) {
  const state = (name, text) => {
    $("live").dataset.state = name;
    $("live-text").textContent = text;
  };
  let source;
  const connect = () => {
    source?.close();
    source = undefined;
    if (document.hidden) return;
    source = new EventSource("/api/events");
    source.onmessage = async (event) => {
      state("live", "Live");
      try {
        await changed(JSON.parse(event.data));
      } catch (error) {
        toast(error.message);
      }
    };
    source.onerror = () => state("lost", "Stopped");
  };
  document.addEventListener("visibilitychange", connect);
  addEventListener("pagehide", () => source?.close());
  addEventListener("pageshow", (event) => event.persisted && connect());
  connect();
}

// serial returns a function that runs work, and once more if it was called meanwhile: never two at a time.
export function serial(work) {
  let running = false;
  let again = false;
  return async function run() {
    if (running) {
      again = true;
      return;
    }
    running = true;
    try {
      do {
        again = false;
        await work();
      } while (again);
    } catch (error) {
      toast(error.message);
    } finally {
      running = false;
    }
  };
}

let toastTimer;
export function toast(text, link) {
  clearTimeout(toastTimer);
  $("toast").replaceChildren(text, ...(link ? [" ", el("a", { href: link.href }, link.text)] : []));
  $("toast").hidden = false;
  toastTimer = setTimeout(() => ($("toast").hidden = true), 6000);
}

// Shows a document in a frame, or nothing. A frame that is sent elsewhere leaves an entry in the window's
// history, and Back would go there first; a new frame leaves none.
export function show(frame, src) {
  const fresh = frame.cloneNode();
  if (src) fresh.src = src;
  else fresh.removeAttribute("src");
  frame.replaceWith(fresh);
}

export function navCount(n) {
  $("nav-count").hidden = n === 0;
  $("nav-count").textContent = n > 999 ? "999+" : String(n);
}

// tabs makes a tablist work as the ARIA practices describe it: arrow keys, Home and End.
// It returns a function that selects a tab by its id.
export function tabs(list, selected = () => {}) {
  const all = [...list.querySelectorAll("[role=tab]")];
  const select = (id, focus = false) => {
    for (const tab of all) {
      const on = tab.id === id;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      $(tab.getAttribute("aria-controls")).hidden = !on;
      if (on && focus) tab.focus();
    }
    selected(id);
  };
  list.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab && !tab.disabled) select(tab.id);
  });
  list.addEventListener("keydown", (event) => {
    const usable = all.filter((tab) => !tab.disabled);
    const at = usable.indexOf(event.target.closest("[role=tab]"));
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: usable.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    select(usable[(to + usable.length) % usable.length].id, true);
  });
  return select;
}

export function bytes(n) {
  if (n < 1000) return `${n} B`;
  if (n < 1e6) return `${(n / 1e3).toFixed(n < 1e4 ? 1 : 0)} kB`;
  return `${(n / 1e6).toFixed(1)} MB`;
}

export const plural = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Press Ctrl-C";
    getSelection().selectAllChildren(button.parentElement.querySelector("code"));
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
});
