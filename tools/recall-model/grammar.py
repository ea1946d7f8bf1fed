"""Documents with facts scattered over filler, and questions about them, from src/eval/recall-grammar.json.

The TypeScript side (src/eval/needle-cases.ts) reads the same file, so the two speak the same language; they
share no random numbers. A *unit* is what one question is about: its sentences go somewhere into the document.
"""

import json
import random
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

GRAMMAR_FILE = Path(__file__).resolve().parents[2] / "src/eval/recall-grammar.json"
GRAMMAR = json.loads(GRAMMAR_FILE.read_text(encoding="utf-8"))
TASKS = GRAMMAR["tasks"]
MODULUS = GRAMMAR["heldOut"]["modulus"]

TASK_NAMES = ("lookup", "queries", "absent", "list", "hop", "variable", "count")


@lru_cache
def values_of(kind: str, remainder: int) -> list[str]:
    """All names or numbers of a kind that leave this remainder. Those of remainder 0 are kept for evaluation."""
    if kind == "numbers":
        bounds = GRAMMAR["numbers"]
        numbers = range(bounds["least"], bounds["most"] + 1)
        return [str(n) for n in numbers if (n // 10 + n % 10) % MODULUS == remainder]
    onsets, endings = GRAMMAR[kind]["onsets"], GRAMMAR[kind]["endings"]
    return [
        onset + ending
        for i, onset in enumerate(onsets)
        for j, ending in enumerate(endings)
        if (i + j) % MODULUS == remainder
    ]


def names_of_few_parts(rng: random.Random, kind: str, n_parts: int) -> list[str]:
    """Names of `n_parts` onsets and as many endings, so that most share a part with others; none kept for evaluation."""
    onsets = rng.sample(list(enumerate(GRAMMAR[kind]["onsets"])), n_parts)
    endings = rng.sample(list(enumerate(GRAMMAR[kind]["endings"])), n_parts)
    return [onset + ending for i, onset in onsets for j, ending in endings if (i + j) % MODULUS != 0]


@dataclass
class Unit:
    task: str
    facts: list[str] = field(default_factory=list)
    question: str = ""
    answer: str = ""


#: Tokens of text for which there shall be one name at least.
TOKENS_PER_NAME = 6


#: Part of the worlds of training in which lists have two or four values and events happen once or four times, which is easier
#: to tell apart.
COARSE = 0.35


class World:
    """Units that do not contradict each other, all from one side of the split.

    What is trained on is as easily confused as what is kept for evaluation: half of the worlds take names and numbers of one
    remainder, as evaluation does, the others names of few parts, the fewer the shorter the text.
    """

    def __init__(self, rng: random.Random, held_out: bool, length: int):
        self.rng = rng
        remainder = 0 if held_out else rng.randrange(1, MODULUS)
        is_coarse = not held_out and rng.random() < COARSE
        self.counts = (1, 4) if is_coarse else (1, 2, 3, 4)
        self.list_lengths = (2, 4) if is_coarse else (2, 3)
        self.pools = {kind: values_of(kind, remainder) for kind in ("places", "people", "numbers")}
        if not held_out and rng.random() < 0.5:
            least = max(8, round((length / TOKENS_PER_NAME) ** 0.5))
            for kind in ("places", "people"):
                self.pools[kind] = names_of_few_parts(rng, kind, rng.randrange(least, max(least + 1, 32)))
        self.used: set[str] = set()  # names that stand for one thing only
        self.pairs: set[tuple[str, str]] = set()  # (attribute, key) that are taken
        self.keys: dict[str, list[str]] = {"places": [], "people": []}

    def fresh(self, kind: str) -> str:
        """A name or number not used before in this world."""
        free = [value for value in self.pools[kind] if value not in self.used]
        if not free:
            raise OverflowError(f"a text with so many facts needs more {kind} than the grammar has")
        value = self.rng.choice(free)
        self.used.add(value)
        return value

    def key(self, kind: str, attr: str) -> str:
        """A key that has no such attribute yet; one time in four one that the text knows already."""
        known = [key for key in self.keys[kind][-40:] if (attr, key) not in self.pairs]
        key = self.rng.choice(known) if known and self.rng.random() < 0.25 else self.fresh(kind)
        self.pairs.add((attr, key))
        self.keys[kind].append(key)
        return key

    def make(self, task: str) -> Unit:
        return getattr(self, f"make_{task}")()

    def make_lookup(self) -> Unit:
        a = self.rng.choice(GRAMMAR["attributes"])
        values = {"attr": a["name"], "key": self.key(a["of"], a["name"]), "value": self.fresh(a["value"])}
        return self.unit("lookup", [TASKS["lookup"]["fact"].format(**values)], **values)

    def make_queries(self) -> Unit:
        units = [self.make_lookup() for _ in range(self.rng.choice((2, 2, 3)))]
        join = TASKS["queries"]["join"]
        facts = [fact for unit in units for fact in unit.facts]
        self.rng.shuffle(facts)
        return Unit("queries", facts, join.join(u.question for u in units), join.join(u.answer for u in units))

    def make_absent(self) -> Unit:
        a = self.rng.choice(GRAMMAR["attributes"])
        values = {"attr": a["name"], "key": self.key(a["of"], a["name"])}
        question = self.rng.choice(TASKS["lookup"]["question"]).format(**values)
        return Unit("absent", [], question, TASKS["absent"]["answer"].format(**values))

    def make_list(self) -> Unit:
        kind = self.rng.choice(GRAMMAR["lists"])
        key = self.key(kind["of"], kind["one"])
        found = [self.fresh(kind["value"]) for _ in range(self.rng.choice(self.list_lengths))]
        task = TASKS["list"]
        facts = [task["fact"].format(one=kind["one"], key=key, value=value) for value in found]
        joined = task["comma"].join(found[:-1]) + task["and"] + found[-1]
        return self.unit("list", facts, many=kind["many"], key=key, values=joined)

    def make_hop(self) -> Unit:
        first = self.rng.choice([a for a in GRAMMAR["attributes"] if a["value"] == "people" and a["of"] == "places"])
        second = self.rng.choice([a for a in GRAMMAR["attributes"] if a["of"] == "people"])
        key, middle = self.key("places", first["name"]), self.fresh("people")
        self.pairs.add((second["name"], middle))
        values = {"attr": first["name"], "attr2": second["name"], "key": key, "middle": middle}
        values["value"] = self.fresh(second["value"])
        fact = TASKS["lookup"]["fact"]
        facts = [
            fact.format(attr=first["name"], key=key, value=middle),
            fact.format(attr=second["name"], key=middle, value=values["value"]),
        ]
        self.rng.shuffle(facts)
        return self.unit("hop", facts, **values)

    def make_variable(self) -> Unit:
        chain = [self.fresh("people") for _ in range(self.rng.choice((2, 3)))] + [self.fresh("numbers")]
        task = TASKS["variable"]
        links = list(zip(chain, chain[1:]))
        facts = [task["fact"].format(key=key, value=value) for key, value in links]
        answer = " ".join(task["link"].format(key=key, value=value) for key, value in links)
        self.rng.shuffle(facts)
        question = self.rng.choice(task["question"]).format(key=chain[0])
        return Unit("variable", facts, question, answer)

    def make_count(self) -> Unit:
        task = TASKS["count"]
        key, n = self.key("places", "bell"), self.rng.choice(self.counts)
        return self.unit("count", [task["fact"].format(key=key)] * n, key=key, count=task["numerals"][n])

    def unit(self, task: str, facts: list[str], **values: str) -> Unit:
        question = self.rng.choice(TASKS[task]["question"]).format(**values)
        return Unit(task, facts, question, TASKS[task]["answer"].format(**values))


def sentence_case(text: str) -> str:
    return text[0].upper() + text[1:]


def frame_fact(rng: random.Random, genre: dict, fact: str) -> str:
    return rng.choice(genre["frames"]).format(fact=fact, Fact=sentence_case(fact))


class _Words:
    """Fills every slot of a filler template with a word of its own."""

    def __init__(self, rng: random.Random):
        self.rng = rng

    def __getitem__(self, slot: str) -> str:
        return self.rng.choice(GRAMMAR["words"][slot])


def filler(rng: random.Random, genre: dict) -> str:
    return rng.choice(genre["filler"]).format_map(_Words(rng))


def render(rng: random.Random, facts: list[str], n_filler: int) -> str:
    """A document: sections of one genre each, the facts in the given order, at random places in the filler."""
    kinds = [None] * n_filler + [""] * len(facts)
    rng.shuffle(kinds)
    rest = iter(facts)
    lines, genre, left = [], {}, 0
    for kind in kinds:
        if left == 0:
            genre, left = rng.choice(GRAMMAR["genres"]), rng.randrange(4, 12)
            lines.append(genre["opening"] + ":")
        left -= 1
        lines.append(filler(rng, genre) if kind is None else frame_fact(rng, genre, next(rest)))
    return "\n".join(lines)


def interleave(rng: random.Random, units: list[Unit]) -> list[str]:
    """The facts of all units, mixed; those of one unit keep their order."""
    slots = [i for i, unit in enumerate(units) for _ in unit.facts]
    rng.shuffle(slots)
    waiting = [iter(unit.facts) for unit in units]
    return [next(waiting[i]) for i in slots]
