"""Tests of the evaluator with logits written by hand, in one process and in two."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pathprune.evaluation import Evaluation, check_same_images, evaluate_model


class Lookup(nn.Module):
    """A model whose images [B, 1, 1, 1] hold an index into a table of logits."""

    def __init__(self, logits: list[list[float]]):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.dropout = nn.Dropout(0.9)

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(self.logits[images.flatten().long()])


LOGITS = [[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 2.0], [1.0, 1.0, 0.0]]
LABELS = [0, 2, 1, 1]


def dataset(labels: list[int]) -> TensorDataset:
    return TensorDataset(torch.arange(len(labels)).float().reshape(-1, 1, 1, 1), torch.tensor(labels))


def loader(labels: list[int], batch_size: int = 3) -> DataLoader:
    return DataLoader(dataset(labels), batch_size=batch_size)


def test_outcomes_match_hand_counts():
    seen = []
    result = evaluate_model(Lookup(LOGITS), loader(LABELS), class_names="abc", on_progress=seen.append)
    assert result.labels.tolist() == LABELS
    assert result.predictions.tolist() == [0, 1, 2, 0]  # equal logits: the first class wins
    assert result.label_ranks.tolist() == [0, 1, 2, 1]
    assert result.correct.tolist() == [True, False, False, False]
    expected = [-row[label] + math.log(sum(map(math.exp, row))) for row, label in zip(LOGITS, LABELS, strict=True)]
    np.testing.assert_allclose(result.nll, expected, rtol=1e-6)
    assert (result.num_classes, result.class_names, result.num_images) == (3, ("a", "b", "c"), 4)
    assert seen == [3, 4]


def test_summary_matches_hand_counts():
    dense = evaluate_model(Lookup(LOGITS), loader(LABELS))
    pruned = evaluate_model(
        Lookup([[2.0, 0, 0], [0, 0, 3.0], [0, 0, 2.0], [0, 0, 1.0]]), loader(LABELS), reference=dense
    )
    summary = pruned.summary()
    assert summary["top1"] == 0.5
    assert summary["top5"] == 1.0  # of three classes
    assert summary["nll"] == pytest.approx(pruned.nll.mean())
    assert summary["per_class"] == [1.0, 0.0, 1.0]
    assert summary["num_images"] == 4
    assert summary["agreement"] == 0.5  # dense 0 1 2 0, pruned 0 2 2 2
    assert "agreement" not in dense.summary()


def test_top5_of_seven_classes_counts_five_ranks():
    logits = [[float(6 - k) for k in range(7)]] * 3
    assert evaluate_model(Lookup(logits), loader([0, 4, 5])).summary()["top5"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_outcomes_do_not_depend_on_the_batch_size(batch_size):
    result = evaluate_model(Lookup(LOGITS), loader(LABELS, batch_size))
    assert result.predictions.tolist() == [0, 1, 2, 0]


def test_prepared_loader_and_plain_batches_give_equal_outcomes():
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(loader(LABELS))
    batches = [(images, labels) for images, labels in loader(LABELS)]
    for source in (prepared, batches):
        result = evaluate_model(Lookup(LOGITS), source, accelerator=accelerator)
        assert result.labels.tolist() == LABELS
        assert result.label_ranks.tolist() == [0, 1, 2, 1]


def test_evaluation_inside_an_epoch_of_another_loader_sees_all_images():
    """Accelerate's gather_for_metrics cuts rows to the last batch of the loader that is being iterated."""
    accelerator = Accelerator()
    for _ in accelerator.prepare_data_loader(loader([0] * 7, batch_size=3)):
        result = evaluate_model(Lookup(LOGITS), loader(LABELS), accelerator=accelerator)
        assert result.labels.tolist() == LABELS


def test_model_runs_in_eval_mode_and_returns_to_training_mode():
    model = Lookup(LOGITS).train()
    assert evaluate_model(model, loader(LABELS)).predictions.tolist() == [0, 1, 2, 0]  # no dropout
    assert model.training
    assert model.dropout.training
    assert model.logits.requires_grad


def test_unreadable_images_are_dropped():
    result = evaluate_model(Lookup(LOGITS), loader([0, -1, 1, -1], batch_size=2))
    assert result.labels.tolist() == [0, 1]
    assert result.predictions.tolist() == [0, 2]
    with pytest.raises(ValueError, match="no image of the loader can be read"):
        evaluate_model(Lookup(LOGITS), loader([-1, -1]))


@pytest.mark.parametrize(("label", "shown"), [(3, "3"), (1000, "1000"), (-2, "-2")])
def test_label_without_a_class_raises(label, shown):
    with pytest.raises(ValueError, match=rf"image 3 has the label {shown}, but dense has 3 classes, 0 to 2"):
        evaluate_model(Lookup(LOGITS), loader([0, 2, 1, label], batch_size=2), description="dense")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_raise(value):
    logits = [*LOGITS[:3], [0.0, value, 0.0]]
    with pytest.raises(ValueError, match=r"magnitude returns logits that are not finite .* first for image 3"):
        evaluate_model(Lookup(logits), loader(LABELS, batch_size=2), description="magnitude")


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="no images to evaluate"):
        evaluate_model(Lookup(LOGITS), [])
    with pytest.raises(ValueError, match="got 2 class names for a model with 3 classes"):
        evaluate_model(Lookup(LOGITS), loader(LABELS), class_names=["a", "b"])
    with pytest.raises(ValueError, match=r"must return logits \[3, classes\] for 3 images, got shape \(3, 1, 1, 1\)"):
        evaluate_model(nn.Conv2d(1, 1, 1), loader(LABELS))
    shuffled = evaluate_model(Lookup(LOGITS), loader(LABELS[::-1]))
    with pytest.raises(ValueError, match="not evaluated on the same images in the same order"):
        evaluate_model(Lookup(LOGITS), loader(LABELS), reference=shuffled)
    with pytest.raises(ValueError, match=r"'model' \(4 images\) and 'model' \(3 images\)"):
        check_same_images(shuffled, evaluate_model(Lookup(LOGITS), loader(LABELS[:3])))


def test_half_precision_logits_are_summed_in_float32():
    logits = [[60.0, 59.9, 0.0]]
    result = evaluate_model(Lookup(logits).bfloat16(), loader([0]))
    exact = torch.tensor(logits).bfloat16().double().log_softmax(1)[0, 0]
    assert result.nll[0] == pytest.approx(-float(exact), rel=1e-5)


def test_saved_evaluation_loads_unchanged(tmp_path):
    dense = evaluate_model(Lookup(LOGITS), loader(LABELS))
    pruned = evaluate_model(
        Lookup(LOGITS), loader(LABELS), reference=dense, class_names=["ä", "b", "c"], description="path 50 %"
    )
    for original in (dense, pruned):
        original.save(tmp_path / "outcome.safetensors")
        loaded = Evaluation.load(tmp_path / "outcome.safetensors")
        assert loaded.summary() == original.summary()
        for name in ("labels", "predictions", "label_ranks", "nll"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(original, name), strict=True)
        assert (loaded.class_names, loaded.description, loaded.num_classes) == (
            original.class_names,
            original.description,
            3,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["outcome.safetensors"]


def test_other_files_do_not_load(tmp_path):
    from safetensors.numpy import save_file

    save_file({"labels": np.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not an evaluation of format"):
        Evaluation.load(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="cannot read an evaluation"):
        Evaluation.load(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="cannot read an evaluation"):
        Evaluation.load(tmp_path / "absent.safetensors")


TWO_PROCESSES = """
import json
import sys
import torch
from accelerate import Accelerator
sys.path.insert(0, {folder!r})
from pathprune.evaluation import evaluate_model
from test_evaluator import Lookup, loader

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
logits = torch.eye(7).roll(1, 0).tolist()  # image i is classified (i - 1) mod 7
outcomes = []
for prepared in (False, True):
    batches = loader([0, 0, 1, 2, 3, -1, 6], batch_size=2)  # the second round of 2 x 2 is padded
    if prepared:
        batches = accelerator.prepare(batches)
    outcomes.append(evaluate_model(Lookup(logits), batches, accelerator=accelerator))
try:
    evaluate_model(Lookup(logits), loader([0, 9], batch_size=1), accelerator=accelerator)
except ValueError as error:
    message = str(error)
try:
    evaluate_model(Lookup(logits), [], accelerator=accelerator)
except ValueError as error:
    message += str(error)
report = [[o.labels.tolist() for o in outcomes], [o.predictions.tolist() for o in outcomes], message]
with open({out!r} + str(accelerator.process_index), "w") as file:
    json.dump(report, file)
accelerator.wait_for_everyone()
accelerator.end_training()  # open connections can abort a process that exits
"""


def test_two_processes_count_every_image_once(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES.format(folder=str(Path(__file__).parent), out=str(tmp_path / "out")))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors
    for rank in range(2):
        labels, predictions, message = json.loads((tmp_path / f"out{rank}").read_text())
        assert labels == [[0, 0, 1, 2, 3, 6]] * 2
        assert predictions == [[6, 0, 1, 2, 3, 5]] * 2
        assert "image 1 has the label 9" in message
        assert "2 processes can share only a torch DataLoader, got list" in message
