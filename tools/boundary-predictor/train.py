"""Trains a boundary predictor from what dump.ts wrote of a model, and writes it as GGUF. See README.md."""

import argparse
import json
from pathlib import Path

import torch

from labels import Heads, focal_loss, labels, mean_attention, read_layer
from predictor import Predictor, Shape, write_gguf

#: Of so many documents, the last one is not trained on: it sets the threshold and is reported.
HELD_OUT = 8
#: Positions whose logits are written beside the file, for the test that Inlay's are the same.
EXAMPLE = 300


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dump", type=Path, required=True, help="folder that dump.ts filled")
    parser.add_argument("--out", type=Path, required=True, help="the GGUF file to write")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    meta = json.loads((args.dump / "meta.json").read_text())
    heads = Heads(**meta["heads"])
    files = [args.dump / name for name in meta["documents"]]
    channels = heads.kv_heads * heads.head_dim
    model = Predictor(Shape(channels, heads=args.heads, hidden=args.hidden))
    w = model.s.half

    def examples(file: Path):
        """Keys, labels and validity of each layer; those of positions that have logits."""
        for layer in range(heads.layers):
            q, k, keys = read_layer(file, heads, layer)
            is_boundary, is_valid = labels(mean_attention(q, k, heads.scale), w)
            yield keys, is_boundary[w - 1 : len(keys) - w], is_valid[w - 1 : len(keys) - w]

    held_out = files[HELD_OUT - 1 :: HELD_OUT] or files[-1:]
    training = [list(examples(file)) for file in files if file not in held_out]
    testing = [layer for file in held_out for layer in examples(file)]
    optimizer = torch.optim.Adam(model.parameters(), lr=args.rate)
    log = []
    for epoch in range(args.epochs):
        for i in torch.randperm(len(training)).tolist():
            optimizer.zero_grad()
            # One document is a batch; its layers' gradients add up.
            losses = []
            for keys, is_boundary, is_valid in training[i]:
                loss = focal_loss(model(keys)[is_valid], is_boundary[is_valid])
                loss.backward()
                losses.append(loss.item())
            optimizer.step()
            log.append(sum(losses) / len(losses))
        print(f"epoch {epoch + 1}: loss {sum(log[-len(training):]) / len(training):.4f}", flush=True)

    with torch.no_grad():
        logits = torch.cat([model(keys)[is_valid] for keys, _, is_valid in testing])
        truth = torch.cat([is_boundary[is_valid] for _, is_boundary, is_valid in testing])
        share = truth.float().mean().item()
        # As many candidates as there are boundaries.
        threshold = torch.quantile(logits, 1 - share).item()
        found = logits > threshold
        precision = (found & truth).sum().item() / max(1, found.sum().item())
        scores = {"boundaries": share, "precision": precision, "threshold": threshold, "losses": log}
        _, _, keys = read_layer(files[0], heads, 0)
        example = model(keys[:EXAMPLE])
    write_gguf(args.out, model, threshold)
    scores["example"] = {"document": files[0].name, "keys": EXAMPLE, "firstPosition": w - 1, "logits": example.tolist()}
    args.out.with_suffix(".json").write_text(json.dumps(scores))
    print(f"{share:.1%} of the positions are boundaries; of those that are found, {precision:.1%} are")


if __name__ == "__main__":
    main()
