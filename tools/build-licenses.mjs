// The licences of what the bundles contain: most ask that their text comes along.

import fs from "node:fs";
import path from "node:path";

/** The folders of the npm packages that files belong to. */
function packageFolders(files) {
  const folders = new Set();
  for (const file of files) {
    const match = file.match(/^.*\/node_modules\/(?:@[^/]+\/)?[^/]+/);
    if (match) folders.add(match[0]);
  }
  return [...folders].sort();
}

/** One text with the name, version and licence of every package that has files among the given ones. */
export function licenseTexts(files) {
  return packageFolders(files)
    .map((folder) => {
      const { name, version, license } = JSON.parse(
        fs.readFileSync(path.join(folder, "package.json"), "utf8"),
      );
      const file = fs.readdirSync(folder).find((entry) => /^(licen[cs]e|copying)(\.|$)/i.test(entry));
      const text = file ? fs.readFileSync(path.join(folder, file), "utf8").trim() : "";
      return `${name} ${version} (${license})\n\n${text}\n`;
    })
    .join(`\n${"-".repeat(80)}\n\n`);
}
