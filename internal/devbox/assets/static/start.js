import { $, api, live, navCount, plural } from "./common.js";

live(async () => {
  const [inbox, templates] = await Promise.all([api("/api/messages?limit=1"), api("/api/templates")]);
  navCount(inbox.total);
  const newest = inbox.messages[0];
  $("card-inbox").textContent = newest ? `${plural(inbox.total, "message", "messages")}, the newest: ${newest.subject}` : "Empty so far";
  const locales = new Set(templates.templates.flatMap((t) => t.locales));
  $("card-templates").textContent = templates.errors.length
    ? `${plural(templates.errors.length, "problem", "problems")} in the files`
    : `${templates.templates.length} templates in ${plural(locales.size, "language", "languages")}`;
});
