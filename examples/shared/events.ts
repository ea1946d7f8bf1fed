/** What people do on the page → calls. Elements are named by their id. */

import { element } from "./elements.ts";

/** One file or more. */
export type Files = readonly [File, ...File[]];

export function onClick(id: string, act: () => Promise<void>): void {
  element(id, HTMLButtonElement).addEventListener("click", () => void act());
}

export function onSubmit(id: string, act: () => Promise<void>): void {
  element(id, HTMLFormElement).addEventListener("submit", (event) => {
    event.preventDefault();
    void act();
  });
}

/** Files chosen in a file input. */
export function onFiles(id: string, act: (files: Files) => Promise<void>): void {
  const input = element(id, HTMLInputElement);
  input.addEventListener("change", () => {
    const [first, ...others] = input.files ?? [];
    input.value = ""; // so that the same file can be chosen again
    if (first) void act([first, ...others]);
  });
}

/** Files dropped anywhere on the page, which has the class "dropping" while they are above it. */
export function onDrop(act: (files: Files) => Promise<void>): void {
  const { body } = document;
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    body.classList.toggle("dropping", event.dataTransfer?.types.includes("Files"));
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => {
    if (relatedTarget === null) body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    body.classList.remove("dropping");
    const [first, ...others] = event.dataTransfer?.files ?? [];
    if (first) void act([first, ...others]);
  });
}

/** Enter in a text area; with Shift it begins a new line. */
export function onEnter(id: string, act: () => Promise<void>): void {
  element(id, HTMLTextAreaElement).addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    void act();
  });
}

/** Escape anywhere on the page. */
export function onEscape(act: () => Promise<void>): void {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") void act();
  });
}
