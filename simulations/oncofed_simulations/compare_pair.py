"""Two variants of a finished comparison against each other, over the same folds.

python -m oncofed_simulations.compare_pair out/planted two_way concat
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from oncofed_shared.errors import ConfigError
from oncofed_simulations.compare_statistics import Estimate, over_folds

__all__ = ["main", "paired"]


def paired(out: Path, first: str, second: str) -> dict[str, Estimate]:
    """The difference of two variants' scores, per task, tested one-tailed for the first being better.

    Args:
        out: folder of a comparison over folds.
        first, second: names of variants in it.

    Raises:
        ConfigError: there is no comparison, it held out hospitals, or it has no variant of a name.
    """
    try:
        content = json.loads((out / "compare.json").read_bytes())
        folds, variants = content["protocol"]["folds"], content["variants"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{out}: holds no finished comparison; run `oncofed-simulate compare` into it first"
        ) from None
    if folds is None:
        raise ConfigError(f"{out}: held out hospitals; pairs are compared over folds")
    unknown = [name for name in (first, second) if name not in variants]
    if unknown:
        raise ConfigError(f"{out}: has no variant {' and no '.join(unknown)}; it has {', '.join(variants)}")
    made = {}
    for task, entry in variants[first].items():
        pairs = zip(entry["folds"], variants[second][task]["folds"], strict=True)
        differences = [a - b for a, b in pairs if a is not None and b is not None]
        # A fold is tested and all others train.
        found = over_folds(differences, 1 / (folds - 1))
        if found is not None:
            made[task] = found
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the differences.

    Raises:
        ConfigError: as `paired`, or there are not three arguments.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 3:
        raise ConfigError("expected a folder of a comparison and the names of two variants")
    for task, found in paired(Path(given[0]), given[1], given[2]).items():
        low, high = found.interval()
        p = found.p(corrected=True)
        print(f"{given[1]} - {given[2]}: {task} {found.value:+.4f} (95 % {low:+.4f} to {high:+.4f}), p {p:.5f}")


if __name__ == "__main__":
    main()
