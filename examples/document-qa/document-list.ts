/** The list of pinned documents: what each takes, how old it is, and buttons to open, save and delete it. */

import type { PinnedInfo } from "inlay";
import { create, element } from "../shared/elements.ts";
import { bytesText, tokensText } from "../shared/format.ts";

const list = element("document-list", HTMLUListElement);
const none = element("no-documents", HTMLParagraphElement);

/** What the buttons of a document do. */
export interface DocumentActions {
  open(id: string): void;
  save(id: string): void;
  remove(id: string): void;
}

export function showDocuments(
  infos: readonly PinnedInfo[],
  openId: string | undefined,
  act: DocumentActions,
): void {
  none.hidden = infos.length > 0;
  list.replaceChildren(...infos.map((info) => item(info, info.id === openId, act)));
}

function item(info: PinnedInfo, isOpen: boolean, act: DocumentActions): HTMLLIElement {
  const open = button("open", info.id, info.id, () => act.open(info.id));
  if (isOpen) open.setAttribute("aria-current", "true");
  const remove = button("", "Delete", `Delete ${info.id}`, () => act.remove(info.id));
  const save = button("", "Save", `Save ${info.id} as a file`, () => act.save(info.id));
  const made = create("li");
  made.append(open, remove, create("p", "hint", aboutText(info)), save);
  return made;
}

function button(className: string, text: string, name: string, act: () => void): HTMLButtonElement {
  const made = create("button", className, text);
  made.type = "button";
  made.ariaLabel = name;
  made.addEventListener("click", act);
  return made;
}

/** "1,204 tokens · 3.1 MB · 3.9 bits · 2 hours ago" */
export function aboutText({ tokens, byteLength, bits, createdAt }: PinnedInfo): string {
  return [
    tokensText(tokens),
    bytesText(byteLength),
    `${Number(bits.toFixed(1))} bits`,
    ageText(Date.now() - createdAt),
  ].join(" · ");
}

const UNITS = [
  ["day", 86_400_000],
  ["hour", 3_600_000],
  ["minute", 60_000],
] as const;

/** "3 hours ago", "just now". */
export function ageText(milliseconds: number): string {
  const [unit, length] = UNITS.find(([, ms]) => milliseconds >= ms) ?? [];
  if (unit === undefined || length === undefined) return "just now";
  const format = new Intl.RelativeTimeFormat("en");
  return format.format(-Math.floor(milliseconds / length), unit);
}
