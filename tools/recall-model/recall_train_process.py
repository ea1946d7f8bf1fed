"""Trains the recall model: `python recall_train_process.py --config cpu --out DIR`. Stops and resumes at any time.

On a machine without a GPU it runs one process per core, each with its own part of a batch, gradients averaged over gloo:
on shared cores that loses less to waiting than one process with threads does.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from chats import WEIGHTS, Chats
from configs import CONFIGS, Config
from grammar import GRAMMAR
from model import Llama
from optimizer import Muon
from start_weights import set_start_weights
from tokenizer import load_tokenizer

EVALUATION_SEED = 1_000_003

#: In the loss, of a counted number and of what stands between listed values: they alone tell how many the text has.
DECISIVE_WEIGHT = 4.0


class Trainer:
    def __init__(self, config: Config, out: Path, rank: int, world: int, minutes: float | None = None):
        self.config, self.out, self.rank, self.world = config, out, rank, world
        self.minutes = minutes
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = load_tokenizer(out)
        torch.manual_seed(config.seed)
        self.model = Llama(config.shape(self.tokenizer.get_vocab_size()))
        set_start_weights(self.model)
        self.model.to(self.device)
        named = list(self.model.named_parameters())
        matrices = [p for name, p in named if p.dim() == 2 and name != "embed"]
        others = [p for name, p in named if p.dim() == 1 or name == "embed"]
        self.muon = Muon(matrices, config.matrix_lr, rank=rank, world=world)
        self.adam = torch.optim.AdamW(others, config.other_lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.tokens = self.step = 0
        self.seconds = 0.0
        self.checkpoint = out / "checkpoint.pt"
        if self.checkpoint.exists():
            self.load()
        words = [f"Ġ{word}" for word in GRAMMAR["tasks"]["count"]["numerals"]] + [",", "Ġand"]
        self.decisive = [self.tokenizer.token_to_id(word) for word in words]
        # Every start of the process draws new data.
        self.chats = Chats(self.tokenizer, config.seed + 97 * self.tokens + rank, held_out=False)

    def load(self):
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        if "muon" not in state:  # first weights from another run
            return
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.tokens, self.step, self.seconds = state["tokens"], state["step"], state["seconds"]

    def save(self):
        state = {"model": self.model.state_dict(), "muon": self.muon.state_dict(), "adam": self.adam.state_dict()}
        state |= {"tokens": self.tokens, "step": self.step, "seconds": self.seconds}
        new = self.checkpoint.with_suffix(".new")
        torch.save(state, new)
        new.replace(self.checkpoint)

    def progress(self) -> float:
        """The part of the training that is done, the same in all processes: of the tokens, or of the minutes given."""
        if self.minutes is None:
            return self.tokens / self.config.tokens
        seconds = torch.tensor([self.seconds], dtype=torch.float64)
        if self.world > 1:
            dist.broadcast(seconds, 0)
        return seconds.item() / (60 * self.minutes)

    def length(self, progress: float) -> int:
        """The length of the next batch: those of the stage in turn."""
        stage = next((s for s in self.config.stages if progress < s.until), self.config.stages[-1])
        return stage.lengths[self.step % len(stage.lengths)]

    def set_learning_rate(self, progress: float):
        config = self.config
        warm = min(1.0, (self.step + 1) / config.warmup_steps)
        factor = warm * max(0.02, min(1.0, (1 - progress) / config.decay_share))
        for optimizer, lr in ((self.muon, config.matrix_lr), (self.adam, config.other_lr)):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor

    def loss(self, ids: np.ndarray, marks: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean cross-entropy of answer tokens, plus a little of some of the text; and the part of answer tokens right."""
        targets, kind = ids[:, 1:], marks[:, 1:]
        weight = np.where(kind >= 2, 1.0, 0.0)
        weight[(kind >= 2) & np.isin(targets, self.decisive)] = DECISIVE_WEIGHT
        sampled = (kind == 1) & (self.noise.random(kind.shape) < 1 / 16)
        weight[sampled] = self.config.text_weight
        rows, cols = np.nonzero(weight)
        tensor = lambda a, **kw: torch.as_tensor(a, device=self.device, **kw)  # noqa: E731
        logits = self.model.logits(self.model.hidden(tensor(ids[:, :-1]), at=(tensor(rows), tensor(cols))))
        target, weights = tensor(targets[rows, cols]), tensor(weight[rows, cols], dtype=torch.float32)
        each = F.cross_entropy(logits, target, reduction="none")
        is_answer = weights >= 1
        right = (logits.argmax(-1) == target)[is_answer].float().mean()
        return (each * weights).sum() / is_answer.sum(), right

    def average_gradients(self):
        if self.world == 1:
            return
        grads = [p.grad for p in self.model.parameters()]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.world
        for g, part in zip(grads, flat.split([g.numel() for g in grads])):
            g.copy_(part.view_as(g))

    def train(self):
        config = self.config
        self.noise = np.random.default_rng(self.rank + self.tokens)
        last_save = last_eval = time.monotonic()
        sums, logged = [], time.monotonic()
        begin = time.monotonic()
        while (progress := self.progress()) < 1:
            length = self.length(progress)
            count = max(1, config.batch_tokens // (length * self.world))
            ids, marks, _ = self.chats.batch(count, length)
            self.set_learning_rate(progress)
            loss, right = self.loss(ids, marks)
            loss.backward()
            self.average_gradients()
            torch.nn.utils.clip_grad_norm_(self.adam.param_groups[0]["params"], 1.0)
            self.muon.step()
            self.adam.step()
            for p in self.model.parameters():
                p.grad = None
            self.step += 1
            self.tokens += count * length * self.world
            now = time.monotonic()
            self.seconds, begin = self.seconds + now - begin, now
            sums.append((loss.item(), right.item(), count * length * self.world))
            if self.rank != 0:
                continue
            if self.step % config.log_steps == 0:
                losses, rights, tokens = zip(*sums)
                now = time.monotonic()
                self.log(
                    step=self.step, tokens=self.tokens, length=length, loss=round(float(np.mean(losses)), 4),
                    answer_tokens=round(float(np.mean(rights)), 4), rate=round(sum(tokens) / (now - logged)),
                    minutes=round(self.seconds / 60, 1),
                )  # fmt: skip
                sums, logged = [], now
            if time.monotonic() - last_save > config.save_seconds:
                self.save()
                last_save = time.monotonic()
            if time.monotonic() - last_eval > config.eval_seconds:
                self.evaluate(length, count=max(2, 8192 // length))
                last_eval = time.monotonic()
        if self.rank == 0:
            self.save()
            self.evaluate(config.context, count=8)

    @torch.no_grad()
    def evaluate(self, length: int, count: int):
        scores = answers_right(self.model, self.tokenizer, length, count, self.device)
        self.log(step=self.step, held_out=length, scores={t: f"{r}/{n}" for t, (r, n) in scores.items()})

    def log(self, **values):
        line = json.dumps({"time": time.strftime("%H:%M:%S"), **values})
        print(line, flush=True)
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")


def answers_right(model, tokenizer, length: int, count: int, device, seed: int = EVALUATION_SEED) -> dict:
    """Answers that are right in every token, by task: what greedy decoding would get, found in one pass."""
    chats = Chats(tokenizer, seed + length, held_out=True, weights=dict.fromkeys(WEIGHTS, 1))
    scores = {task: [0, 0] for task in WEIGHTS}
    for _ in range(count):
        ids, marks, (tasks,) = chats.batch(1, length)
        is_answer = marks[0, 1:] >= 2
        hidden = model.hidden(torch.as_tensor(ids[:, :-1], device=device))[0, torch.as_tensor(is_answer)]
        right = model.logits(hidden).argmax(-1).cpu().numpy() == ids[0, 1:][is_answer]
        which = marks[0, 1:][is_answer] - 2
        for i, task in enumerate(tasks):
            scores[task][0] += bool(right[which == i].all())
            scores[task][1] += 1
    return scores


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", choices=CONFIGS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, help="how long to train, instead of the configuration's tokens")
    args = parser.parse_args()
    config = CONFIGS[args.config]
    world = 1 if torch.cuda.is_available() else config.processes
    if world > 1 and "RECALL_RANK" not in os.environ:
        load_tokenizer(args.out)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as an exception, so that the workers end too
        workers = [
            subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "RECALL_RANK": str(rank)})
            for rank in range(world)
        ]
        try:
            sys.exit(max(worker.wait() for worker in workers))
        finally:
            for worker in workers:
                worker.terminate()
    rank = int(os.environ.get("RECALL_RANK", 0))
    if not torch.cuda.is_available():
        torch.set_num_threads(config.threads)
    if world > 1:
        rendezvous = f"file://{args.out.resolve()}/rendezvous-{os.getppid()}"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    Trainer(config, args.out, rank, world, args.minutes).train()
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
