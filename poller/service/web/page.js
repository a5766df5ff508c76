"use strict";
// Asks for this page again and shows what changed. What is focused keeps the focus. When no answer comes, the page says so.
const EVERY_MS = 5000;
const stale = document.getElementById("stale");
const announcement = document.getElementById("announcement");
let isAsking = false;

function show(next) {
  const active = document.activeElement && document.activeElement.id;
  for (const id of ["clock", "main"]) {
    const old = document.getElementById(id), fresh = next.getElementById(id);
    if (!fresh) throw new Error("not this page");
    if (id === "main" && old.children.length === fresh.children.length) {
      [...fresh.children].forEach((part, at) => {
        if (!part.isEqualNode(old.children[at])) old.children[at].replaceWith(document.importNode(part, true));
      });
    } else if (!fresh.isEqualNode(old)) {
      old.replaceWith(document.importNode(fresh, true));
    }
  }
  document.title = next.title;
  document.querySelector("link[rel=icon]").href = next.querySelector("link[rel=icon]").href;
  const badge = next.getElementById("badge").textContent;
  if (announcement.textContent !== badge) announcement.textContent = badge;  // a screen reader says it when it changes
  if (active && active !== document.activeElement.id) document.getElementById(active)?.focus({ preventScroll: true });
}

async function refresh() {
  if (document.hidden || isAsking) return;
  isAsking = true;
  try {
    const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(10000) });
    if (!answer.ok) throw new Error("HTTP " + answer.status);
    show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    stale.hidden = true;
  } catch {
    stale.hidden = false;
  } finally {
    isAsking = false;
  }
}

setInterval(refresh, EVERY_MS);
document.addEventListener("visibilitychange", refresh);
