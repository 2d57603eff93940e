"""The `pathprune` command.

Commands import the packages they need when they run, so that `pathprune --help` does not wait for torch.
"""

from pathprune.cli.app import main

__all__ = ["main"]
