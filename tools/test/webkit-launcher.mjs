// Lets web-test-runner drive WebKitGTK: Xvfb, WebKitWebDriver and its MiniBrowser, by plain WebDriver calls.
// The runner's own WebDriver launcher would bring the package webdriverio, several times the size of everything else.

import { spawn } from "node:child_process";
import { freePort } from "../setup/shell.mjs";

/** Starts an X server on a display number of its own choice, which it writes to descriptor 3. */
async function startDisplay(xvfb) {
  const args = ["-displayfd", "3", "-screen", "0", "1024x768x24", "-nolisten", "tcp"];
  const child = spawn(xvfb, args, { stdio: ["ignore", "ignore", "ignore", "pipe"] });
  const number = await new Promise((resolve, reject) => {
    child.stdio[3].once("data", (text) => resolve(String(text).trim()));
    child.once("error", reject);
    child.once("exit", (status) => reject(new Error(`Xvfb ended with status ${status}`)));
  });
  return { child, display: `:${number}` };
}

/** The WebDriver protocol (W3C), as far as it is needed here. */
class WebDriver {
  constructor(port) {
    this.base = `http://127.0.0.1:${port}`;
  }

  async call(method, path, body) {
    const response = await fetch(this.base + path, { method, body: body && JSON.stringify(body) });
    const { value } = await response.json();
    if (!response.ok) throw new Error(`WebDriver ${method} ${path}: ${value.error}: ${value.message}`);
    return value;
  }

  /** Waits until the driver listens; it says nothing when it does. */
  async ready(child) {
    for (;;) {
      if (child.exitCode !== null) throw new Error(`WebKitWebDriver ended with status ${child.exitCode}`);
      try {
        return await this.call("GET", "/status");
      } catch {
        await new Promise((wake) => setTimeout(wake, 100));
      }
    }
  }

  async start() {
    const { sessionId } = await this.call("POST", "/session", { capabilities: {} });
    this.base += `/session/${sessionId}`;
  }
}

/** A launcher with one window, in which one test file runs after the other. */
export function webkitLauncher({ driver, xvfb }) {
  const children = [];
  let webDriver;
  let active;

  async function start() {
    const { child: server, display } = await startDisplay(xvfb);
    children.push(server);
    const port = await freePort();
    const env = { ...process.env, DISPLAY: display };
    const child = spawn(driver, [`--port=${port}`], { env, stdio: "ignore" });
    children.push(child);
    webDriver = new WebDriver(port);
    await webDriver.ready(child);
    await webDriver.start();
  }

  return {
    name: "WebKit",
    type: "webdriver",
    concurrency: 1,

    async startSession(sessionId, url) {
      if (!webDriver) await start();
      active = sessionId;
      await webDriver.call("POST", "/url", { url });
    },
    isActive: (sessionId) => active === sessionId,
    getBrowserUrl: () => webDriver.call("GET", "/url"),
    async stopSession() {
      active = undefined;
      // Leaving the page stops whatever still runs in it.
      await webDriver.call("POST", "/url", { url: "about:blank" });
      return {};
    },
    async startDebugSession() {
      throw new Error("debug in MiniBrowser itself: it is a plain browser");
    },
    async stop() {
      try {
        await webDriver?.call("DELETE", "");
      } finally {
        for (const child of children) child.kill();
      }
    },
  };
}
