"""Literal reading of the definition of neuron paths: one image, one node and one layer at a time.

Shares no code with the package. Hooks on `fc2` clamp hidden activations, and every clamped value is a leaf.
"""

# R clamped tokens, K classes, W neurons of a layer

import numpy as np
import torch


def build_quadrature(rule, nodes):
    """Return pairs of node and weight."""
    if rule == "left-riemann":
        return [(i / nodes, 1 / nodes) for i in range(nodes)]
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return [((x + 1) / 2, w / 2) for x, w in zip(points.tolist(), weights.tolist(), strict=True)]


class Reference:
    """One image `[C, H, W]` and a timm model in eval mode; `objective` maps the model's output `[1, K]` to a number."""

    def __init__(self, model, image, objective, rows, rule, nodes, first_nodes=None):
        self.model, self.image, self.objective, self.rows = model, image, objective, rows
        self.quadrature = build_quadrature(rule, nodes)
        self.first_quadrature = build_quadrature(rule, first_nodes or nodes)
        self.activations = self.record_activations(image)

    def record_activations(self, image):
        """Return the clamped tokens' inputs of every layer's fc2: per layer `[R, W_l]`."""
        recorded = []
        hooks = [
            block.mlp.fc2.register_forward_pre_hook(lambda _, args: recorded.append(args[0][0, self.rows].detach()))
            for block in self.model.blocks
        ]
        self.model(image[None])
        for hook in hooks:
            hook.remove()
        return recorded

    def evaluate(self, clamped, image=None):
        """Return the objective with layers clamped to given values: `{layer: [R, W_l]}`."""

        def build_hook(value):
            def hook(_, args):
                (u,) = args
                u = u.clone()
                u[0, self.rows] = value
                return (u,)

            return hook

        hooks = [
            self.model.blocks[layer].mlp.fc2.register_forward_pre_hook(build_hook(value))
            for layer, value in clamped.items()
        ]
        result = self.objective(self.model((self.image if image is None else image)[None]))
        for hook in hooks:
            hook.remove()
        return result

    def clamp_path(self, chosen, alpha):
        """Return v_s(α) of every layer with chosen neurons, as leaves."""
        values = {}
        for layer, neurons in enumerate(chosen):
            value = self.activations[layer].clone()
            value[:, neurons] *= alpha
            values[layer] = value.requires_grad_()
        return values

    def score_path(self, path):
        """Return the joint attribution score of a path with one neuron in every layer."""
        integral = 0.0
        for alpha, weight in self.quadrature:
            clamped = self.clamp_path([[neuron] for neuron in path], alpha)
            grads = torch.autograd.grad(self.evaluate(clamped), list(clamped.values()))
            integral += weight * sum(grad[:, neuron].sum() for grad, neuron in zip(grads, path, strict=True))
        return integral * sum(a[:, neuron].sum() for a, neuron in zip(self.activations, path, strict=True))

    def locate(self, top_k):
        """Locate layer by layer; return chosen neurons, scores and own terms of every layer."""
        chosen, all_scores, all_own = [], [], []
        for layer, a in enumerate(self.activations):
            g, c = torch.zeros_like(a), 0.0
            for alpha, weight in self.quadrature if chosen else self.first_quadrature:
                clamped = self.clamp_path(chosen, alpha)
                clamped[layer] = (alpha * a).requires_grad_()
                grads = torch.autograd.grad(self.evaluate(clamped), list(clamped.values()))
                g += weight * grads[layer]
                c += weight * sum(grads[s][:, neurons].sum() for s, neurons in enumerate(chosen))
            s = sum(self.activations[s][:, neurons].sum() for s, neurons in enumerate(chosen))
            scores = (g.sum(0) + c) * (a.sum(0) + s)
            chosen.append(scores.argsort(descending=True)[:top_k].tolist())
            all_scores.append(scores)
            all_own.append((a * g).sum(0))
        return chosen, all_scores, all_own

    def average_gradients(self):
        """Return every layer's gradient averaged over scaled inputs, with layers up to it clamped to their values."""
        averaged = [torch.zeros_like(a) for a in self.activations]
        for alpha, weight in self.quadrature:
            scaled = alpha * self.image
            own = self.record_activations(scaled)
            for layer in range(len(own)):
                clamped = {s: own[s].clone().requires_grad_() for s in range(layer + 1)}
                (grad,) = torch.autograd.grad(self.evaluate(clamped, scaled), clamped[layer])
                averaged[layer] += weight * grad
        return averaged
