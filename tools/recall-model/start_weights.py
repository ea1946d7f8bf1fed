"""First weights that already lean towards retrieval, so that few tokens of training are enough.

Random weights find the induction circuit (Olsson et al. 2022, arXiv:2209.11895) only after many millions of tokens. Here
layer 0 starts with heads that look 1, 2, 3 and 4 tokens back (by RoPE alone, from a feature that every token has), and layers
1 and 2 with heads whose keys are "what stood before me" and whose queries are "what stands here", and which copy what they
find. The idea is that of mimetic initialization (Trockman and Kolter 2023, arXiv:2305.09828); everything is then trained.
"""

import torch

from model import Llama

#: Value of the feature that every token has, against 0.05 for the spread of the others.
CONSTANT = 0.2
SPREAD = 0.05
BACK_PAIRS = 12
BACK_SCORE = 7.0
MATCH_SCORE = 4.0


@torch.no_grad()
def set_start_weights(model: Llama) -> None:
    s = model.s
    group, hd = s.heads // s.kv_heads, s.head_dim
    model.embed[:, 0] = CONSTANT
    constant = CONSTANT / (SPREAD**2 + CONSTANT**2 / s.d_model) ** 0.5  # after the norm
    theta = s.rope_base ** (-torch.arange(BACK_PAIRS) * 2 / hd)
    amplitude = (BACK_SCORE * hd**0.5) ** 0.5 / constant

    first = model.layers[0]
    first.q.weight.mul_(0.2)
    first.k.weight.mul_(0.2)
    read = torch.randn(hd, s.d_model) * s.d_model**-0.5
    write = torch.randn(s.heads, s.d_model, hd) * SPREAD * hd**-0.5
    for kv in range(s.kv_heads):
        first.k.weight[kv * hd : kv * hd + 2 * BACK_PAIRS : 2, 0] = amplitude
        first.v.weight[kv * hd : (kv + 1) * hd] = read
    for head in range(s.heads):
        rows = slice(head * hd, head * hd + 2 * BACK_PAIRS)
        back = head % 4 + 1
        # The query is turned back by `back` positions: the score is largest there.
        turned = torch.stack(((theta * back).cos(), -(theta * back).sin()), dim=-1).flatten()
        first.q.weight[rows, 0] = amplitude * turned
        first.o.weight[:, head * hd : (head + 1) * hd] = write[head]

    total = SPREAD * (1 + s.heads) ** 0.5  # spread of the residual after layer 0
    unread = total / (s.d_model * (SPREAD * hd**-0.5) ** 2)
    own = total / SPREAD
    steady = hd // 2  # features of pairs that turn slowly
    for layer in model.layers[1:3]:
        for kv in range(s.kv_heads):
            q, k = torch.zeros(hd, s.d_model), torch.zeros(hd, s.d_model)
            for j in range(3):
                mix = torch.randn(steady, hd) * (MATCH_SCORE * hd**0.5 / (steady * hd)) ** 0.5
                k[hd - steady :] += mix @ write[j].T * unread
                q[hd - steady :] += mix @ (read * own if j == 0 else write[j - 1].T * unread)
            layer.k.weight[kv * hd : (kv + 1) * hd].mul_(0.2).add_(k)
            for head in range(kv * group, (kv + 1) * group):
                layer.q.weight[head * hd : (head + 1) * hd].mul_(0.2).add_(q)
                copy = layer.v.weight[kv * hd : (kv + 1) * hd].T
                layer.o.weight[:, head * hd : (head + 1) * hd] = copy * SPREAD * 4
