"""Structured pruning of Vision Transformers, guided by neuron paths (arXiv 2503.09046)."""

__version__ = "0.1.0"
