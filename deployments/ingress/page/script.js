"use strict";

const fleet = document.getElementById("fleet");
const live = document.getElementById("live");
const form = document.getElementById("chat");
const log = document.getElementById("log");
const question = document.getElementById("question");
const send = document.getElementById("send");
const figures = document.getElementById("figures");
const clear = document.getElementById("clear");
const key = document.getElementById("key");
const keyRow = document.getElementById("key-row");
const greeting = log.firstElementChild;

// The fleet: a fresh fragment every few seconds while somebody looks.
const REFRESH_MS = 5000;
const asksForKey = !keyRow.hidden;
let shown = "";
live.hidden = asksForKey;

function credentials() {
  return key.value ? { authorization: `Bearer ${key.value}` } : {};
}

// Browsers call a lost connection by many names.
function unreachable(error) {
  throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
}

async function nameOfModel() {
  if (!form.dataset.model) {
    const answer = await fetch("/v1/models", { headers: credentials() }).catch(unreachable);
    if (!answer.ok) throw new Error(await failureOf(answer));
    form.dataset.model = (await answer.json()).data[0]?.id ?? "";
  }
  return form.dataset.model;
}

async function refresh() {
  if (document.hidden || (asksForKey && !key.value)) return;
  try {
    const answer = await fetch("/fleet", { cache: "no-store", headers: credentials() });
    if (answer.status === 401) return;
    if (!answer.ok) throw new Error(String(answer.status));
    const fresh = await answer.text();
    if (fresh !== shown) fleet.innerHTML = shown = fresh;
    live.hidden = false;
    live.classList.remove("lost");
    live.textContent = "live";
  } catch {
    live.classList.add("lost");
    live.textContent = "no answer from the server, trying again";
  }
}
setInterval(refresh, REFRESH_MS);
document.addEventListener("visibilitychange", refresh);

// The chat box: a client of the API like any other.
let messages = [];
let running = null;
form.hidden = false;

function say(kind, text) {
  const line = document.createElement("p");
  line.className = kind;
  line.textContent = text;
  greeting.remove();
  log.append(line);
  log.scrollTop = log.scrollHeight;
  return line;
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(unreachable);
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function failureOf(answer) {
  if (answer.status === 401) keyRow.hidden = false;
  try {
    return (await answer.json()).error.message;
  } catch {
    return `The server answered with status ${answer.status}.`;
  }
}

async function ask(signal, line) {
  const headers = { "content-type": "application/json", ...credentials() };
  const body = { model: await nameOfModel(), messages, stream: true, stream_options: { include_usage: true } };
  const began = performance.now();
  const request = { method: "POST", headers, body: JSON.stringify(body), signal };
  const answer = await fetch("/v1/chat/completions", request).catch(unreachable);
  if (!answer.ok) throw new Error(await failureOf(answer));
  let first = null;
  for await (const event of eventsOf(answer.body)) {
    if (event.error) throw new Error(event.error.message);
    const piece = event.choices[0]?.delta?.content;
    if (piece) {
      first ??= performance.now();
      const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      line.classList.remove("waiting");
      line.textContent += piece;
      if (isAtEnd) log.scrollTop = log.scrollHeight;
    }
    if (event.usage) showFigures(event.usage, began, first ?? performance.now());
  }
}

function showFigures(usage, began, first) {
  const seconds = (performance.now() - first) / 1000;
  const rate = usage.completion_tokens > 1 && seconds > 0 ? (usage.completion_tokens - 1) / seconds : 0;
  const wait = ((first - began) / 1000).toFixed(2);
  figures.textContent =
    `${usage.prompt_tokens} + ${usage.completion_tokens} tokens · first after ${wait} s` +
    (rate ? ` · ${rate.toFixed(1)} tokens/s` : "");
}

async function submit() {
  const text = question.value.trim();
  if (running || !text) return;
  messages.push({ role: "user", content: text });
  say("user", text);
  question.value = "";
  fit();
  const line = say("waiting", "");
  running = new AbortController();
  send.textContent = "Stop";
  clear.hidden = true;
  try {
    await ask(running.signal, line);
  } catch (error) {
    if (error.name !== "AbortError") say("error", error.message || "The server did not say what went wrong.");
  }
  line.classList.remove("waiting");
  // A question without an answer is taken back, so that the next one starts from a whole dialog.
  if (line.textContent) messages.push({ role: "assistant", content: line.textContent });
  else { messages.pop(); line.remove(); }
  running = null;
  send.textContent = "Send";
  clear.hidden = false;
  question.focus();
}

function fit() {
  question.rows = Math.min(7, question.value.split("\n").length);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else submit();
});
key.addEventListener("change", refresh);
question.addEventListener("input", fit);
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
clear.addEventListener("click", () => {
  messages = [];
  log.replaceChildren(greeting);
  figures.textContent = "Enter sends, Shift+Enter begins a new line.";
  clear.hidden = true;
  question.focus();
});
