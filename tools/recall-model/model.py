"""A plain llama: RMSNorm, RoPE on interleaved pairs (ggml's NORM layout), grouped queries, SwiGLU, tied embeddings."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    vocab: int
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    d_ffn: int
    context: int
    rope_base: float = 1e12
    eps: float = 1e-5
    head_dim: int = 64


class Layer(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        dim_q, dim_kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        self.attn_norm = nn.Parameter(torch.ones(s.d_model))
        self.ffn_norm = nn.Parameter(torch.ones(s.d_model))
        self.q = nn.Linear(s.d_model, dim_q, bias=False)
        self.k = nn.Linear(s.d_model, dim_kv, bias=False)
        self.v = nn.Linear(s.d_model, dim_kv, bias=False)
        self.o = nn.Linear(dim_q, s.d_model, bias=False)
        self.gate = nn.Linear(s.d_model, s.d_ffn, bias=False)
        self.up = nn.Linear(s.d_model, s.d_ffn, bias=False)
        self.down = nn.Linear(s.d_ffn, s.d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, at: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x: (batch, n, d_model); cos, sin: (n, head_dim / 2). With `at`, only these (row, position) pairs come out."""
        s, (b, n, _) = self.s, x.shape
        h = F.rms_norm(x, (s.d_model,), self.attn_norm, s.eps)
        q = rotate(self.q(h).view(b, n, s.heads, s.head_dim), cos, sin)
        k = rotate(self.k(h).view(b, n, s.kv_heads, s.head_dim), cos, sin)
        v = self.v(h).view(b, n, s.kv_heads, s.head_dim).transpose(1, 2)
        group = s.heads // s.kv_heads
        k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        a = a.transpose(1, 2).reshape(b, n, -1)
        if at is not None:
            x, a = x[at], a[at]
        x = x + self.o(a)
        h = F.rms_norm(x, (s.d_model,), self.ffn_norm, s.eps)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: (batch, n, heads, head_dim), rotated by position, returned as (batch, heads, n, head_dim)."""
    x = x.transpose(1, 2)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


class Llama(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.embed = nn.Parameter(torch.randn(s.vocab, s.d_model) * 0.05)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = nn.Parameter(torch.ones(s.d_model))
        frequencies = s.rope_base ** (-torch.arange(0, s.head_dim, 2).double() / s.head_dim)
        angles = torch.arange(s.context).double()[:, None] * frequencies
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2 and name != "embed":
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            if name.endswith(("o.weight", "down.weight")):
                nn.init.zeros_(weight)

    def hidden(self, ids: Tensor, at: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """ids: (batch, n) → final normed states (batch, n, d_model), or those `at` (row, position): (count, d_model)."""
        x, n = self.embed[ids], ids.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:n], self.sin[:n], at if layer is self.layers[-1] else None)
        return F.rms_norm(x, (self.s.d_model,), self.norm, self.s.eps)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.embed.T
