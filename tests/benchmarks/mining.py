"""Benchmark of mining: the published implementation against this package, which locates the same paths.

    python tests/benchmarks/mining.py [--checkpoint FOLDER --data SOURCE] [--images 32] [--device cuda] …

One process times all variants in turn (A B C D, A B C D, …), so that other load on the machine slows every variant
alike. The output shows median times per image. The published implementation mines image by image, so that a few images
are enough to time it. The output also shows the FLOPs of matrix products per image, relative to one forward pass.
"""

# B images, M nodes, L layers, W neurons of a layer

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from pathprune.models.adapt import adapt, evaluating, find_device
from pathprune.models.loading import load_model
from pathprune.models.seam import AdaptedModel


def locate_published_paths(adapted: AdaptedModel, images: Tensor, targets: Tensor, *, nodes: int = 20) -> Tensor:
    """Locate paths `[B, L]` as the published code does: image by image, with the nodes as one batch.

    Clean activations take one forward pass per layer. Every layer then takes a whole forward pass with the layers up to
    it clamped, and one backward pass for each clamped layer. The score of the finished path is not computed.
    """
    with evaluating(adapted.model):
        paths = [
            _locate_published_path(adapted, image[None], int(target), nodes)
            for image, target in zip(images, targets, strict=True)
        ]
    return torch.tensor(paths)


def _locate_published_path(adapted: AdaptedModel, image: Tensor, target: int, nodes: int) -> list[int]:
    num_layers = len(adapted.sites)
    with torch.no_grad():
        activations = [_record_activation(adapted, image, layer) for layer in range(num_layers)]
    alpha_M1 = (torch.arange(nodes, device=image.device, dtype=image.dtype) / nodes)[:, None]
    chosen: list[int] = []
    for layer, a_W in enumerate(activations):
        clamped = []
        for earlier_a_W, neuron in zip(activations, chosen, strict=False):
            v_MW = earlier_a_W.repeat(nodes, 1)
            v_MW[:, neuron] *= alpha_M1[:, 0]
            clamped.append(v_MW.requires_grad_())
        clamped.append((alpha_M1 * a_W).requires_grad_())
        p_M = _run_clamped(adapted, image.expand(nodes, -1, -1, -1), clamped).softmax(-1)[:, target]
        grads = [torch.autograd.grad(p_M.sum(), v_MW, retain_graph=True)[0].mean(0) for v_MW in clamped]
        earlier_g = sum(grad_W[neuron] for grad_W, neuron in zip(grads, chosen, strict=False))
        earlier_a = sum(a[neuron] for a, neuron in zip(activations, chosen, strict=False))
        chosen.append(int(((grads[layer] + earlier_g) * (a_W + earlier_a)).argmax()))
    return chosen


def _record_activation(adapted: AdaptedModel, image: Tensor, layer: int) -> Tensor:
    """Return the class token's input of one layer's down-projection, `[W]`."""
    recorded: list[Tensor] = []
    hook = adapted.sites[layer].down.register_forward_pre_hook(lambda _, args: recorded.append(args[0][0, 0]))
    adapted.model(image)
    hook.remove()
    return recorded[0]


def _run_clamped(adapted: AdaptedModel, images: Tensor, clamped: Sequence[Tensor]) -> Tensor:
    """Return the logits with the class token's hidden activations of the first layers replaced, each by `[M, W]`."""

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


class FlopCounter(TorchDispatchMode):
    """Counter of the FLOPs of matrix products and convolutions inside its context.

    torch's `FlopCounterMode` tracks modules with hooks that do not work with gradients with respect to leaves.
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
    """Return the FLOPs of a call of `run`."""
    # torch lacks a FLOP formula for fused attention on some devices
    with sdpa_kernel(SDPBackend.MATH), FlopCounter() as counter:
        run()
    return counter.total


def measure_seconds(run: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """Return the wall time of a call of `run` in seconds, and its result."""
    start = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


def load_inputs(options: argparse.Namespace) -> tuple[AdaptedModel, Tensor, Tensor]:
    """Return the model, images and labels of the options, random without a checkpoint or data."""
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


def build_variants(adapted: AdaptedModel) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return the timed variants by name, the published implementation first: images, labels -> paths `[B, L]`."""

    def locate(images: Tensor, labels: Tensor, **settings: Any) -> Tensor:
        return locate_paths(adapted, images, labels, **settings).paths.squeeze(-1).cpu()

    return {
        "(a) as published, 20 left Riemann": partial(locate_published_paths, adapted),
        "(b) ours, 20 left Riemann": partial(locate, rule="left-riemann", nodes=20),
        "(c) ours, 4 Gauss-Legendre": locate,
        "(c) in bf16": partial(locate, dtype=torch.bfloat16),
        "(d) ours, 2 Gauss-Legendre, bf16": partial(locate, nodes=2, dtype=torch.bfloat16),
        "    ours, 2 Gauss-Legendre": partial(locate, nodes=2),
    }


@dataclass(frozen=True)
class Measurement:
    """Cost of a variant per image, and the paths of the images that it was timed on."""

    seconds: float  # median
    flops: float
    paths: Tensor


def measure_variants(
    adapted: AdaptedModel, images: Tensor, labels: Tensor, *, published_images: int, repeats: int
) -> tuple[Measurement, dict[str, Measurement]]:
    """Return the measurements of a forward pass (without paths) and of every variant.

    The published implementation is timed on the first `published_images` of the images.
    """
    variants = build_variants(adapted)
    device = find_device(adapted.model)
    batch = images.repeat(4, 1, 1, 1)  # as many images as (c) runs at once

    @torch.no_grad()
    def infer() -> Tensor:
        logits: Tensor = adapted.model(batch)
        return logits

    with evaluating(adapted.model):
        forward_flops = count_flops(infer) / len(batch)
    # on one image; the call also initialises what torch prepares on first use, before any timing
    flops = {name: count_flops(partial(run, images[:1], labels[:1])) for name, run in variants.items()}
    published, *_ = variants
    num_images = dict.fromkeys(variants, len(images)) | {published: published_images}

    forward_seconds: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    paths: dict[str, Tensor] = {}
    for _ in range(repeats):
        forward_seconds.append(measure_seconds(infer, device)[0] / len(batch))
        for name, run in variants.items():
            number = num_images[name]
            elapsed, paths[name] = measure_seconds(partial(run, images[:number], labels[:number]), device)
            seconds[name].append(elapsed / number)
    forward = Measurement(statistics.median(forward_seconds), forward_flops, torch.zeros(0))
    return forward, {name: Measurement(statistics.median(seconds[name]), flops[name], paths[name]) for name in variants}


def print_results(forward: Measurement, variants: Mapping[str, Measurement], *, converged: Tensor) -> None:
    """Print a table with one line per variant; `converged` are the paths of 16 Gauss-Legendre nodes."""
    rate = forward.flops / forward.seconds
    published, same_nodes, *_ = variants.values()
    print(f"the published implementation is timed on {len(published.paths)} of the images, one by one")
    print(f"inference: {1 / forward.seconds:,.1f} images/s, {rate / 1e9:,.0f} GFLOP/s\n")
    print(f"{'':36}{'speed-up':>9}{'images/s':>10}{'forwards':>10}{'of FLOP rate':>14}{'agreement':>11}")
    for name, variant in variants.items():
        speedup, forwards = published.seconds / variant.seconds, variant.flops / forward.flops
        share = variant.flops / variant.seconds / rate
        agreement = measure_agreement(variant.paths, converged)
        columns = f"{speedup:8.1f}x{1 / variant.seconds:10.2f}{forwards:10.1f}{share:14.0%}{agreement:11.1%}"
        print(f"{name:36}{columns}")
    print("\nforwards: FLOPs per image, relative to one forward pass")
    print("agreement: share of path neurons that agree with 16 Gauss-Legendre nodes")
    print(f"(a) and (b) agree on {measure_agreement(published.paths, same_nodes.paths):.1%} of path neurons")


def measure_agreement(paths: Tensor, reference: Tensor) -> float:
    """Return the share of equal neurons, over the images that `paths` `[B, L]` has."""
    return (paths == reference[: len(paths)]).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="folder of a model with a class token; default: a random ViT-S at 56 px")
    parser.add_argument("--data", help="source of the images; default: random noise")
    parser.add_argument("--split", default="test", help="split of the source")
    parser.add_argument("--images", type=int, default=32, help="images per measurement, mined as one batch")
    parser.add_argument("--published-images", type=int, default=2, help="images for the published implementation")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each variant")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, …")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    adapted, images, labels = load_inputs(options)
    forward, variants = measure_variants(
        adapted, images, labels, published_images=options.published_images, repeats=options.repeats
    )
    is_cuda = images.device.type == "cuda"
    device_name = torch.cuda.get_device_name(images.device) if is_cuda else f"CPU, {options.threads} threads"
    print(f"{len(adapted.sites)} blocks, {len(images)} images at once, {options.repeats} turns, {device_name}")
    converged = locate_paths(adapted, images, labels, nodes=16).paths.squeeze(-1).cpu()
    print_results(forward, variants, converged=converged)


if __name__ == "__main__":
    main()
