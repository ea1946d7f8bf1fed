/** What was said so far, on the page: messages of a chat, or one running story. */

import { create } from "../shared/elements.ts";
import { addMessages, follow, log, scrollToEnd, type Turn } from "../shared/messages.ts";
import type { Talk } from "./talk.ts";

/** Empties the log. */
export function clearLog(kind: Talk["kind"]): void {
  log.className = kind;
  log.replaceChildren();
}

/** Shows what was typed and where its answer will appear. */
export function addTurn(kind: Talk["kind"], typed: string): Turn {
  return kind === "chat" ? addMessages(typed, "Model") : addPassage(typed);
}

function addPassage(typed: string): Turn {
  const question = create("span", "yours", typed);
  const answer = create("span", "models");
  log.append(question, answer);
  log.ariaBusy = "true";
  scrollToEnd();
  return {
    append: (piece) => follow(() => answer.append(piece)),
    end() {
      answer.normalize();
      log.ariaBusy = "false";
    },
    remove() {
      question.remove();
      answer.remove();
      log.ariaBusy = "false";
    },
  };
}
