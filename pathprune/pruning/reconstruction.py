"""Both layers of a narrowed MLP, fitted together to what its block should add to the residual stream.

A ridge fit of `down` takes the kept neurons as they are. Their own weights can do something for the output too: block
reconstruction, known from post-training quantisation (BRECQ, arXiv 2102.05426), by L-BFGS instead of stochastic steps.
"""

# N images, T tokens, R rows (tokens of all images), B of them in a chunk, D width of the residual stream

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
_MOST_ROWS = 32768  # that are learnt from: more cost time, and tell little more about one MLP


def reconstruct(site: NeuronSite, read_NTD: Tensor, wanted_NTD: Tensor, *, scale_D: Tensor, steps: int) -> bool:
    """Change a site's MLP, in place, so that `scale * MLP(read)` comes nearer `wanted`; say whether it was changed.

    At most `steps` steps of L-BFGS on the squared error of the tokens, from the weights at hand. Every eighth image is
    held out, and the search ends where it no longer gains on those: what comes back is never worse for them, and of
    fewer than eight images nothing is learnt. Of very many tokens a sample is taken. In float32, on the site's device.
    """
    weight = site.down.weight
    is_held_out_R = (torch.arange(len(read_NTD)) % _HELD_OUT == _HELD_OUT - 1).repeat_interleave(
        read_NTD[0].shape[:-1].numel()
    )
    if steps == 0 or not is_held_out_R.any():
        return False
    read_RD, wanted_RD = read_NTD.flatten(0, -2), wanted_NTD.flatten(0, -2)
    learnt_R, held_out_R = _sample(~is_held_out_R, _MOST_ROWS), _sample(is_held_out_R, _MOST_ROWS // (_HELD_OUT - 1))
    mlp = PlainMlp(site).to(torch.float32).requires_grad_(True)
    parameters = list(mlp.parameters())
    scale_D = scale_D.to(weight.device, torch.float32)

    def missed(rows_R: Tensor, *, backward: bool) -> float:
        """The share of what is wanted that is missed, in squares; its gradient is added to the parameters'."""
        wanted, share = wanted_RD[rows_R].square().sum(dtype=torch.float64).clamp(min=1e-30).item(), 0.0
        for rows_B in torch.split(rows_R, _CHUNK_ROWS):
            read_BD, wanted_BD = (each[rows_B].to(weight.device, torch.float32) for each in (read_RD, wanted_RD))
            with torch.set_grad_enabled(backward):
                part = (wanted_BD - scale_D * mlp(read_BD)).square().sum() / wanted
            if backward:
                torch.autograd.backward(part)
            share += part.item()
        return share

    def closure() -> float:
        search.zero_grad()
        return missed(learnt_R, backward=True)

    search = torch.optim.LBFGS(
        parameters,
        max_iter=_STEPS_BETWEEN_LOOKS,
        history_size=12,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )
    least, best = missed(held_out_R, backward=False), None
    for _ in range(0, steps, _STEPS_BETWEEN_LOOKS):
        search.step(closure)  # type: ignore[no-untyped-call]  # torch's own has no types
        now = missed(held_out_R, backward=False)
        if not now < least:
            break
        least, best = now, copy.deepcopy(mlp.state_dict())
    if best is None:
        return False
    mlp.load_state_dict(best)
    mlp.to(weight.dtype).put_back(site)
    set_bias(site.down, mlp.down.bias)
    return True


def _sample(wanted_R: Tensor, number: int) -> Tensor:
    """The rows that are wanted, or so many of them: always the same ones."""
    rows_R = wanted_R.nonzero().squeeze(1)
    chosen_R = torch.randperm(len(rows_R), generator=torch.Generator().manual_seed(0))[:number]
    return rows_R[chosen_R.sort().values]
