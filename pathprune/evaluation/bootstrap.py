"""Bootstrap confidence intervals over images.

If images have few distinct outcomes (for two models: both correct, only the first, only the second, none), a bootstrap
sample of the images is one multinomial draw of the outcomes' counts. It needs no image indices, and 10,000 samples take
milliseconds. A mean of continuous values needs image indices, and takes fewer samples.
"""

# N images, R resamples, K outcomes

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000
_NUM_INDEX_RESAMPLES = 2_000  # of N indices each
_SEED = 0  # the same outcomes give the same interval


def resample_counts(
    counts_K: NDArray[np.int64], *, num_resamples: int = NUM_RESAMPLES, rng: np.random.Generator | None = None
) -> NDArray[np.int64]:
    """Draw bootstrap samples of images, given the number of images with each outcome: `[K]` -> `[R, K]`."""
    rng = rng or np.random.default_rng(_SEED)
    return rng.multinomial(counts_K.sum(), counts_K / counts_K.sum(), size=num_resamples)


def percentile_interval(values_R: NDArray[np.float64]) -> Interval:
    """Return the central 95 % of a statistic's bootstrap samples: `[R]` -> `(low, high)`."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values_R, [tail, 100 - tail])
    return float(low), float(high)


def mean_interval(values_N: NDArray[np.float64]) -> Interval:
    """Return the 95 % bootstrap interval of a mean over images: `[N]` -> `(low, high)`."""
    rng = np.random.default_rng(_SEED)
    means_R = rng.choice(values_N, size=(_NUM_INDEX_RESAMPLES, len(values_N))).mean(axis=1)
    return percentile_interval(means_R)


def excludes_zero(interval: Interval) -> bool:
    """Return whether an interval lies wholly above or wholly below 0."""
    low, high = interval
    return low > 0 or high < 0
