// Which browser opens the status page? A headless Chromium that resolves no name: it reaches the loopback only.
"use strict";
const path = require("node:path");
const puppeteer = require("puppeteer-core");

const HOME = process.env.BROWSER_HOME;
const UNPACKED = path.join(HOME, "chromium");
const LIMIT_MS = 20_000;

const launch = () =>
  puppeteer.launch({
    executablePath: path.join(UNPACKED, "chromium"),
    headless: "shell",
    timeout: LIMIT_MS,
    args: [
      // Containers run as root, whom the sandbox refuses.
      "--no-sandbox",
      "--no-zygote",
      "--disable-gpu",
      "--disable-dev-shm-usage",
      "--font-render-hinting=none",
      "--no-proxy-server",
      "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    ],
    env: {
      ...process.env,
      FONTCONFIG_FILE: path.join(HOME, "fonts.conf"),
      LD_LIBRARY_PATH: path.join(UNPACKED, "al2023", "lib"),
    },
  });

// Does this with a browser, and ends the process with 1 where it fails.
exports.run = async (work) => {
  const browser = await launch();
  try {
    await work(browser);
  } catch (error) {
    console.error(error.message);
    process.exitCode = 1;
  } finally {
    await browser.close();
  }
};

// A page of this width, not yet anywhere.
exports.open = async (browser, look) => {
  const page = await browser.newPage();
  page.setDefaultTimeout(LIMIT_MS);
  await page.setViewport({ width: look.width, height: 900, isMobile: look.width < 600, hasTouch: look.width < 600 });
  await page.emulateMediaFeatures([
    { name: "prefers-color-scheme", value: look.scheme },
    { name: "prefers-reduced-motion", value: "reduce" },
  ]);
  return page;
};

// Types a question and sends it.
exports.ask = async (page, question) => {
  await page.waitForFunction(() => document.getElementById("send").textContent === "Send");
  await page.type("#question", question);
  await page.keyboard.press("Enter");
};
