"""Both layers of a narrowed MLP, fitted together to what its block should add to the residual stream.

A ridge fit of `down` takes the kept neurons as they are. Their own weights can do something for the output too: block
reconstruction, known from post-training quantisation (BRECQ, arXiv 2102.05426), by L-BFGS instead of stochastic steps.
"""

# N images, B of them in a chunk, T tokens, D width of the residual stream

from __future__ import annotations

import copy

import torch
from torch import Tensor

from pathprune.models.graph import PlainMlp
from pathprune.models.seam import NeuronSite
from pathprune.pruning.compensation import set_bias

_HELD_OUT = 8  # of so many images one
_STEPS_BETWEEN_LOOKS = 5  # at the images held out
_CHUNK_ROWS = 4096


def reconstruct(site: NeuronSite, read_NTD: Tensor, wanted_NTD: Tensor, *, scale_D: Tensor, steps: int) -> bool:
    """Change a site's MLP, in place, so that `scale * MLP(read)` comes nearer `wanted`; say whether it was changed.

    At most `steps` steps of L-BFGS on the squared error of all tokens, from the weights at hand. Every eighth image is
    held out, and the search ends where it no longer gains on those: what comes back is never worse for them, and of
    fewer than eight images nothing is learnt. In float32, on the site's device.
    """
    weight = site.down.weight
    held_out_N = torch.arange(len(read_NTD)) % _HELD_OUT == _HELD_OUT - 1
    if steps == 0 or not held_out_N.any():
        return False
    mlp = PlainMlp(site).to(torch.float32).requires_grad_(True)
    parameters = list(mlp.parameters())
    scale_D = scale_D.to(weight.device, torch.float32)
    num_images = max(1, _CHUNK_ROWS // read_NTD[0].shape[:-1].numel())

    def missed(chosen_N: Tensor, *, backward: bool) -> float:
        """The share of what is wanted that is missed, in squares; its gradient is added to the parameters'."""
        wanted, share = wanted_NTD[chosen_N].square().sum(dtype=torch.float64).clamp(min=1e-30).item(), 0.0
        for indices in torch.split(chosen_N.nonzero().squeeze(1), num_images):
            read_BTD, wanted_BTD = (each[indices].to(weight.device, torch.float32) for each in (read_NTD, wanted_NTD))
            with torch.set_grad_enabled(backward):
                part = (wanted_BTD - scale_D * mlp(read_BTD)).square().sum() / wanted
            if backward:
                torch.autograd.backward(part)
            share += part.item()
        return share

    def closure() -> float:
        search.zero_grad()
        return missed(~held_out_N, backward=True)

    search = torch.optim.LBFGS(
        parameters,
        max_iter=_STEPS_BETWEEN_LOOKS,
        history_size=12,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )
    least, best = missed(held_out_N, backward=False), None
    for _ in range(0, steps, _STEPS_BETWEEN_LOOKS):
        search.step(closure)  # type: ignore[no-untyped-call]  # torch's own has no types
        now = missed(held_out_N, backward=False)
        if not now < least:
            break
        least, best = now, copy.deepcopy(mlp.state_dict())
    if best is None:
        return False
    mlp.load_state_dict(best)
    mlp.to(weight.dtype).put_back(site)
    set_bias(site.down, mlp.down.bias)
    return True
