"""What PyTorch answers with the weights of the f16 file: `python greedy.py --config cpu --out DIR --count 3`.

Prints a JSON list of { prompt, ids, smallestGap }: the text with its chat markup, the generated ids, and the smallest gap between
the best and the second logit, which tells how easily rounding could turn a decision.
"""

import argparse
import json
from pathlib import Path

import torch

from chats import Chats, user_turn
from configs import CONFIGS
from export_gguf import read_checkpoint
from grammar import interleave, render
from tokenizer import END, load_tokenizer

SEED = 3_000_003
FILLER_LINES = 8
MAX_TOKENS = 24


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", choices=CONFIGS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=3)
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.out)
    model = read_checkpoint(args.out, CONFIGS[args.config].shape(tokenizer.get_vocab_size()))
    for p in model.parameters():
        if p.dim() == 2:
            p.copy_(p.half().float())
    end = tokenizer.token_to_id(END)
    answers = []
    for i in range(args.count):
        prompt = prompt_of(tokenizer, SEED + i)
        ids, generated, gap = tokenizer.encode(prompt).ids, [], float("inf")
        while len(generated) < MAX_TOKENS and end not in generated:
            logits = model.logits(model.hidden(torch.tensor([ids + generated]))[0, -1])
            best, second = logits.topk(2).values.tolist()
            gap = min(gap, best - second)
            generated.append(int(logits.argmax()))
        answers.append({"prompt": prompt, "ids": generated, "smallestGap": gap})
    print(json.dumps(answers))


def prompt_of(tokenizer, seed: int) -> str:
    chats = Chats(tokenizer, seed, held_out=True)
    world = chats.world(256)
    units = [world.make_lookup() for _ in range(4)]
    return user_turn(render(chats.rng, interleave(chats.rng, units), FILLER_LINES) + "\n\n" + units[0].question)


if __name__ == "__main__":
    main()
