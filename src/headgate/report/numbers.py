"""Numbers as a reader wants them; between a number and its unit stands a space that does not break."""

from __future__ import annotations

import math


def amount(value: float) -> str:
    """A large number with three digits and a unit: 389 k, 1.47 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{_three(value / size)}\N{NO-BREAK SPACE}{unit}"
    return _three(value)


def whole(number: int) -> str:
    """A whole number in groups of three digits: 10 000."""
    return f"{number:,}".replace(",", "\N{NO-BREAK SPACE}")


def _three(value: float) -> str:
    if value == 0 or value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def times(ratio: float, digits: int = 2) -> str:
    """A ratio: 3.79×."""
    return "∞" if math.isinf(ratio) else f"{ratio:.{digits}f}×"


def percent(share: float, digits: int = 1) -> str:
    """A share in [0, 1]: 14.3 %."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def change(share: float) -> str:
    """A relative change with its sign: −26.4 %."""
    return f"{100 * share:+.1f}\N{NO-BREAK SPACE}%".replace("-", "−")


def points(difference: float) -> str:
    """A difference of shares, in points with its sign: −0.28."""
    text = f"{100 * difference:+.2f}"
    return "±0.00" if float(text) == 0 else text.replace("-", "−")


def standard_error(share: float, images: int) -> float:
    """Of a share measured on so many images (binomial)."""
    return math.sqrt(share * (1 - share) / images)
