"""Settings of the integral: default numbers of nodes, and refused settings."""

import pytest

from pathprune.mining import resolve_nodes
from pathprune.mining.integral import Integral


@pytest.mark.parametrize(
    ("tokens", "nodes", "first_nodes", "expected"),
    [
        ("class", None, None, (4, 4)),
        ("all", None, None, (6, 12)),
        ("all", 8, None, (8, 8)),
        ("all", None, 3, (6, 3)),
        ("class", 2, 5, (2, 5)),
    ],
)
def test_the_number_of_nodes_depends_on_the_tokens_unless_it_is_given(tokens, nodes, first_nodes, expected):
    assert resolve_nodes(tokens, nodes, first_nodes) == expected


def test_the_first_layer_has_its_own_quadrature():
    integral = Integral("left-riemann", nodes=2, first_nodes=4, tokens="all")
    assert integral.quadrature().alpha_M.tolist() == [0, 0.5]
    assert integral.first_quadrature().alpha_M.tolist() == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("rule", "nodes", "first_nodes", "message"),
    [
        ("simpson", 2, 2, "unknown quadrature rule 'simpson'; choose from gauss-legendre, left-riemann"),
        ("left-riemann", 0, 2, "nodes=0 is out of range: the integral needs at least 1 node"),
        ("left-riemann", 2, -1, "nodes=-1 is out of range"),
    ],
)
def test_bad_settings_are_refused(rule, nodes, first_nodes, message):
    with pytest.raises(ValueError, match=message):
        Integral(rule, nodes, first_nodes, "class")
