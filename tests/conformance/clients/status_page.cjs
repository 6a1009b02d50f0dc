// What does a person see on the status page? One line of JSON for each thing seen, in the order seen.
"use strict";
const { ask, open, run } = require("./browser.cjs");

const LOOKS = [
  { name: "light", scheme: "light", width: 1100 },
  { name: "dark", scheme: "dark", width: 1100 },
  { name: "narrow", scheme: "light", width: 390 },
  { name: "narrow dark", scheme: "dark", width: 390 },
];
const { url } = JSON.parse(process.argv[2]);
const requests = new Set();
const complaints = [];
let now = "";

const tell = (seen) => console.log(JSON.stringify(seen));

function watch(page) {
  page.on("request", (request) => requests.add(request.url()));
  page.on("pageerror", (error) => complaints.push({ during: now, text: error.message }));
  page.on("console", (line) => {
    if (["error", "warn"].includes(line.type())) complaints.push({ during: now, text: line.text() });
  });
}

// Runs in the page: every piece of visible text with its colours, and what sticks out to the right.
function layout() {
  const numbers = (colour) => colour.match(/[\d.]+/g).map(Number);
  const isOpaque = (element) => (numbers(getComputedStyle(element).backgroundColor)[3] ?? 1) === 1;
  const texts = [];
  for (const element of document.querySelectorAll("body *")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!hasText || !element.checkVisibility()) continue;
    let ground = element;
    while (ground !== document.body && !isOpaque(ground)) ground = ground.parentElement;
    texts.push({
      text: element.textContent.trim().slice(0, 40),
      ink: numbers(getComputedStyle(element).color).slice(0, 3),
      ground: numbers(getComputedStyle(ground).backgroundColor).slice(0, 3),
    });
  }
  const sticksOut = (element) => element.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5;
  return {
    text: document.body.innerText,
    ground: numbers(getComputedStyle(document.body).backgroundColor).slice(0, 3),
    texts,
    contentWidth: document.documentElement.scrollWidth,
    sticksOut: [...document.querySelectorAll("body *")].filter(sticksOut).map((element) => element.outerHTML.slice(0, 80)),
  };
}

const lineSays = (page, selector) =>
  page.waitForFunction((s) => [...document.querySelectorAll(s)].at(-1)?.textContent || false, {}, selector);

async function failure(page, name) {
  now = name;
  const before = await page.$$eval("#log .error", (lines) => lines.length);
  await ask(page, name);
  await page.waitForFunction((n) => document.querySelectorAll("#log .error").length > n, {}, before);
  tell({ seen: name, text: await page.$$eval("#log .error", (lines) => lines.at(-1).textContent) });
}

async function chat(page) {
  now = "answer";
  await ask(page, "What is the capital of " + "France".repeat(60) + "?");
  const first = await lineSays(page, "#log p:not(.user):not(.error)");
  tell({ seen: "piece", text: await first.jsonValue() });
  await page.waitForFunction(() => document.getElementById("figures").textContent.includes("tokens"));
  tell({
    seen: "answer",
    text: await page.$eval("#log p:last-child", (line) => line.textContent),
    elements: await page.$eval("#log p:last-child", (line) => line.childElementCount),
    figures: await page.$eval("#figures", (line) => line.textContent),
    layout: await page.evaluate(layout),
  });
}

async function refreshed(page) {
  now = "refresh";
  // The page asks for the fleet as soon as somebody looks at it again.
  await page.evaluate(() => document.dispatchEvent(new Event("visibilitychange")));
  await page.waitForFunction(() => document.getElementById("fleet").textContent.includes("replica-3"));
  tell({ seen: "refresh", text: await page.$eval("#fleet", (part) => part.innerText) });
}

run(async (browser) => {
  let page;
  for (const look of LOOKS) {
    await page?.close();
    now = look.name;
    page = await open(browser, look);
    watch(page);
    await page.goto(url);
    tell({ seen: look.name, width: look.width, layout: await page.evaluate(layout) });
  }
  await chat(page);
  await refreshed(page);
  await failure(page, "overloaded");
  await failure(page, "break");
  await page.setOfflineMode(true);
  await failure(page, "offline");
  tell({ seen: "all", requests: [...requests], complaints, layout: await page.evaluate(layout) });
});
