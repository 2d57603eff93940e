"""`python -m pathprune`, for launchers such as `accelerate launch -m pathprune`."""

from pathprune.cli import main

main()
