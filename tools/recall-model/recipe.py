"""The one command: `python recipe.py --config cpu --out DIR` trains, evaluates and writes the GGUF files.

DIR gets tokenizer.json, checkpoint.pt, log.jsonl, scores.json and recall-{f16,q8_0,q4_0}.gguf. A run that was stopped goes on
where it was.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import torch

from chats import Chats
from configs import CONFIGS
from export_gguf import VARIANTS, read_checkpoint, write_gguf
from grow import grow
from recall_train_process import answers_right
from tokenizer import load_tokenizer

NAME = "inlay-recall"

#: Another one than that of the evaluations during training.
FINAL_SEED = 2_000_003

#: Tokens of generated text per length for the scores.
SCORED_TOKENS = {"smoke": 8_000, "cpu": 40_000, "gpu": 1_000_000}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", choices=CONFIGS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, help="how long to train, instead of the configuration's tokens")
    parser.add_argument("--context", type=int, help="the context length to write into the files, if shorter")
    parser.add_argument("--no-training", action="store_true", help="only evaluate and write what is there")
    args = parser.parse_args()
    config = CONFIGS[args.config]
    if not args.no_training:
        train(args.config, args.out, args.minutes)
    tokenizer = load_tokenizer(args.out)
    model = read_checkpoint(args.out, config.shape(tokenizer.get_vocab_size()))
    context = args.context or config.context
    files = {}
    for variant in VARIANTS:
        file = args.out / f"{NAME}-{variant}.gguf"
        write_gguf(model, tokenizer, file, variant, context, NAME)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    scores = score(model, tokenizer, context, SCORED_TOKENS[args.config])
    result = {"config": args.config, "parameters": sum(p.numel() for p in model.parameters()), "scores": scores}
    (args.out / "scores.json").write_text(json.dumps({**result, "files": files}, indent=2) + "\n")
    print(json.dumps(result))


def train(name: str, out: Path, minutes: float | None = None):
    """Trains, or goes on training. A configuration that is grown from another trains that one first, in out/first."""
    base = CONFIGS[name].grown_from
    if base and not (out / "checkpoint.pt").exists():
        train(base, out / "first")
        tokenizer = load_tokenizer(out)
        first = read_checkpoint(out / "first", CONFIGS[base].shape(tokenizer.get_vocab_size()))
        torch.manual_seed(CONFIGS[name].seed)
        grown = grow(first, Chats(tokenizer, CONFIGS[name].seed, held_out=False))
        state = {"model": grown.state_dict(), "tokens": 0, "step": 0, "seconds": 0.0}
        torch.save(state, out / "checkpoint.pt")
    process = Path(__file__).resolve().parent / "recall_train_process.py"
    arguments = ["--config", name, "--out", str(out)] + (["--minutes", str(minutes)] if minutes else [])
    subprocess.run([sys.executable, str(process), *arguments], check=True)


@torch.no_grad()
def score(model, tokenizer, context: int, tokens: int) -> dict:
    """Right answers by length and task, in f32, on names never trained on."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    lengths = [length for length in (256, 512, 1024, 2048, 4096, 8192) if length <= context]
    return {
        length: answers_right(model, tokenizer, length, max(1, tokens // length), device, FINAL_SEED)
        for length in lengths
    }


if __name__ == "__main__":
    main()
