"""Compensations that come with pathprune."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pathprune.pruning.compensation import Compensation, CompensationContext, register

if TYPE_CHECKING:
    from pathprune.models.seam import AdaptedModel


@register("none")
class NoCompensation(Compensation):
    """No compensation: the kept weights stay as they are."""

    def __call__(self, pruned: AdaptedModel, context: CompensationContext) -> None:
        return None


@register("mean")
class MeanShift(Compensation):
    """Mean shift: the bias takes over the average contribution of the removed neurons.

    `b2 += W2[:, P] μ_P` for removed neurons P with mean activations μ_P, as in Variance-Based Pruning
    (arXiv 2507.12988).
    """

    needs_statistics: ClassVar[bool] = True

    def __call__(self, pruned: AdaptedModel, context: CompensationContext) -> None:
        from pathprune.pruning.mean_shift import shift_biases

        shift_biases(pruned, context)


@register("least-squares")
class LeastSquares(Compensation):
    """Ridge regression of the removed neurons on the kept ones, in each block alone.

    With kept neurons K, removed neurons P, and means μ and covariances Σ of their activations:
    `R = Σ_PK (Σ_KK + λI)⁻¹`, `W2[:, K] += W2[:, P] R`, `b2 += W2[:, P] (μ_P − R μ_K)`, as in CORP (arXiv 2602.05243).
    All activations are the dense model's, so errors of earlier blocks stay; `sequential` corrects them.
    """

    needs_statistics: ClassVar[bool] = True
    needs_covariance: ClassVar[bool] = True

    ridge: float = Field(
        1e-3,
        ge=0,
        allow_inf_nan=False,
        description="Ridge λ, relative to the mean variance of the kept neurons. A larger ridge brings the result "
        "closer to the mean shift.",
    )

    def __call__(self, pruned: AdaptedModel, context: CompensationContext) -> None:
        from pathprune.pruning.least_squares import refit_by_least_squares

        refit_by_least_squares(pruned, context, ridge=self.ridge)


@register("sequential")
class Sequential(Compensation):
    """Least squares on the residual stream, block after block: the strongest compensation.

    Each block is fitted in the pruned model, so it also corrects the errors of earlier blocks. The target of the
    down-projection is `(dense block output − pruned state before the MLP) / γ`, where γ is the LayerScale (1 without).
    Fitting starts at the first pruned block and includes later blocks that keep every neuron.

    The ridge of each output is scaled by `mean(γ²) / γ²`, since outputs that barely reach the stream would get huge
    weights. In attention, the output projection is fitted to the dense model's state before the MLP, all other layers
    to the dense model's outputs. With token weights, the last block of a model that reads the class token is fitted to
    this token alone. Reconstruction keeps the epoch with the least error on held-out images.
    """

    needs_batches: ClassVar[bool] = True

    ridge: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["cross-validated"] = Field(
        "cross-validated",
        description="Penalty on the change from the dense weights, relative to the mean variance of the layer's "
        "inputs. cross-validated: chosen for each layer by fits on one half of the images, tested on the other half.",
    )
    token_weights: bool = Field(False, description="Weigh each token by the sensitivity of the model's output to it.")
    refit_attention: bool = Field(
        True, description="Also refit the attention's linear layers behind the first pruned block."
    )
    reconstruct: int = Field(
        10,
        ge=0,
        description="Epochs of gradient descent on both layers of each MLP, after the fit and towards the same "
        "target. 0: none.",
    )

    def __call__(self, pruned: AdaptedModel, context: CompensationContext) -> None:
        from pathprune.pruning.sequential import refit_sequentially

        refit_sequentially(
            pruned,
            context,
            ridge=self.ridge,
            token_weights=self.token_weights,
            refit_attention=self.refit_attention,
            epochs=self.reconstruct,
        )
