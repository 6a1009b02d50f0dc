// A picture of a page, with the answer to a question where one is given.
"use strict";
const { ask, open, run } = require("./browser.cjs");

const { url, file, question, scheme, width } = JSON.parse(process.argv[2]);

run(async (browser) => {
  const page = await open(browser, { scheme, width });
  await page.goto(url);
  if (question) {
    await ask(page, question);
    await page.waitForFunction(() => document.getElementById("figures").textContent.includes("tokens"));
  }
  await page.screenshot({ path: file, fullPage: true });
});
