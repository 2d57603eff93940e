"""Latency and memory of dense and pruned models, side by side."""
