"""How a study makes a few inputs of a modality with far more columns than patients: `[modalities.NAME.reduction]`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from oncofed_shared.plan_fields import Key, NonNegative, Positive, without_later
from oncofed_shared.strict import Frozen

__all__ = [
    "UNBOUND",
    "Autoencoder",
    "Bound",
    "Charged",
    "GroupLasso",
    "Lasso",
    "PrincipalComponents",
    "Reduction",
    "ReliefF",
    "Statistical",
]

Count = Annotated[int, Field(ge=1, le=4096)]


Bound = Annotated[float, Field(gt=0, le=1)]
UNBOUND = {"bound": 0.5}
"""What is left out of a plan's form, so that one from before it keeps its hash."""


class PrincipalComponents(Frozen):
    """Directions of most variance, from sums of products of columns over the sites (B-10).

    Attributes:
        components: how many; never more than the modality has columns or the patients span.
        whiten: each component has variance 1. Without it all of them are shrunk alike, so that together with
            `model.block_scaling` a decay on components is that on the columns themselves.
        bound: with a budget a patient's row, each value in -1..1 by its declared range, is shortened to bound x the root of the
            number of columns: less is less noise, and more rows that are shortened.
    """

    kind: Literal["pca"]
    components: Count
    whiten: bool = False
    bound: Bound = 0.5

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_later(written(self), UNBOUND)


class Lasso(Frozen):
    """The columns that a LASSO takes up first on its path, from sums of products over the sites (B-12).

    Attributes:
        keep: how many columns.
        against: the modality whose columns they shall predict, as genes that go with radiomic features; without it the main task.
        bound: as of principal components, of both modalities.
    """

    kind: Literal["lasso"]
    keep: Count
    against: Key | None = None
    bound: Bound = 0.5

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_later(written(self), UNBOUND)


class ReliefF(Frozen):
    """The columns that differ between near patients with another outcome and agree where it is the same (B-13).

    Attributes:
        keep: how many columns.
        neighbours: how many near patients each patient is compared with, all of his own site.
        against: as in `Lasso`.
    """

    kind: Literal["relieff"]
    keep: Count
    neighbours: Annotated[int, Field(ge=1, le=100)] = 10
    against: Key | None = None


class Autoencoder(Frozen):
    """A network that reproduces the columns through a few numbers, trained by sums of gradients over the sites (B-11, C-26).

    Attributes:
        components: how many numbers.
        hidden: width of a layer before and behind them; 0 is none, and the autoencoder is then linear.
        rounds: gradient steps, each over all training patients.
        rate: of the aggregator's Adam.
    """

    kind: Literal["autoencoder"]
    components: Count
    hidden: Annotated[int, Field(ge=0, le=4096)] = 32
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 200
    rate: Positive = 0.01


class GroupLasso(Frozen):
    """All weights that leave one column become zero together, in a step that follows each round (B-36).

    Attributes:
        strength: of the penalty: strength x the sum over columns of the length of a column's weights.
    """

    kind: Literal["group_lasso"]
    strength: NonNegative


Reduction = Annotated[PrincipalComponents | Lasso | ReliefF | Autoencoder | GroupLasso, Field(discriminator="kind")]
Statistical = PrincipalComponents | Lasso | ReliefF | Autoencoder
"""Those that sites are asked for before training begins."""
Charged = PrincipalComponents | Lasso
"""Those that can be made of noised sums, because what one patient moves of them is bounded by constants."""
