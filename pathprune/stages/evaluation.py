"""The evaluation stage: outcomes of a model on every evaluation or validation image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

from pathprune.artifacts import Artifact, ArtifactKind, Codec
from pathprune.evaluation import Evaluation, evaluate_model
from pathprune.progress import image_progress
from pathprune.stages.context import Context
from pathprune.stages.images import Splits

EVALUATION: ArtifactKind[Evaluation] = ArtifactKind(
    "evaluations/{}.safetensors",
    inputs=("model", "variant", "images", "class_names", "head", "precision"),
    codec=Codec(Evaluation.save, Evaluation.load),
)

HeldOut = Literal["evaluate", "validation"]


class Evaluator:
    """Evaluations of the recipe's model and of its variants, shared by all processes."""

    def __init__(self, context: Context, splits: Splits) -> None:
        self._context, self._splits = context, splits

    def artifact(self, name: str, *, variant: str = "", use: HeldOut = "evaluate") -> Artifact[Evaluation]:
        """Describe an evaluation; `variant` is the key of the variant's model, empty for the dense model."""
        return EVALUATION.of(
            name,
            model=self._context.model_key,
            variant=variant,
            images=self._splits.of(use).key,
            class_names=self._splits.class_names,
            head=self._context.model.head_spec,
            precision=self._context.recipe.mixed_precision,
        )

    def evaluate(
        self,
        name: str,
        build: Callable[[], nn.Module],
        *,
        variant: str = "",
        reference: Evaluation | None = None,
        use: HeldOut = "evaluate",
    ) -> Evaluation:
        """Return the outcomes of the model that `build` returns; it is built only where they are not stored."""
        context = self._context

        def compute() -> Evaluation:
            images = self._splits.of(use).images
            loader = self._splits.batches(use, batch_size=context.recipe.evaluate.batch_size)
            with image_progress(disable=not context.accelerator.is_main_process) as progress:
                task = progress.add_task(f"evaluating {name}", total=len(images), note="")
                return evaluate_model(
                    context.model.classifier(build()),
                    loader,
                    accelerator=context.accelerator,
                    reference=reference,
                    class_names=self._splits.class_names,
                    description=name,
                    on_progress=lambda done: progress.update(task, completed=done),
                )

        return context.obtain_by_all(self.artifact(name, variant=variant, use=use), compute)

    def dense(self, use: HeldOut = "evaluate") -> Evaluation:
        """Return the outcomes of the dense model."""
        name = "dense" if use == "evaluate" else f"{use}/dense"
        return self.evaluate(name, lambda: self._context.model.module, use=use)
