"""Hooks are removed when their context is left, also after an error inside it or while they are registered."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pathprune.models.hooks import attach_hooks


def test_hooks_run_inside_the_context_only():
    layer, calls = nn.Linear(2, 2), []
    with attach_hooks(layer.register_forward_hook(lambda *_: calls.append(1)) for _ in range(2)):
        layer(torch.zeros(2))
    layer(torch.zeros(2))
    assert len(calls) == 2


def test_hooks_are_removed_after_an_error_inside_the_context():
    layer = nn.Linear(2, 2)
    with pytest.raises(KeyError), attach_hooks([layer.register_forward_hook(lambda *_: None)]):
        raise KeyError
    assert not layer._forward_hooks


def test_hooks_are_removed_when_a_later_registration_fails():
    layer = nn.Linear(2, 2)

    def register() -> Iterator[RemovableHandle]:
        yield layer.register_forward_hook(lambda *_: None)
        assert layer._forward_hooks
        raise KeyError

    with pytest.raises(KeyError), attach_hooks(register()):
        pass
    assert not layer._forward_hooks
