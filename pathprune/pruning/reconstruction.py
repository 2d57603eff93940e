"""Both layers of a narrowed MLP, fitted together to what its block should add to the residual stream.

A ridge fit of `down` takes the kept neurons as they are. Their own weights can do something for the output too: block
reconstruction, known from post-training quantisation (BRECQ, arXiv 2102.05426).
"""

# N images, T tokens, R rows (tokens of all images), B of them in a batch, D width of the residual stream

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from pathprune.models.graph import PlainMlp
from pathprune.models.seam import NeuronSite
from pathprune.pruning.compensation import set_bias

_HELD_OUT = 8  # of so many images one
_MOST_ROWS = 32768  # that are learnt from: more cost time, and tell little more about one MLP
_BATCH_ROWS = 256
_LEAST_STEPS = 40  # of the schedule, which needs two to begin with; of fewer steps the last ones are not run
_RATE = 0.03  # largest learning rate, relative to the weights' root mean square


def reconstruct(
    site: NeuronSite, read_NTD: Tensor, wanted_NTD: Tensor, *, scale_D: Tensor, epochs: int, seed: int = 0
) -> bool:
    """Change a site's MLP, in place, so that `scale * MLP(read)` comes nearer `wanted`; say whether it was changed.

    Adam on the squared error of the tokens, for so many epochs, from the weights at hand. Every eighth image is held
    out, and the weights are those of the epoch that left least error there: what comes back is never worse for these,
    and of fewer than eight images nothing is learnt. Of very many tokens a sample is taken. In float32, on the site's
    device.
    """
    down, device = site.down, site.down.weight.device
    is_held_out_N = torch.arange(len(read_NTD)) % _HELD_OUT == _HELD_OUT - 1
    if epochs == 0 or not is_held_out_N.any():
        return False
    generator = torch.Generator().manual_seed(seed)

    def rows(chosen_N: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """What the MLP reads and what is wanted of it, at up to `most` tokens of the chosen images: `[R, D]` both."""
        read_RD, wanted_RD = (each[chosen_N].flatten(0, -2) for each in (read_NTD, wanted_NTD))
        sample = torch.randperm(len(read_RD), generator=generator)[:most]
        return read_RD[sample].to(device, torch.float32), wanted_RD[sample].to(device, torch.float32)

    read_RD, wanted_RD = rows(~is_held_out_N, _MOST_ROWS)
    held_out = rows(is_held_out_N, _MOST_ROWS // (_HELD_OUT - 1))
    mlp = PlainMlp(site).to(torch.float32).requires_grad_(True)
    scale_D = scale_D.to(device, torch.float32)
    unit = wanted_RD.square().mean().clamp(min=torch.finfo(torch.float32).tiny)

    def error(read_BD: Tensor, wanted_BD: Tensor) -> Tensor:
        missed_BD: Tensor = wanted_BD - scale_D * mlp(read_BD)
        return missed_BD.square().mean() / unit

    def error_held_out() -> float:
        with torch.no_grad():
            return error(*held_out).item()

    weights = torch.cat([each.detach().flatten() for each in mlp.parameters() if each.ndim > 1])
    rate = _RATE * float(weights.square().mean().sqrt())
    search = torch.optim.Adam(mlp.parameters(), lr=rate, betas=(0.9, 0.95))
    steps = max(epochs * math.ceil(len(read_RD) / _BATCH_ROWS), _LEAST_STEPS)
    schedule = OneCycleLR(
        search, max_lr=rate, total_steps=steps, pct_start=0.05, anneal_strategy="linear", cycle_momentum=False
    )
    least, best = error_held_out(), None
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(read_RD), generator=generator).to(device), _BATCH_ROWS):
            search.zero_grad()
            with torch.enable_grad():
                torch.autograd.backward(error(read_RD[batch], wanted_RD[batch]))
            search.step()
            schedule.step()
        now = error_held_out()
        if now < least:
            least, best = now, copy.deepcopy(mlp.state_dict())
    if best is None:
        return False
    mlp.load_state_dict(best)
    mlp.to(down.weight.dtype).put_back(site)
    set_bias(down, mlp.down.bias)
    return True
