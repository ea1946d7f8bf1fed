"""What is trained on what: `cpu` (after `cpu-first`) on two cores, `gpu` on one GPU, `smoke` to see that the recipe works."""

from dataclasses import dataclass

from model import Shape


@dataclass(frozen=True)
class Stage:
    """Until this part of the training is done, batches take these lengths in turn."""

    until: float
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Config:
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    d_ffn: int
    context: int
    tokens: int
    stages: tuple[Stage, ...]
    batch_tokens: int
    #: The configuration whose trained model, with a layer more, is where this one starts.
    grown_from: str | None = None
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
    eval_seconds: int = 900

    def shape(self, vocab: int) -> Shape:
        return Shape(vocab, self.layers, self.d_model, self.heads, self.kv_heads, self.d_ffn, self.context)


CONFIGS = {
    "cpu-first": Config(
        layers=4, d_model=256, heads=4, kv_heads=2, d_ffn=256, context=4096, batch_tokens=4096, processes=2,
        tokens=1_600_000,
        stages=(
            Stage(0.44, (256, 512, 256, 1024)),
            Stage(0.69, (512, 1024, 256, 2048)),
            Stage(1.0, (1024, 2048, 512, 4096)),
        ),
    ),
    "cpu": Config(
        layers=5, d_model=256, heads=4, kv_heads=2, d_ffn=256, context=4096, batch_tokens=4096, processes=2,
        grown_from="cpu-first", tokens=4_000_000, matrix_lr=0.008, decay_share=0.7,
        stages=(
            Stage(0.35, (256, 512, 256, 1024, 256, 512, 2048)),
            Stage(0.75, (256, 1024, 512, 2048, 256, 512, 1024, 4096)),
            Stage(1.0, (512, 1024, 2048, 512, 4096)),
        ),
    ),
    "gpu": Config(
        layers=6, d_model=320, heads=8, kv_heads=4, d_ffn=640, context=8192, batch_tokens=65_536, tokens=400_000_000,
        stages=(
            Stage(0.1, (256, 512)),
            Stage(0.3, (512, 1024, 2048)),
            Stage(0.65, (2048, 1024, 4096)),
            Stage(1.0, (8192, 4096, 2048)),
        ),
    ),
    "smoke": Config(
        layers=3, d_model=128, heads=4, kv_heads=2, d_ffn=128, context=256, batch_tokens=1024, processes=2,
        tokens=120_000, stages=(Stage(1.0, (128, 128, 256)),),
        eval_seconds=3600,
    ),
}  # fmt: skip
