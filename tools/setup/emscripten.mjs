// Finds or installs Emscripten >= 3.1.60 (final relaxed SIMD).
//
// An `em++` on PATH that is new enough is used as it is. On Debian 12, whose own package is 3.1.6, Debian 13's
// package is unpacked into the cache folder and run with Debian 12's clang 19; its binaryen tools are started
// through Debian 13's dynamic linker, because they need a newer C library than Debian 12 has.

import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { aptInstall, aptUpdate, ensurePackages } from "./apt.mjs";
import { withLock } from "./lock.mjs";
import { CACHE, canInstall, distribution, runQuiet, SetupError, say, which } from "./shell.mjs";

const MIN_VERSION = [3, 1, 60];
const HOME = path.join(CACHE, "emscripten-trixie");
const READY = path.join(HOME, "ready");
const ACORN = path.join(HOME, "emscripten/node_modules/acorn");

/** Tests, documentation, OpenGL emulation, LTO, wasm64 and debug libraries: 900 MB that we never use. */
const LEAVE_OUT = [
  "./usr/share/emscripten/test",
  "./usr/share/emscripten/docs",
  "./usr/share/doc",
  "*/lto",
  "*/wasm64-emscripten",
  "*/libGL*",
  "*-debug*.a",
  "*asan*.a",
  "*ubsan*.a",
];

function version(emxx, env) {
  const result = spawnSync(emxx, ["--version"], { encoding: "utf8", env });
  const match = result.stdout?.match(/(\d+)\.(\d+)\.(\d+)/);
  return match?.slice(1).map(Number);
}

function isNewEnough(v) {
  for (let i = 0; i < 3; i++) if (v[i] !== MIN_VERSION[i]) return v[i] > MIN_VERSION[i];
  return true;
}

/** The Debian mirror this machine uses, from its own apt sources. */
function debianMirror() {
  const out = runQuiet("apt-get", [
    "indextargets",
    "--format",
    "$(REPO_URI) $(ORIGIN) $(COMPONENT)",
    "Created-By: Packages",
  ]);
  for (const line of out.split("\n")) {
    const [uri, origin, component] = line.split(" ");
    if (origin === "Debian" && component === "main" && !uri.includes("security")) return uri;
  }
  throw new SetupError("apt has no Debian mirror configured; see /etc/apt/sources.list.d");
}

/** Downloads Debian 13 packages through a private apt configuration; nothing of the system's own changes. */
function downloadTrixie(names, folder) {
  const apt = path.join(HOME, "apt");
  fs.mkdirSync(path.join(apt, "lists/partial"), { recursive: true });
  fs.mkdirSync(path.join(apt, "archives/partial"), { recursive: true });
  fs.mkdirSync(folder, { recursive: true });
  const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
  fs.writeFileSync(
    path.join(apt, "sources.list"),
    `deb [signed-by=${keyring}] ${debianMirror()} trixie main\n`,
  );
  fs.writeFileSync(
    path.join(apt, "apt.conf"),
    [
      `Dir::Etc::sourcelist "${apt}/sources.list";`,
      'Dir::Etc::sourceparts "/dev/null";',
      `Dir::State::Lists "${apt}/lists";`,
      `Dir::Cache "${apt}";`,
      'APT::Sandbox::User "root";',
      'Acquire::Languages "none";',
      "",
    ].join("\n"),
  );
  const env = { ...process.env, APT_CONFIG: path.join(apt, "apt.conf") };
  runQuiet("apt-get", ["update"], { env });
  runQuiet("apt-get", ["download", ...names], { env, cwd: folder });
}

function installOnDebian12() {
  say("Emscripten is not installed; unpacking Debian 13's into the cache (once, about two minutes)");
  fs.rmSync(HOME, { recursive: true, force: true });
  fs.mkdirSync(HOME, { recursive: true });
  // The keyring of an early Debian 12 image does not know Debian 13's key.
  aptUpdate();
  aptInstall(["debian-archive-keyring"]);

  const debs = path.join(HOME, "debs");
  // node-acorn is unpacked, too: installing it would bring Debian's own Node with it, over the user's.
  downloadTrixie(["emscripten", "binaryen", "node-acorn", "libc6", "libstdc++6", "libgcc-s1"], debs);
  const deb = (name) =>
    path.join(
      debs,
      fs.readdirSync(debs).find((f) => f.startsWith(`${name}_`)),
    );

  const unpacked = path.join(HOME, "unpacked");
  fs.mkdirSync(unpacked);
  const excludes = LEAVE_OUT.map((p) => `--exclude='${p}'`).join(" ");
  runQuiet("sh", [
    "-c",
    `dpkg-deb --fsys-tarfile '${deb("emscripten")}' | tar -x -C '${unpacked}' ${excludes}`,
  ]);
  const emscripten = path.join(HOME, "emscripten");
  fs.renameSync(path.join(unpacked, "usr/share/emscripten"), emscripten);

  const libs = path.join(HOME, "libs");
  for (const name of ["libc6", "libstdc++6", "libgcc-s1", "binaryen", "node-acorn"])
    runQuiet("dpkg", ["-x", deb(name), libs]);
  const triplet = fs.readdirSync(path.join(libs, "usr/lib")).find((f) => f.endsWith("-linux-gnu"));
  const libDir = path.join(libs, "usr/lib", triplet);
  const loader = path.join(
    libDir,
    fs.readdirSync(libDir).find((f) => f.startsWith("ld-linux")),
  );
  const bin = path.join(HOME, "binaryen/bin");
  fs.mkdirSync(bin, { recursive: true });
  for (const tool of fs.readdirSync(path.join(libs, "usr/bin")).filter((f) => f.startsWith("wasm"))) {
    const script = `#!/bin/sh\nexec "${loader}" --library-path "${libDir}" "${libs}/usr/bin/${tool}" "$@"\n`;
    fs.writeFileSync(path.join(bin, tool), script, { mode: 0o755 });
  }

  fs.mkdirSync(path.dirname(ACORN), { recursive: true });
  fs.symlinkSync(path.join(libs, "usr/share/nodejs/acorn"), ACORN);
  fs.writeFileSync(
    path.join(HOME, "config"),
    [
      "LLVM_ROOT = '/usr/lib/llvm-19/bin'",
      `BINARYEN_ROOT = '${HOME}/binaryen'`,
      "FROZEN_CACHE = False",
      `CACHE = '${emscripten}/cache'`,
      "",
    ].join("\n"),
  );
  fs.rmSync(debs, { recursive: true });
  fs.rmSync(unpacked, { recursive: true });
  fs.writeFileSync(READY, `${new Date().toISOString()}\n`);
}

/** Returns { emxx, env }: the compiler and the environment to run it in. Installs it where that is possible. */
export async function ensureEmscripten() {
  const found = which("em++");
  if (found) {
    const v = version(found, process.env);
    if (v && isNewEnough(v)) return { emxx: found, env: process.env };
    say(`ignoring ${found}: version ${v?.join(".") ?? "unknown"} is older than ${MIN_VERSION.join(".")}`);
  }
  const { name } = distribution();
  if (!canInstall() && !fs.existsSync(READY))
    throw new SetupError(
      `building the WASM module needs Emscripten ${MIN_VERSION.join(".")} or newer; none was found on ${name}.\n` +
        "  Debian 12: run this command as root once.   Debian 13: apt-get install emscripten\n" +
        "  macOS: brew install emscripten   elsewhere: https://emscripten.org/docs/getting_started/downloads.html",
    );
  if (canInstall())
    await withLock(path.join(CACHE, "lock"), () => {
      ensurePackages(["clang-19", "lld-19", "llvm-19", "python3"], "compiling the WASM module");
      if (!fs.existsSync(READY) || !fs.existsSync(ACORN)) installOnDebian12();
    });
  const env = {
    ...process.env,
    EM_CONFIG: path.join(HOME, "config"),
    EM_NODE_JS: process.execPath,
    // Emscripten's scripts want the system's python3, not one from a version manager.
    EMSDK_PYTHON: "/usr/bin/python3",
  };
  return { emxx: path.join(HOME, "emscripten/em++"), env };
}
