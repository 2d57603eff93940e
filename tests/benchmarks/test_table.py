"""Table of all benchmarks: each part gives ratios."""

from tests.benchmarks.order import measure_order
from tests.benchmarks.table import print_table


def test_the_order_benchmark_gives_one_ratio_per_width(capsys):
    ratios = measure_order([8, 12], turns=1)
    assert [ratio.quantity.split(", ")[-1] for ratio in ratios] == ["8 neurons", "12 neurons"]
    assert all(ratio.value > 0 for ratio in ratios)
    print_table(ratios)
    assert len(capsys.readouterr().out.splitlines()) == 4
