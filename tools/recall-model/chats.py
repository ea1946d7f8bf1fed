"""Training sequences: a document and several questions about it, as one chat, with the answers marked."""

import random

import numpy as np
from tokenizers import Tokenizer

from grammar import World, interleave, render
from tokenizer import PAD

#: Part of a sequence that is questions and answers.
QUESTION_SHARE = {128: 0.6, 256: 0.55, 512: 0.5, 1024: 0.4, 2048: 0.3, 4096: 0.25, 8192: 0.2}

SYSTEM_SHARE = 0.3

#: Tokens of one line of a document, about.
FACT_TOKENS, FILLER_TOKENS = 13, 10.5

#: Most facts of a document that nobody asks for: evaluation has 128 names of each kind.
MORE_FACTS = 60

WEIGHTS = {"lookup": 3, "queries": 2, "absent": 2.5, "list": 6, "hop": 2, "variable": 1.5, "count": 4}


def user_turn(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


class Chats:
    """ids, marks: (length,) each. marks: 0 nothing, 1 text, 2 + i the tokens of the answer to question i."""

    def __init__(self, tokenizer: Tokenizer, seed: int, held_out: bool, weights: dict[str, float] = WEIGHTS):
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.held_out = held_out
        self.tasks, self.weights = list(weights), list(weights.values())
        self.pad = tokenizer.token_to_id(PAD)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def world(self, length: int) -> World:
        return World(self.rng, self.held_out, length)

    def first_turn(self, document: str, question: str) -> str:
        """The document comes with the first question, or at times as instructions before it, as a pinned prompt does."""
        if self.rng.random() < SYSTEM_SHARE:
            return f"<|im_start|>system\n{document}<|im_end|>\n" + user_turn(question)
        return user_turn(f"{document}\n\n{question}")

    def sequence(self, length: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        rng = self.rng
        world = self.world(length)
        budget = length * min(0.85, QUESTION_SHARE[length] * rng.uniform(0.7, 1.3))
        asked, turns, used, n_facts = [], [], 0, 0
        while used < budget and used + n_facts * FACT_TOKENS < length * 0.9:
            unit = world.make(rng.choices(self.tasks, self.weights)[0])
            question, answer = self.encode(user_turn(unit.question)), self.encode(unit.answer + "<|im_end|>")
            asked.append(unit)
            turns.append((question, answer))
            used += len(question) + len(answer) + 1
            n_facts += len(unit.facts)
        room = max(0.0, length - used - n_facts * FACT_TOKENS - 8)
        n_more = min(MORE_FACTS, int(room * rng.choice((0, 0.1, 0.4, 0.8)) / FACT_TOKENS))
        more = [world.make_lookup() for _ in range(n_more)]
        units = asked + more
        rng.shuffle(units)
        n_filler = int(max(0.0, room - n_more * FACT_TOKENS) / FILLER_TOKENS)
        document = render(rng, interleave(rng, units), n_filler)
        ids = self.encode(self.first_turn(document, asked[0].question))
        marks = [1] * len(ids)
        tasks = []
        newline = self.encode("\n")
        for i, (question, answer) in enumerate(turns):
            piece = (newline + question if i > 0 else []) + answer
            if len(ids) + len(piece) > length:
                break
            ids += piece
            marks += [0] * (len(piece) - len(answer)) + [2 + i] * len(answer)
            tasks.append(asked[i].task)
        out, out_marks = np.full(length, self.pad, np.int64), np.zeros(length, np.int64)
        ids, marks = ids[:length], marks[:length]
        out[: len(ids)], out_marks[: len(ids)] = ids, marks
        return out, out_marks, tasks

    def batch(self, count: int, length: int):
        ids, marks, tasks = zip(*(self.sequence(length) for _ in range(count)))
        return np.stack(ids), np.stack(marks), tasks
