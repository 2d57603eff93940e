"""Evaluate models: accuracy with intervals, agreement, cost, latency."""
