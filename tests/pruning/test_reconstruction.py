"""Tests of block reconstruction: training of input weights, and early stopping on held-out images."""

from dataclasses import dataclass

import pytest
import torch
from timm.layers import Mlp, SwiGLU, SwiGLUPacked
from torch import Tensor, nn

from pathprune.models.graph import PlainMlp
from pathprune.models.mlp import find_mlp
from pathprune.pruning import reconstruction
from pathprune.pruning.reconstruction import reconstruct

D, K, N, T = 6, 5, 64, 4
MLPS = {
    "plain": lambda: Mlp(D, K),
    "gated": lambda: SwiGLU(D, K, norm_layer=nn.LayerNorm),
    "packed": lambda: SwiGLUPacked(D, 2 * K),
}
SCALE = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.1, 0.0], dtype=torch.float64)


def find_site(mlp: nn.Module):
    return find_mlp(mlp.eval()).build_site("mlp", 0)


def compute_error(mlp: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        return float((targets - SCALE.float() * mlp(inputs)).square().mean())


@dataclass(frozen=True)
class Problem:
    """An MLP to train, with inputs and targets `[2 N, T, D]`."""

    mlp: nn.Module
    inputs: Tensor
    targets: Tensor


def make_problem(kind: str) -> Problem:
    """Make an MLP and targets from a second MLP with the same down-projection."""
    torch.manual_seed(0)
    target_mlp, mlp = MLPS[kind](), MLPS[kind]()
    for parameter in target_mlp.parameters():
        nn.init.normal_(parameter)
    mlp.load_state_dict(target_mlp.state_dict())
    for layer in {up.layer for up in find_site(mlp).ups}:
        layer.weight.data += 0.3 * torch.randn_like(layer.weight)
    inputs = torch.randn(2 * N, T, D)
    with torch.no_grad():
        return Problem(mlp, inputs, SCALE.float() * target_mlp.eval()(inputs))


@pytest.mark.parametrize("kind", MLPS)
def test_training_both_layers_beats_the_best_output_layer(kind: str) -> None:
    problem = make_problem(kind)
    mlp, inputs, targets = problem.mlp, problem.inputs, problem.targets
    site = find_site(mlp)
    hidden = find_mlp(mlp).hidden(inputs[N:]).flatten(0, 1).detach()
    hidden = torch.cat([hidden, torch.ones(len(hidden), 1)], dim=1)
    target = targets[N:].flatten(0, 1)
    # of the best output layer, fitted to the test images themselves
    residual = target - hidden @ torch.linalg.lstsq(hidden, target).solution
    mlp.requires_grad_(False)
    assert reconstruct(site, inputs[:N], targets[:N], scale_D=SCALE, epochs=1000)
    assert compute_error(mlp, inputs[N:], targets[N:]) < 0.3 * float(residual.square().mean())
    assert not any(parameter.requires_grad for parameter in mlp.parameters())


def test_training_samples_at_most_so_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem("plain")
    mlp, inputs, targets = problem.mlp, problem.inputs, problem.targets
    monkeypatch.setattr(reconstruction, "_MAX_TOKENS", 128)
    num_tokens: list[int] = []
    forward = PlainMlp.forward

    def count_tokens(mlp: PlainMlp, x: Tensor) -> Tensor:
        num_tokens.append(len(x))
        return forward(mlp, x)

    monkeypatch.setattr(PlainMlp, "forward", count_tokens)
    before = compute_error(mlp, inputs[N:], targets[N:])
    epochs = 300
    assert reconstruct(find_site(mlp), inputs[:N], targets[:N], scale_D=SCALE, epochs=epochs)
    assert num_tokens.count(128) == epochs
    assert set(num_tokens) == {128, 128 // 7}, "training tokens and held-out tokens"
    assert compute_error(mlp, inputs[N:], targets[N:]) < 0.5 * before


def test_training_on_noise_does_not_raise_the_held_out_error() -> None:
    problem = make_problem("plain")
    mlp, inputs = problem.mlp, problem.inputs[:16]
    targets = torch.randn(16, T, D, generator=torch.Generator().manual_seed(1))
    mlp.fc2.weight.data.zero_()
    mlp.fc2.bias.data.zero_()
    held_out = torch.arange(16) % 8 == 7
    before = compute_error(mlp, inputs[held_out], targets[held_out])
    reconstruct(find_site(mlp), inputs, targets, scale_D=SCALE, epochs=100)
    assert compute_error(mlp, inputs[held_out], targets[held_out]) <= before


@pytest.mark.parametrize(("images", "epochs"), [(7, 30), (N, 0)])
def test_too_few_images_or_no_epochs_change_nothing(images: int, epochs: int) -> None:
    problem = make_problem("plain")
    before = {name: tensor.clone() for name, tensor in problem.mlp.state_dict().items()}
    inputs, targets = problem.inputs[:images], problem.targets[:images]
    assert not reconstruct(find_site(problem.mlp), inputs, targets, scale_D=SCALE, epochs=epochs)
    assert all(torch.equal(before[name], tensor) for name, tensor in problem.mlp.state_dict().items())


@pytest.mark.parametrize("epochs", [1, 10, 20, 40])
def test_any_number_of_epochs_lowers_the_error(epochs: int) -> None:
    problem = make_problem("plain")
    inputs, targets = problem.inputs[:N], problem.targets[:N]
    before = compute_error(problem.mlp, inputs, targets)
    assert reconstruct(find_site(problem.mlp), inputs, targets, scale_D=SCALE, epochs=epochs)
    assert compute_error(problem.mlp, inputs, targets) < before


def test_parameters_keep_their_dtype() -> None:
    problem = make_problem("plain")
    mlp = problem.mlp.to(torch.bfloat16)
    inputs, targets = problem.inputs.bfloat16(), problem.targets.bfloat16()
    assert reconstruct(find_site(mlp), inputs, targets, scale_D=SCALE, epochs=20)
    assert {parameter.dtype for parameter in mlp.parameters()} == {torch.bfloat16}
