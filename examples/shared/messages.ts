/** The log of a talk: questions and answers as messages. Its end stays in view while an answer comes. */

import { create, element } from "./elements.ts";

export const log = element("log", HTMLDivElement);

/** How near to its end the log must be scrolled for it to follow the answer. */
const NEAR_PX = 48;

/** One question and its answer. */
export interface Turn {
  /** Adds to the answer. */
  append(piece: string): void;
  /** The answer is over; `note` says how. */
  end(note: string): void;
  /** Takes the turn off the page: nothing was answered. */
  remove(): void;
}

/** Shows what was asked and where the answer of `answerer` will appear. */
export function addMessages(asked: string, answerer: string): Turn {
  const question = message("yours", "You", asked);
  const answer = message("models", answerer, "");
  const body = create("p", "text");
  answer.append(body);
  log.append(question, answer);
  log.ariaBusy = "true";
  scrollToEnd();
  let hasBegun = false;
  return {
    append(piece) {
      // Many models begin with a space or a line break, which means nothing here.
      const shown = hasBegun ? piece : piece.trimStart();
      hasBegun ||= shown !== "";
      follow(() => body.append(shown));
    },
    end(note) {
      body.normalize();
      follow(() => answer.append(create("p", "note", note)));
      log.ariaBusy = "false";
    },
    remove() {
      question.remove();
      answer.remove();
      log.ariaBusy = "false";
    },
  };
}

function message(className: string, author: string, text: string): HTMLElement {
  const made = create("article", `message ${className}`);
  made.append(create("h3", "", author));
  if (text !== "") made.append(create("p", "text", text));
  return made;
}

let isFollowing = true;
let isScrolling = false;

log.addEventListener("scroll", () => {
  isFollowing = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_PX;
});

/** Changes the log, and keeps its end in view unless the reader scrolled away; once per frame, however many tokens come. */
export function follow(change: () => void): void {
  change();
  if (!isFollowing || isScrolling) return;
  isScrolling = true;
  requestAnimationFrame(() => {
    isScrolling = false;
    scrollToEnd();
  });
}

export function scrollToEnd(): void {
  log.scrollTop = log.scrollHeight;
}
