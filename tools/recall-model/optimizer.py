"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for matrices; AdamW takes the rest."""

import torch
import torch.distributed as dist
from torch import Tensor


def orthogonalize(g: Tensor, steps: int = 5) -> Tensor:
    """Newton–Schulz iteration towards the nearest semi-orthogonal matrix. g: (count, rows, cols)."""
    is_tall = g.shape[-2] > g.shape[-1]
    x = g.mT if is_tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """With several processes each makes the updates of its part of the matrices, from averaged gradients."""

    def __init__(self, matrices, lr: float, momentum: float = 0.95, rank: int = 0, world: int = 1):
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum})
        self.rank, self.world = rank, world

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            directions = []
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                directions.append(p.grad.lerp(state["momentum"], group["momentum"]))  # Nesterov
            for p, update in zip(group["params"], self._updates(directions)):
                scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.add_(update, alpha=-group["lr"] * scale)

    def _updates(self, directions: list[Tensor]) -> list[Tensor]:
        updates = [torch.zeros_like(d) for d in directions]
        by_shape: dict[torch.Size, list[int]] = {}
        for i, direction in enumerate(directions):
            if i % self.world == self.rank:
                by_shape.setdefault(direction.shape, []).append(i)
        for indices in by_shape.values():
            for i, update in zip(indices, orthogonalize(torch.stack([directions[i] for i in indices]))):
                updates[i] = update
        if self.world == 1:
            return updates
        flat = torch.cat([u.flatten() for u in updates])
        dist.all_reduce(flat)
        return [part.view_as(u) for u, part in zip(updates, flat.split([u.numel() for u in updates]))]
