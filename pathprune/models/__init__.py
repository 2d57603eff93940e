"""Models: loading, adaptation to neuron sites, narrowing, and checkpoints of pruned models."""
