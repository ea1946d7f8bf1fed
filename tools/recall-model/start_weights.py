"""First weights that already are a weak form of retrieval, so that few tokens of training are enough.

Random weights find the induction circuit (Olsson et al. 2022, arXiv:2209.11895) only after many millions of tokens. Here it
is written down, in a residual stream of separate parts, and everything is then trained:

    features   0 … 127   the token itself, a random code; what the output matrix reads
             128 … 169   a projection of the token before, 170 … 211 of the one before that, 212 … 253 of the third
             254         the same for all tokens

Layer 0 has heads that look 1, 2 and 3 tokens back (by RoPE alone, from the last feature) and write those parts. Layer 1 has
heads whose key is "what the three tokens before me are", whose query is "what the last three tokens are", and which copy
the token they find. The idea of structured first weights is that of Trockman and Kolter 2023, arXiv:2305.09828.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Llama

CODE = 0.07  # spread of token features
CONSTANT = 0.3
BACK_PAIRS = 8
BACK_SCORE = 14.0  # of a pair of features in layer 0
MATCH_SCORE = 12.0  # of one of the three tokens in layer 1
COPY = 3.0  # strength of a copied token relative to the token itself
NOISE = 0.1  # of ordinary random weights, in these two layers
N_BACK = 3


def rows_orthonormal(rows: int, cols: int) -> Tensor:
    return torch.linalg.qr(torch.randn(cols, rows)).Q.T


@torch.no_grad()
def set_start_weights(model: Llama) -> None:
    s = model.s
    d, hd = s.d_model, s.head_dim
    n_code = d // 2
    n_slot = (d - n_code - 1) // N_BACK
    slots = [slice(n_code + j * n_slot, n_code + (j + 1) * n_slot) for j in range(N_BACK)]
    model.embed.zero_()
    # All of one length: then the norm leaves the last feature the same for all.
    model.embed[:, :n_code] = F.normalize(torch.randn(s.vocab, n_code), dim=1) * CODE * n_code**0.5
    model.embed[:, d - 1] = CONSTANT

    rms = ((n_code * CODE**2 + CONSTANT**2) / d) ** 0.5
    first = model.layers[0]
    project = rows_orthonormal(min(n_slot, hd), n_code)
    n_seen = project.shape[0]
    for weight in (first.q.weight, first.k.weight, first.v.weight):
        weight.mul_(NOISE)
    amplitude = (BACK_SCORE * hd**0.5) ** 0.5 / (CONSTANT / rms)
    theta = s.rope_base ** (-torch.arange(BACK_PAIRS) * 2 / hd)
    for kv in range(s.kv_heads):
        first.k.weight[kv * hd : kv * hd + 2 * BACK_PAIRS : 2, d - 1] = amplitude
        first.v.weight[kv * hd : kv * hd + n_seen, :n_code] = project
    for head in range(min(s.heads, N_BACK)):
        # The query is turned back by that many positions: the score is largest there.
        turned = torch.stack(((theta * (head + 1)).cos(), -(theta * (head + 1)).sin()), dim=-1).flatten()
        first.q.weight[head * hd : head * hd + 2 * BACK_PAIRS, d - 1] = amplitude * turned
        first.o.weight[slots[head].start : slots[head].start + n_seen, head * hd : head * hd + n_seen] = (
            torch.eye(n_seen) * rms
        )

    # Layer 1. A third of the features of slowly turning pairs compares each of the three tokens.
    second = model.layers[1]
    rms = ((n_code * CODE**2 + N_BACK * n_seen * CODE**2 + CONSTANT**2) / d) ** 0.5
    n_match = 14
    norm = n_seen * (CODE / rms) ** 2  # of a projected token, squared
    scale = (MATCH_SCORE * hd**0.5 / norm) ** 0.5 * (n_seen / n_match) ** 0.5
    for weight in (second.q.weight, second.k.weight, second.v.weight):
        weight.mul_(NOISE)
    group = s.heads // s.kv_heads
    for kv in range(s.kv_heads):
        q, k = torch.zeros(hd, d), torch.zeros(hd, d)
        for j in range(N_BACK):
            mix = rows_orthonormal(n_match, n_seen) * scale
            part = slice(hd - (j + 1) * n_match, hd - j * n_match)
            k[part, slots[j].start : slots[j].start + n_seen] = mix
            if j == 0:
                q[part, :n_code] = mix @ project
            else:
                q[part, slots[j - 1].start : slots[j - 1].start + n_seen] = mix
        second.k.weight[kv * hd : (kv + 1) * hd] += k
        width = min(hd, n_code // s.kv_heads)
        copied = slice(kv * width, (kv + 1) * width)
        second.v.weight[kv * hd : kv * hd + width, copied] += torch.eye(width)
        for head in range(kv * group, (kv + 1) * group):
            second.q.weight[head * hd : (head + 1) * hd] += q
            second.o.weight[copied, head * hd : head * hd + width] = torch.eye(width) * (COPY * rms / group)
