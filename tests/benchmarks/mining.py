"""Time mining: the definition as published, and this package's way to the same paths.

    python tests/benchmarks/mining.py [--checkpoint FOLDER --data SOURCE] [--images 32] [--device cuda] …

Variants are timed in one process and in turn (A B C D, A B C D, …), so that a busy machine slows all alike; printed are
medians of the time an image takes. The published way goes image by image, so that a few of the images are enough to
time it. Cost is also counted: the FLOPs of matrix products per image, in units of one plain forward pass.
"""

# B images, M nodes, L layers, W neurons of a layer

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pathprune.data import evaluation_transform, open_source, read_split, sample_balanced
from pathprune.mining import locate_paths
from pathprune.models.adapt import adapt, evaluating, model_device
from pathprune.models.loading import load_model
from pathprune.models.seam import AdaptedModel


def published_paths(adapted: AdaptedModel, images: Tensor, targets: Tensor, *, nodes: int = 20) -> Tensor:
    """Locate paths `[B, L]` as the published code does: image by image, its nodes as one batch.

    Clean activations take a forward pass per layer; every layer's step a whole forward pass with the layers up to it
    clamped, and a backward pass for each of them. The score of the finished path is left out.
    """
    with evaluating(adapted.model):
        paths = [_published_path(adapted, image[None], int(y), nodes) for image, y in zip(images, targets, strict=True)]
    return torch.tensor(paths)


def _published_path(adapted: AdaptedModel, image: Tensor, target: int, nodes: int) -> list[int]:
    num_layers = len(adapted.sites)
    with torch.no_grad():
        activations = [_hidden_row(adapted, image, layer) for layer in range(num_layers)]
    alpha_M1 = (torch.arange(nodes, device=image.device, dtype=image.dtype) / nodes)[:, None]
    chosen: list[int] = []
    for layer, a_W in enumerate(activations):
        clamped = []
        for earlier_a_W, neuron in zip(activations, chosen, strict=False):
            v_MW = earlier_a_W.repeat(nodes, 1)
            v_MW[:, neuron] *= alpha_M1[:, 0]
            clamped.append(v_MW.requires_grad_())
        clamped.append((alpha_M1 * a_W).requires_grad_())
        p_M = _clamped_logits(adapted, image.expand(nodes, -1, -1, -1), clamped).softmax(-1)[:, target]
        grads = [torch.autograd.grad(p_M.sum(), v_MW, retain_graph=True)[0].mean(0) for v_MW in clamped]
        earlier_g = sum(grad_W[neuron] for grad_W, neuron in zip(grads, chosen, strict=False))
        earlier_a = sum(a[neuron] for a, neuron in zip(activations, chosen, strict=False))
        chosen.append(int(((grads[layer] + earlier_g) * (a_W + earlier_a)).argmax()))
    return chosen


def _hidden_row(adapted: AdaptedModel, image: Tensor, layer: int) -> Tensor:
    """The class token's input of one layer's down-projection, `[W]`."""
    seen: list[Tensor] = []
    hook = adapted.sites[layer].down.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, 0]))
    adapted.model(image)
    hook.remove()
    return seen[0]


def _clamped_logits(adapted: AdaptedModel, images: Tensor, clamped: Sequence[Tensor]) -> Tensor:
    """The model's logits with the class token's hidden rows of the first layers replaced, each by `[M, W]`."""

    def clamp(v_MW: Tensor, _: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        return (torch.cat([v_MW[:, None], args[0][:, 1:]], dim=1),)

    hooks = [
        site.down.register_forward_pre_hook(partial(clamp, v_MW))
        for site, v_MW in zip(adapted.sites, clamped, strict=False)
    ]
    logits: Tensor = adapted.model(images)
    for hook in hooks:
        hook.remove()
    return logits


class CountedFlops(TorchDispatchMode):
    """Counts the FLOPs of matrix products and convolutions while it is active.

    torch's own `FlopCounterMode` follows modules by hooks that gradients with respect to leaves do not allow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def count_flops(run: Callable[[], object]) -> int:
    # fused attention has no formula on every device
    with sdpa_kernel(SDPBackend.MATH), CountedFlops() as counted:
        run()
    return counted.total


def timed(run: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """Seconds of wall time, and what `run` returned."""
    start = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


def load(options: argparse.Namespace) -> tuple[AdaptedModel, Tensor, Tensor]:
    """The model, images and their labels: a checkpoint's, or random ones."""
    torch.manual_seed(0)
    if options.checkpoint is None:
        model = timm.create_model("vit_small_patch14_dinov2", img_size=56, num_classes=10)
        data_config = {"input_size": (3, 56, 56)}
    else:
        loaded = load_model(options.checkpoint)
        model, data_config = loaded.model, loaded.data_config
    adapted = adapt(model.eval().to(options.device))
    if options.data is None:
        images = torch.randn(options.images, *data_config["input_size"])
        labels = torch.randint(adapted.num_classes, (options.images,))
    else:
        split = read_split(open_source(options.data), options.split)
        split = sample_balanced(split, num_images=options.images, seed=0)
        split = split.with_transform(evaluation_transform(data_config))
        items = [split[item] for item in range(len(split))]
        images, labels = torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])
    return adapted, images.to(options.device), labels.to(options.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="folder of a model with a class token; default: a random ViT-S at 56 px")
    parser.add_argument("--data", help="source of the images; default: noise")
    parser.add_argument("--split", default="test", help="split of the source")
    parser.add_argument("--images", type=int, default=32, help="images mined in one measurement, as one batch")
    parser.add_argument("--published-images", type=int, default=2, help="of these, images mined the published way")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each variant")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, …")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    adapted, images, labels = load(options)
    device = model_device(adapted.model)

    def ours(images: Tensor, labels: Tensor, **settings: Any) -> Tensor:
        return locate_paths(adapted, images, labels, **settings).paths.squeeze(-1).cpu()

    variants: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "(a) as published, 20 left Riemann": partial(published_paths, adapted),
        "(b) ours, 20 left Riemann": partial(ours, rule="left-riemann", nodes=20),
        "(c) ours, 4 Gauss-Legendre": ours,
        "(c) in bf16": partial(ours, dtype=torch.bfloat16),
        "(d) ours, 2 Gauss-Legendre, bf16": partial(ours, nodes=2, dtype=torch.bfloat16),
        "    ours, 2 Gauss-Legendre": partial(ours, nodes=2),
    }
    with evaluating(adapted.model), torch.no_grad():
        batch = images.repeat(4, 1, 1, 1)  # the rows of (c)
        forward_flops = count_flops(lambda: adapted.model(batch)) / len(batch)
    # counted on one image, which also is the untimed turn that prepares what is used first
    flops = {name: count_flops(partial(run, images[:1], labels[:1])) for name, run in variants.items()}
    converged = ours(images, labels, nodes=16)
    published, *_ = variants
    num_images = {name: len(images) for name in variants} | {published: options.published_images}

    def infer() -> Tensor:
        with torch.no_grad():
            logits: Tensor = adapted.model(batch)
        return logits

    timings: dict[str, list[float]] = {name: [] for name in ["inference", *variants]}
    paths: dict[str, Tensor] = {}
    for _ in range(options.repeats):
        timings["inference"].append(timed(infer, device)[0])
        for name, run in variants.items():
            number = num_images[name]
            taken, paths[name] = timed(partial(run, images[:number], labels[:number]), device)
            timings[name].append(taken / number)
    seconds = {name: statistics.median(values) for name, values in timings.items()}
    rate = forward_flops * len(batch) / seconds["inference"]

    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {options.threads} threads"
    print(f"{len(adapted.sites)} blocks, {len(images)} images at once, {options.repeats} turns, {where}")
    print(f"the published way is timed on {num_images[published]} of the images, one by one")
    print(f"plain inference: {len(batch) / seconds['inference']:,.1f} images/s, {rate / 1e9:,.0f} GFLOP/s\n")
    print(f"{'':36}{'speed-up':>9}{'images/s':>10}{'forwards':>10}{'of FLOP rate':>14}{'agreement':>11}")
    for name in variants:
        agreement = (paths[name] == converged[: num_images[name]]).double().mean().item()
        share = flops[name] / seconds[name] / rate
        columns = (
            f"{seconds[published] / seconds[name]:8.1f}x{1 / seconds[name]:10.2f}{flops[name] / forward_flops:10.1f}"
        )
        print(f"{name:36}{columns}{share:14.0%}{agreement:11.1%}")
    print("\nforwards: FLOPs an image in plain forward passes; agreement: path neurons as with 16 Gauss-Legendre nodes")
    at_the_same_nodes = paths["(b) ours, 20 left Riemann"][: num_images[published]]
    same = (paths[published] == at_the_same_nodes).double().mean().item()
    print(f"(a) and (b) agree on {same:.1%} of path neurons")


if __name__ == "__main__":
    main()
