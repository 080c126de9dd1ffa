"use strict";
// The pages work without this file. With it they follow what happens: the server sends rendered, escaped fragments.

const byId = (id) => document.getElementById(id);

function show(fragment, html) {
  const held = document.activeElement && fragment.contains(document.activeElement) ? document.activeElement.id : "";
  const written = [...fragment.querySelectorAll("input[id]")].map((input) => [input.id, input.value, input.selectionStart]);
  const scrolled = [fragment, ...fragment.querySelectorAll("[id][tabindex='0']")].map((each) => [
    each.id,
    each.scrollTop > 0 && each.scrollTop + each.clientHeight >= each.scrollHeight - 8 ? Infinity : each.scrollTop,
    each.scrollLeft,
  ]);
  const open = [...fragment.querySelectorAll("details[id]")].filter((each) => each.open).map((each) => each.id);
  fragment.innerHTML = html;
  for (const id of open) if (byId(id)) byId(id).open = true;
  for (const [id, top, left] of scrolled) {
    if (byId(id)) byId(id).scrollTo({ top: Math.min(top, byId(id).scrollHeight), left, behavior: "instant" });
  }
  for (const [id, value] of written) if (byId(id)) byId(id).value = value;
  if (!held || !byId(held)) return;
  byId(held).focus();
  const caret = written.find(([id]) => id === held);
  if (caret) byId(held).setSelectionRange(caret[2], caret[2]);
}

// To the next call that waits, or the one before; to its first button or its reason. Nothing is decided by these keys.
function move(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea")) return;
  const cards = [...document.querySelectorAll(".asked")];
  const at = cards.findIndex((card) => card.contains(document.activeElement));
  const card = cards[at] || cards[0];
  const to = {
    j: cards[Math.min(at + 1, cards.length - 1)],
    k: cards[Math.max(at - 1, 0)],
    a: card && card.querySelector("input:not([type=hidden]):not([name=message]), button"),
    d: card && card.querySelector("[name=message]"),
  }[event.key];
  if (!to) return;
  event.preventDefault();
  to.focus();
}

function follow(fragment) {
  const status = byId("live");
  const source = new EventSource(fragment.dataset.live);
  const say = (text, on) => {
    status.hidden = false;
    if (status.textContent !== text) status.textContent = text;
    status.classList.toggle("on", on);
  };
  source.onopen = () => say("live", true);
  source.onerror = () => say(source.readyState === EventSource.CLOSED ? "not connected: reload or log in" : "reconnecting", false);
  source.addEventListener("fragment", (event) => show(fragment, event.data));
  source.addEventListener("text", (event) => {
    const output = byId("output");
    const atEnd = output.scrollTop + output.clientHeight >= output.scrollHeight - 8;
    output.append(JSON.parse(event.data));
    if (atEnd) output.scrollTop = output.scrollHeight;
  });
  source.addEventListener("timeline", (event) => show(byId("lines"), event.data));
  source.addEventListener("end", () => {
    source.close();
    status.hidden = true;
  });
}

// Says here that the gateway refuses a token, instead of leading to its answer.
async function logIn(form) {
  const error = byId("error");
  error.textContent = "";
  const token = new URLSearchParams(new FormData(form));
  const answer = await fetch(form.action, { method: "POST", body: token, redirect: "manual" });
  if (answer.type !== "opaqueredirect") {
    error.textContent = answer.status === 422 ? "That is not a token: three parts with dots between them." : `The gateway answered ${answer.status}.`;
    return;
  }
  const home = await fetch(form.dataset.login, { headers: { Accept: "text/html" } });
  if (home.ok) location.assign(form.dataset.login);
  else error.textContent = `The gateway does not accept this token (${home.status}).`;
}

const fragment = document.querySelector("[data-live]");
if (fragment) follow(fragment);
document.addEventListener("keydown", move);
const form = document.querySelector("[data-login]");
if (form) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    logIn(form).catch(() => { byId("error").textContent = "The gateway cannot be reached."; });
  });
}
