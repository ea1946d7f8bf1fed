"""What the predictor learns: a chunk ends where later queries treat the tokens on both sides differently."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: A side that gets at least twice the other's attention makes a boundary.
RATIO = 2.0


@dataclass(frozen=True)
class Heads:
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float


def read_layer(file: Path, h: Heads, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """q (n, heads, d), k (n, kv_heads, d), both after RoPE, and the keys before it, (n, kv_heads * d), of what dump.ts wrote."""
    rows = np.fromfile(file, np.float32)
    width_q, width_k = h.heads * h.head_dim, h.kv_heads * h.head_dim
    per_layer = rows.reshape(h.layers, -1)[layer]
    n = per_layer.size // (width_q + 2 * width_k)
    q, k, unrotated = np.split(per_layer, [n * width_q, n * (width_q + width_k)])
    return (
        torch.from_numpy(q.reshape(n, h.heads, h.head_dim)),
        torch.from_numpy(k.reshape(n, h.kv_heads, h.head_dim)),
        torch.from_numpy(unrotated.reshape(n, width_k)),
    )


def mean_attention(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Causal softmax attention, mean over heads, (n, n), f64."""
    n, heads, _ = q.shape
    total = torch.zeros(n, n, dtype=torch.float64)
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    for head in range(heads):
        scores = (q[:, head] @ k[:, head * k.shape[1] // heads].T).double() * scale
        total += scores.masked_fill_(future, -math.inf).softmax(dim=1)
    return total / heads


def labels(attention: Tensor, w: int) -> tuple[Tensor, Tensor]:
    """attention: (n, n). Whether a boundary is at each position, and at which positions that is defined, both (n)."""
    n = attention.shape[0]
    # from_row[r, c]: attention that the queries from r on pay to the keys before c.
    below = attention.flip(0).cumsum(0).flip(0)
    from_row = F.pad(below.cumsum(1), (1, 0))
    i = torch.arange(2 * w - 1, n - 2 * w)
    past = from_row[i + w, i + 1] - from_row[i + w, i + 1 - w]
    future = from_row[i + w, i + 1 + w] - from_row[i + w, i + 1]
    high, low = torch.maximum(past, future), torch.minimum(past, future)
    is_boundary = torch.zeros(n, dtype=torch.bool)
    is_boundary[i] = (high + 1e-6) / (low + 1e-6) >= RATIO
    is_valid = torch.zeros(n, dtype=torch.bool)
    is_valid[i] = True
    return is_boundary, is_valid


def focal_loss(logits: Tensor, is_boundary: Tensor) -> Tensor:
    """Mean of (1 - p_t)^2 times the cross-entropy, boundaries weighing 1.3."""
    target = is_boundary.float()
    bce = F.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(1.3), reduction="none")
    p = logits.sigmoid()
    p_true = p * target + (1 - p) * (1 - target)
    return ((1 - p_true) ** 2 * bce).mean()
