"""Block reconstruction: gradient descent on both layers of a pruned MLP.

A ridge fit changes the down-projection only. Training the neurons' input weights too brings the block output closer to
its target, as in post-training quantisation (BRECQ, arXiv 2102.05426).
"""

# N images, T tokens, R tokens of all images, B tokens of a batch, D hidden dimension of the residual stream

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from pathprune.models.graph import PlainMlp
from pathprune.models.linear import set_bias
from pathprune.models.seam import NeuronSite

_HELD_OUT = 8  # one image of so many is held out
_MAX_TOKENS = 32768  # of one MLP's training: more tokens cost time and change the fit little
_BATCH_TOKENS = 256
_MIN_STEPS = 40  # of the learning rate schedule, which needs at least two; of fewer steps the last ones do not run
_LEARNING_RATE = 0.03  # at the peak, relative to the weights' root mean square


def reconstruct(
    site: NeuronSite, inputs_NTD: Tensor, targets_NTD: Tensor, *, scale_D: Tensor, epochs: int, seed: int = 0
) -> bool:
    """Train a site's MLP in place so that `scale * MLP(inputs)` comes closer to `targets`; return True if it changed.

    Runs Adam on the squared error of the tokens for `epochs` epochs, from the current weights, in float32 on the site's
    device. At most 32,768 tokens are sampled. Every eighth image is held out, and the weights of the epoch with the
    least held-out error are kept, so the held-out error never grows. Fewer than eight images change nothing.
    """
    is_held_out_N = torch.arange(len(inputs_NTD)) % _HELD_OUT == _HELD_OUT - 1
    if epochs == 0 or not is_held_out_N.any():
        return False
    device, generator = site.down.weight.device, torch.Generator().manual_seed(seed)

    def sample_tokens(is_chosen_N: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Sample inputs and targets `[R, D]` of up to `count` tokens of the chosen images."""
        inputs_RD, targets_RD = (x_NTD[is_chosen_N].flatten(0, -2) for x_NTD in (inputs_NTD, targets_NTD))
        sample = torch.randperm(len(inputs_RD), generator=generator)[:count]
        return inputs_RD[sample].to(device, torch.float32), targets_RD[sample].to(device, torch.float32)

    inputs_RD, targets_RD = sample_tokens(~is_held_out_N, _MAX_TOKENS)
    held_out = sample_tokens(is_held_out_N, _MAX_TOKENS // (_HELD_OUT - 1))
    mlp = PlainMlp(site).to(torch.float32).requires_grad_(True)
    scale_D = scale_D.to(device, torch.float32)
    unit = targets_RD.square().mean().clamp(min=torch.finfo(torch.float32).tiny)

    def compute_error(inputs_BD: Tensor, targets_BD: Tensor) -> Tensor:
        residual_BD: Tensor = targets_BD - scale_D * mlp(inputs_BD)
        return residual_BD.square().mean() / unit

    def compute_held_out_error() -> float:
        with torch.no_grad():
            return compute_error(*held_out).item()

    optimizer, schedule = _build_optimizer(mlp, num_steps=epochs * math.ceil(len(inputs_RD) / _BATCH_TOKENS))
    least, best = compute_held_out_error(), None
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(inputs_RD), generator=generator).to(device), _BATCH_TOKENS):
            optimizer.zero_grad()
            with torch.enable_grad():
                torch.autograd.backward(compute_error(inputs_RD[batch], targets_RD[batch]))
            optimizer.step()
            schedule.step()
        error = compute_held_out_error()
        if error < least:
            least, best = error, copy.deepcopy(mlp.state_dict())
    if best is None:
        return False
    mlp.load_state_dict(best)
    mlp.to(site.down.weight.dtype).put_back(site)
    set_bias(site.down, mlp.down.bias)
    return True


def _build_optimizer(mlp: PlainMlp, *, num_steps: int) -> tuple[torch.optim.Adam, OneCycleLR]:
    weights = torch.cat([parameter.detach().flatten() for parameter in mlp.parameters() if parameter.ndim > 1])
    rate = _LEARNING_RATE * float(weights.square().mean().sqrt())
    optimizer = torch.optim.Adam(mlp.parameters(), lr=rate, betas=(0.9, 0.95))
    schedule = OneCycleLR(
        optimizer,
        max_lr=rate,
        total_steps=max(num_steps, _MIN_STEPS),
        pct_start=0.05,
        anneal_strategy="linear",
        cycle_momentum=False,
    )
    return optimizer, schedule
