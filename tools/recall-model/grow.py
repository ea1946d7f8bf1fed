"""A trained model with one layer more, which starts by changing almost nothing.

The new layer comes second. Two of its heads look 4 and 5 tokens back, as those of the first layer look 1, 2 and 3 back, so
that the layers after it can tell "the code of Velmora is" from "the gate of Velmora is" and follow "variable Tanmund is set
to". They write into directions of the residual stream that the trained model leaves empty; the other heads and the
feed-forward part write nothing yet. The layer that compares what stood before gets these two tokens to compare, weakly.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from chats import Chats
from model import Layer, Llama
from start_weights import BACK_PAIRS, BACK_SCORE, rows_orthonormal

NEW = 1  # the new layer's place
BACK = (4, 5)
N_SEEN = 32  # features of a token that each head writes
ENERGY = 10.0  # mean square, summed over those features
MATCH_SCORE = 4.0
N_MATCH = 14
NOISE = 0.3  # of the free heads' queries and keys


@torch.no_grad()
def grow(model: Llama, chats: Chats) -> Llama:
    """A copy of `model` with one layer more, of the same weights otherwise. `chats`: what it was trained on."""
    s = model.s
    states = torch.cat([_after_first_layer(model, chats, length) for length in (512, 512, 512, 2048)])
    normed = F.rms_norm(states, (s.d_model,), eps=s.eps)
    empty = torch.linalg.eigh(states.T @ states / len(states)).eigenvectors[:, : len(BACK) * N_SEEN]
    slots = empty.split(N_SEEN, dim=1)

    grown = Llama(replace(s, layers=s.layers + 1))
    grown.load_state_dict({_renamed(name): weight for name, weight in model.state_dict().items()}, strict=False)
    _write_near_layer(grown.layers[NEW], normed, slots)
    rms = states.pow(2).mean(1).sqrt().mean().item()
    _compare_slots(grown.layers[NEW + 1], slots, rms)
    return grown


def _after_first_layer(model: Llama, chats: Chats, length: int) -> Tensor:
    ids, _, _ = chats.batch(1, length)
    return model.layers[0](model.embed[torch.as_tensor(ids)], model.cos[:length], model.sin[:length])[0]


def _renamed(name: str) -> str:
    if not name.startswith("layers."):
        return name
    _, layer, rest = name.split(".", 2)
    return f"layers.{int(layer) + (int(layer) >= NEW)}.{rest}"


def _write_near_layer(layer: Layer, normed: Tensor, slots: tuple[Tensor, ...]) -> None:
    """normed: (n, d_model) inputs of the layer after its norm; slots: (d_model, N_SEEN) for each of BACK."""
    s, hd, d = layer.s, layer.s.head_dim, layer.s.d_model
    # A direction in which all tokens are alike: about 1 for each of them.
    gram = normed.T @ normed + 0.01 * len(normed) * torch.eye(d)
    constant = torch.linalg.solve(gram, normed.sum(0))
    amplitude = (BACK_SCORE * hd**0.5) ** 0.5
    theta = s.rope_base ** (-torch.arange(BACK_PAIRS) * 2 / hd)
    n_code = d // 2
    project = rows_orthonormal(hd, n_code)
    layer.q.weight.mul_(NOISE)
    layer.k.weight.mul_(NOISE)
    # The heads that look back share the first KV head.
    layer.q.weight[: len(BACK) * hd] = 0
    layer.k.weight[:hd] *= 0.1
    layer.k.weight[: 2 * BACK_PAIRS : 2] = amplitude * constant
    layer.v.weight[:hd] = 0
    layer.v.weight[:hd, :n_code] = project
    seen = (normed[:, :n_code] @ project[:N_SEEN].T).pow(2).sum(1).mean()
    for head, (back, slot) in enumerate(zip(BACK, slots)):
        turned = torch.stack(((theta * back).cos(), -(theta * back).sin()), dim=-1).flatten()
        layer.q.weight[head * hd : head * hd + 2 * BACK_PAIRS] = amplitude * turned[:, None] * constant
        layer.o.weight[:, head * hd : head * hd + N_SEEN] = (ENERGY / seen).sqrt() * slot


def _compare_slots(layer: Layer, slots: tuple[Tensor, ...], rms: float) -> None:
    """Where the fact's value stands the attribute is 5 back; where the answer shall name it, 4."""
    s, hd = layer.s, layer.s.head_dim
    scale = (MATCH_SCORE * hd**0.5 / (ENERGY / rms**2)) ** 0.5
    part = slice(hd - 3 * N_MATCH, hd - 2 * N_MATCH)
    group = s.heads // s.kv_heads
    for kv in range(s.kv_heads):
        mix = rows_orthonormal(N_MATCH, N_SEEN) * (N_SEEN / N_MATCH) ** 0.5 * scale
        layer.k.weight[kv * hd : (kv + 1) * hd][part] += mix @ slots[1].T / layer.attn_norm
        for head in range(kv * group, (kv + 1) * group):
            layer.q.weight[head * hd : (head + 1) * hd][part] += mix @ slots[0].T / layer.attn_norm
