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
    matrix_lr: float = 0.01
    other_lr: float = 1e-3
    warmup_steps: int = 20
    decay_share: float = 0.35
    text_weight: float = 0.2
    seed: int = 20261121
    processes: int = 1
    threads: int = 1
    log_steps: int = 10
    save_seconds: int = 120
    eval_seconds: int = 600

    def shape(self, vocab: int) -> Shape:
        return Shape(vocab, self.layers, self.d_model, self.heads, self.kv_heads, self.d_ffn, self.context)


CONFIGS = {
    "cpu": Config(
        layers=4, d_model=256, heads=4, kv_heads=2, d_ffn=256, context=4096, batch_tokens=4096, processes=2,
        stages=(
            Stage(700_000, (256, 512, 256, 1024)),
            Stage(1_100_000, (512, 1024, 256, 2048)),
            Stage(1_600_000, (1024, 2048, 512, 4096)),
        ),
    ),
    "gpu": Config(
        layers=6, d_model=320, heads=8, kv_heads=4, d_ffn=640, context=8192, batch_tokens=65_536,
        stages=(
            Stage(40_000_000, (256, 512)),
            Stage(120_000_000, (512, 1024, 2048)),
            Stage(250_000_000, (2048, 1024, 4096)),
            Stage(400_000_000, (8192, 4096, 2048)),
        ),
    ),
    "smoke": Config(
        layers=3, d_model=128, heads=4, kv_heads=2, d_ffn=128, context=256, batch_tokens=2048, processes=2,
        stages=(Stage(160_000, (128, 128, 256)),),
        eval_seconds=3600,
    ),
}  # fmt: skip
