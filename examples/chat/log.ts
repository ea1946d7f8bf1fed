/** What was said so far, on the page: messages of a chat, or one running story. */

import { create, element } from "./elements.ts";
import type { Talk } from "./talk.ts";

const box = element("log", HTMLDivElement);

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

/** Empties the log. */
export function clearLog(kind: Talk["kind"]): void {
  box.className = kind;
  box.replaceChildren();
}

/** Shows what was typed and where its answer will appear. */
export function addTurn(kind: Talk["kind"], typed: string): Turn {
  box.ariaBusy = "true";
  const turn = kind === "chat" ? addMessages(typed) : addPassage(typed);
  scrollToEnd();
  return turn;
}

function addMessages(typed: string): Turn {
  const question = message("yours", "You", typed);
  const answer = message("models", "Model", "");
  const body = create("p", "text");
  answer.append(body);
  box.append(question, answer);
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
      box.ariaBusy = "false";
    },
    remove() {
      question.remove();
      answer.remove();
      box.ariaBusy = "false";
    },
  };
}

function message(className: string, author: string, text: string): HTMLElement {
  const made = create("article", `message ${className}`);
  made.append(create("h3", "", author));
  if (text !== "") made.append(create("p", "text", text));
  return made;
}

function addPassage(typed: string): Turn {
  const question = create("span", "yours", typed);
  const answer = create("span", "models");
  box.append(question, answer);
  return {
    append: (piece) => follow(() => answer.append(piece)),
    end() {
      answer.normalize();
      box.ariaBusy = "false";
    },
    remove() {
      question.remove();
      answer.remove();
      box.ariaBusy = "false";
    },
  };
}

let isFollowing = true;
let isScrolling = false;

box.addEventListener("scroll", () => {
  isFollowing = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_PX;
});

/** Changes the log, and keeps its end in view unless the reader scrolled away; once per frame, however many tokens come. */
function follow(change: () => void): void {
  change();
  if (!isFollowing || isScrolling) return;
  isScrolling = true;
  requestAnimationFrame(() => {
    isScrolling = false;
    scrollToEnd();
  });
}

function scrollToEnd(): void {
  box.scrollTop = box.scrollHeight;
}
