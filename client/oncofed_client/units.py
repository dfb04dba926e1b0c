"""Units that a site may have and a plan may ask for: a small table of exact ratios.

Ratios are fractions, so that 1,440 months are 120 years and not a rounding error more, which a
declared range would refuse. A month is a twelfth of a Julian year of 365.25 days.
"""

from __future__ import annotations

from fractions import Fraction

__all__ = ["conversion", "known_units"]

_YEAR = Fraction(36525, 100)

_DIMENSIONS: dict[str, dict[str, Fraction]] = {
    "time": {
        "hours": Fraction(1, 24),
        "days": Fraction(1),
        "weeks": Fraction(7),
        "months": _YEAR / 12,
        "years": _YEAR,
    },
    "mass": {"mg": Fraction(1, 1000), "g": Fraction(1), "kg": Fraction(1000)},
    "dose": {"mGy": Fraction(1, 1000), "cGy": Fraction(1, 100), "Gy": Fraction(1)},
    "length": {"mm": Fraction(1, 1000), "cm": Fraction(1, 100), "m": Fraction(1)},
    "volume": {
        "mm3": Fraction(1, 1_000_000),
        "cm3": Fraction(1, 1000),
        "ml": Fraction(1, 1000),
        "l": Fraction(1),
    },
    "share": {"percent": Fraction(1, 100), "%": Fraction(1, 100), "fraction": Fraction(1)},
}
_SINGULAR = {"hour": "hours", "day": "days", "week": "weeks", "month": "months", "year": "years"}


def known_units() -> tuple[str, ...]:
    """All units that can be converted, for messages."""
    return tuple(unit for units in _DIMENSIONS.values() for unit in units)


def _place(unit: str) -> tuple[str, Fraction] | None:
    plain = _SINGULAR.get(unit.casefold(), unit).casefold()
    for dimension, units in _DIMENSIONS.items():
        for name, size in units.items():
            if name.casefold() == plain:
                return dimension, size
    return None


def conversion(source: str, target: str) -> Fraction | None:
    """Factor from `source` to `target`, or None where there is none.

    >>> conversion("months", "years")
    Fraction(1, 12)
    >>> conversion("kg", "years") is None
    True
    """
    if source == target:
        return Fraction(1)
    a, b = _place(source), _place(target)
    if a is None or b is None or a[0] != b[0]:
        return None
    return a[1] / b[1]
