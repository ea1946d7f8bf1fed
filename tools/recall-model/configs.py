"""What is trained on what: `cpu` on two cores, `gpu` on one GPU, `smoke` to see that the recipe works."""

from dataclasses import dataclass

from model import Shape


@dataclass(frozen=True)
class Stage:
    """Until so many tokens in all, batches take these lengths in turn."""

    until: int
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Config:
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    d_ffn: int
    context: int
    stages: tuple[Stage, ...]
    batch_tokens: int
    matrix_lr: float = 0.02
    other_lr: float = 3e-3
    warmup_steps: int = 20
    decay_share: float = 0.25
    text_weight: float = 0.2
    seed: int = 20261121
    processes: int = 1
    threads: int = 1
    log_steps: int = 10
    save_seconds: int = 120
    eval_seconds: int = 240

    def shape(self, vocab: int) -> Shape:
        return Shape(vocab, self.layers, self.d_model, self.heads, self.kv_heads, self.d_ffn, self.context)


CONFIGS = {
    "cpu": Config(
        layers=4, d_model=256, heads=4, kv_heads=2, d_ffn=256, context=4096, batch_tokens=4096, processes=2,
        stages=(
            Stage(1_000_000, (128, 256)),
            Stage(3_000_000, (256, 512)),
            Stage(5_000_000, (512, 256, 1024)),
            Stage(7_000_000, (1024, 512, 2048)),
            Stage(9_000_000, (4096, 1024, 2048)),
        ),
    ),
}  # fmt: skip
