"use strict";
// The pages work without this file. With it they follow what happens: the server sends rendered, escaped fragments.

const byId = (id) => document.getElementById(id);

function show(fragment, html) {
  const held = document.activeElement && fragment.contains(document.activeElement) ? document.activeElement.id : "";
  fragment.innerHTML = html;
  if (held && byId(held)) byId(held).focus();
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
  source.addEventListener("line", (event) => {
    const item = document.createElement("li");
    item.textContent = JSON.parse(event.data);
    byId("lines").append(item);
  });
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
const form = document.querySelector("[data-login]");
if (form) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    logIn(form).catch(() => { byId("error").textContent = "The gateway cannot be reached."; });
  });
}
