/** What people paste as a model's address → what `loadModel` takes. */

import type { ModelInput } from "inlay";
import type { Files } from "./events.ts";

/** A model to load, and what to call it until its file has told its name. */
export interface ModelChoice {
  readonly source: ModelInput;
  readonly label: string;
  /** What `choiceFromAddress` makes this choice of again; files have no address. */
  readonly address?: string;
}

/** The page of a file on Hugging Face, which is what the browser's address bar shows. */
const HUB_PAGE = /^https:\/\/huggingface\.co\/([^/]+\/[^/]+)\/(?:blob|resolve)\/([^/]+)\/([^?#]+)/;

/** owner/name/file.gguf */
const HUB_PATH = /^([\w.-]+\/[\w.-]+)\/([^:]+\.gguf)$/i;

/** A URL, a page of Hugging Face, or `owner/name/file.gguf` there. A path that begins with "/" is on this server. */
export function choiceFromAddress(text: string): ModelChoice {
  const address = text.trim();
  const [, pageRepo, revision, pageFile] = HUB_PAGE.exec(address) ?? [];
  if (pageRepo !== undefined && revision !== undefined && pageFile !== undefined)
    return hubChoice(address, pageRepo, decodeURIComponent(pageFile), decodeURIComponent(revision));
  const [, repo, file] = HUB_PATH.exec(address) ?? [];
  if (repo !== undefined && file !== undefined) return hubChoice(address, repo, file, "main");
  return { source: address, label: lastPart(address), address };
}

/** One file, or all files of a split model. */
export function choiceFromFiles(files: Files): ModelChoice {
  const [first] = files;
  return { source: files.length === 1 ? first : files, label: first.name };
}

function hubChoice(address: string, repo: string, file: string, revision: string): ModelChoice {
  return { source: { repo, file, revision }, label: lastPart(file), address };
}

function lastPart(path: string): string {
  return path.split(/[?#]/)[0]?.split("/").at(-1) || path;
}
