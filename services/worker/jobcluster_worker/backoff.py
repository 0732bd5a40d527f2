"""How long to wait before something is tried again."""

from __future__ import annotations

import random
from collections.abc import Iterator


def delays(
    first_seconds: float = 0.2, most_seconds: float = 10.0, *, source: random.Random | None = None
) -> Iterator[float]:
    """Seconds before each next try: they double up to a bound, with jitter so that many workers do not come at once."""
    source = source or random.Random()
    bound = first_seconds
    while True:
        yield bound * source.uniform(0.5, 1.0)
        bound = min(most_seconds, bound * 2)
