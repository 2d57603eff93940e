"""Block reconstruction: it learns what neurons' own weights can do, nothing that held-out images do not gain from."""

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


def site_of(mlp: nn.Module):
    return find_mlp(mlp.eval()).build_site("mlp", 0)


def missed(mlp: nn.Module, read: Tensor, wanted: Tensor) -> float:
    with torch.no_grad():
        return float((wanted - SCALE.float() * mlp(read)).square().mean())


def problem(kind: str) -> tuple[nn.Module, Tensor, Tensor]:
    """An MLP beside the one that made what is wanted, which has the same down-projection."""
    torch.manual_seed(0)
    maker, mlp = MLPS[kind](), MLPS[kind]()
    for parameter in maker.parameters():
        nn.init.normal_(parameter)
    mlp.load_state_dict(maker.state_dict())
    for layer in {up.layer for up in site_of(mlp).ups}:
        layer.weight.data += 0.3 * torch.randn_like(layer.weight)
    read = torch.randn(2 * N, T, D)
    with torch.no_grad():
        return mlp, read, SCALE.float() * maker.eval()(read)


@pytest.mark.parametrize("kind", MLPS)
def test_neurons_learn_what_no_fit_of_the_output_layer_gives(kind: str) -> None:
    mlp, read, wanted = problem(kind)
    site = site_of(mlp)
    hidden = find_mlp(mlp).hidden(read[N:]).flatten(0, 1).detach()
    hidden = torch.cat([hidden, torch.ones(len(hidden), 1)], dim=1)
    target = wanted[N:].flatten(0, 1)
    rest = target - hidden @ torch.linalg.lstsq(hidden, target).solution  # the best output layer for the very images
    mlp.requires_grad_(False)
    assert reconstruct(site, read[:N], wanted[:N], scale_D=SCALE, epochs=1000)
    assert missed(mlp, read[N:], wanted[N:]) < 0.3 * float(rest.square().mean())
    assert not any(parameter.requires_grad for parameter in mlp.parameters())


def test_of_very_many_tokens_a_sample_is_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, read, wanted = problem("plain")
    monkeypatch.setattr(reconstruction, "_MOST_ROWS", 128)
    seen: list[int] = []
    forward = PlainMlp.forward

    def counted(mlp: PlainMlp, x: Tensor) -> Tensor:
        seen.append(len(x))
        return forward(mlp, x)

    monkeypatch.setattr(PlainMlp, "forward", counted)
    before = missed(mlp, read[N:], wanted[N:])
    epochs = 300
    assert reconstruct(site_of(mlp), read[:N], wanted[:N], scale_D=SCALE, epochs=epochs)
    assert seen.count(128) == epochs
    assert set(seen) == {128, 128 // 7}, "rows that are learnt from, rows that are held out"
    assert missed(mlp, read[N:], wanted[N:]) < 0.5 * before


def test_noise_is_not_learnt() -> None:
    mlp, read, _ = problem("plain")
    wanted = torch.randn(16, T, D, generator=torch.Generator().manual_seed(1))
    mlp.fc2.weight.data.zero_()
    mlp.fc2.bias.data.zero_()
    held_out = torch.arange(16) % 8 == 7
    before = missed(mlp, read[:16][held_out], wanted[held_out])
    reconstruct(site_of(mlp), read[:16], wanted, scale_D=SCALE, epochs=100)
    assert missed(mlp, read[:16][held_out], wanted[held_out]) <= before


@pytest.mark.parametrize(("images", "epochs"), [(7, 30), (N, 0)])
def test_too_few_images_or_no_epochs_change_nothing(images: int, epochs: int) -> None:
    mlp, read, wanted = problem("plain")
    before = {name: tensor.clone() for name, tensor in mlp.state_dict().items()}
    assert not reconstruct(site_of(mlp), read[:images], wanted[:images], scale_D=SCALE, epochs=epochs)
    assert all(torch.equal(before[name], tensor) for name, tensor in mlp.state_dict().items())


@pytest.mark.parametrize("epochs", [1, 10, 20, 40])
def test_any_number_of_epochs_will_do(epochs: int) -> None:
    mlp, read, wanted = problem("plain")
    before = missed(mlp, read[:N], wanted[:N])
    assert reconstruct(site_of(mlp), read[:N], wanted[:N], scale_D=SCALE, epochs=epochs)
    assert missed(mlp, read[:N], wanted[:N]) < before


def test_the_type_stays() -> None:
    mlp, read, wanted = problem("plain")
    mlp = mlp.to(torch.bfloat16)
    assert reconstruct(site_of(mlp), read.bfloat16(), wanted.bfloat16(), scale_D=SCALE, epochs=20)
    assert {parameter.dtype for parameter in mlp.parameters()} == {torch.bfloat16}
