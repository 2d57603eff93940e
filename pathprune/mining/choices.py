"""Choices of mining by name: the values of settings, apart from the code behind them, so that recipes load fast."""

from __future__ import annotations

from typing import Literal, get_args

Method = Literal["jas", "activation", "influence-pattern"]
"""Location of a path: by joint attribution score, or by one of the paper's baselines."""
METHODS: tuple[Method, ...] = get_args(Method)

Rule = Literal["gauss-legendre", "left-riemann"]
"""Quadrature rule of an integral over α."""
RULES: tuple[Rule, ...] = get_args(Rule)

Tokens = Literal["class", "all"]
"""Tokens that are clamped: those that the head reads, or all."""
TOKENS: tuple[Tokens, ...] = get_args(Tokens)

Statistic = Literal["count", "mass", "published-mass"]
"""Statistic of a neuron, summed over the images of a class."""
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)

ClassSource = Literal["label", "prediction"]
"""Source of an image's class."""
