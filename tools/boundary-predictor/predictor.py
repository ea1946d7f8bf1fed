"""The boundary predictor of DHSA (arXiv:2510.24606): does a chunk end at a token, by the keys around it?"""

from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ARCHITECTURE = "inlay-boundaries"


@dataclass(frozen=True)
class Shape:
    channels: int  # KV heads times head size
    half: int = 4  # tokens on each side
    heads: int = 8
    hidden: int = 256


class Predictor(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.attention = nn.MultiheadAttention(s.channels, s.heads, batch_first=True)
        self.norm = nn.LayerNorm(s.channels)
        self.hidden = nn.Linear(4 * s.channels + 1, s.hidden)
        self.logit = nn.Linear(s.hidden, 1)

    def forward(self, keys: Tensor) -> Tensor:
        """keys: (n, channels), before RoPE → logits of positions half - 1 … n - half - 1, (n - 2 half + 1)."""
        w = self.s.half
        windows = keys.unfold(0, 2 * w, 1).transpose(1, 2)  # (positions, 2w, channels)
        e = self.norm(self.attention(windows, windows, windows, need_weights=False)[0])
        left, right = e[:, :w].mean(1), e[:, w:].mean(1)
        cosine = F.cosine_similarity(left, right, dim=1, eps=1e-6)
        features = torch.cat((left, right, (left - right).abs(), left * right, cosine[:, None]), dim=1)
        return self.logit(F.relu(self.hidden(features)))[:, 0]


def write_gguf(file: Path, model: Predictor, threshold: float) -> None:
    """As src/model/boundary-file.ts reads it; all tensors f32."""
    s = model.s
    writer = gguf.GGUFWriter(file, ARCHITECTURE)
    for key, value in {"channels": s.channels, "half_width": s.half, "heads": s.heads, "hidden": s.hidden}.items():
        writer.add_uint32(f"{ARCHITECTURE}.{key}", value)
    writer.add_float32(f"{ARCHITECTURE}.threshold", threshold)
    tensors = {
        "attention.in.weight": model.attention.in_proj_weight,
        "attention.in.bias": model.attention.in_proj_bias,
        "attention.out.weight": model.attention.out_proj.weight,
        "attention.out.bias": model.attention.out_proj.bias,
        "norm.weight": model.norm.weight,
        "norm.bias": model.norm.bias,
        "hidden.weight": model.hidden.weight,
        "hidden.bias": model.hidden.bias,
        "logit.weight": model.logit.weight[0],
        "logit.bias": model.logit.bias,
    }
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.detach().float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
