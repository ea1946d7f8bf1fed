"""A byte-level BPE whose merges are chosen so that the language of the grammar has steady tokens.

Every word of the grammar is one token, every name two (onset and ending), a number " 4719" is " 47" and "19". The merges
are learned, as BPE does, from the counts of these units; nothing else is merged, so any other text comes out in bytes and
short pieces. Pre-tokenizer: GPT-2's, `gpt-2` in GGUF.
"""

import json
import re
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from grammar import GRAMMAR

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL = (PAD, START, END)

EXTRA = "user assistant system Dear friend Question Answer zero one two three four five text"

GPT2_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _strings(node) -> list[str]:
    if isinstance(node, str):
        return [node]
    if isinstance(node, dict):
        return [s for value in node.values() for s in _strings(value)]
    return [s for value in node for s in _strings(value)] if isinstance(node, list) else []


def _units() -> Counter:
    """Pieces that shall be one token each, in byte-level letters (Ġ for a space), with a weight."""
    prose = _strings([GRAMMAR[k] for k in ("attributes", "lists", "tasks", "genres", "words")]) + [EXTRA]
    prose = [re.sub(r"\{\w+\}", " ", text) for text in prose]
    units: Counter = Counter()
    for text in prose:
        # A word may stand at the beginning of a line and after a space.
        for variant in (text, " " + text, text[:1].upper() + text[1:], " " + text[:1].upper() + text[1:]):
            for word, _ in GPT2_WORDS.pre_tokenize_str(variant):
                units[word] += 1
    for kind in ("places", "people"):
        for ending in GRAMMAR[kind]["endings"]:
            units[ending] += 3
    return units


def _prefix_merges() -> list[tuple[str, str]]:
    """Numbers and onsets of names grow letter by letter from the space on, so that nothing else can cut into them."""
    pairs = [f"{n:02}" for n in range(100)]
    onsets = [onset for kind in ("places", "people") for onset in GRAMMAR[kind]["onsets"]]
    merges = [("Ġ" + text[:i], text[i]) for text in pairs + onsets for i in range(len(text))]
    return sorted(dict.fromkeys(merges), key=lambda pair: len(pair[0])) + [(a, b) for a, b in pairs]


def _apply(merge: tuple[str, str], symbols: list[str]) -> None:
    i = 0
    while i + 1 < len(symbols):
        if (symbols[i], symbols[i + 1]) == merge:
            symbols[i : i + 2] = ["".join(merge)]
        i += 1


def _learn_merges(units: Counter, merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Plain BPE on the units after `merges`, until each is one token. Ties go to the pair that sorts first."""
    words = [(list(unit), count) for unit, count in sorted(units.items())]
    for merge in merges:
        for symbols, _ in words:
            _apply(merge, symbols)
    merges = [*merges]
    while True:
        pairs: Counter = Counter()
        for symbols, count in words:
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] += count
        if not pairs:
            return merges
        best = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(best)
        for symbols, _ in words:
            _apply(best, symbols)


def build_tokenizer() -> Tokenizer:
    merges = _learn_merges(_units(), _prefix_merges())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = list(dict.fromkeys([*SPECIAL, *alphabet, *("".join(m) for m in merges)]))
    while len(tokens) % 32:
        tokens.append(f"<|unused{len(tokens)}|>")
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = GPT2_WORDS
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a run: made once, then read from its folder."""
    file = folder / "tokenizer.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        build_tokenizer().save(str(file))
    return Tokenizer.from_file(str(file))


def merges_of(tokenizer: Tokenizer) -> list[str]:
    """Merges as GGUF wants them: "left right"."""
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
