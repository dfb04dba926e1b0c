"""What a study reads about a patient: columns, their scaling, and how they become tokens."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationInfo, field_validator, model_serializer

from oncofed_shared.plan_fields import Distinct, Interval, Name, NonNegative, Positive, ascending
from oncofed_shared.plan_genes import GeneGraph, GeneSets
from oncofed_shared.plan_genomics import GenomicFeatures
from oncofed_shared.plan_harmonise import Combat
from oncofed_shared.plan_imaging import AugmentationSettings, RegionPatch
from oncofed_shared.plan_radiomics import RadiomicFeatures
from oncofed_shared.plan_reduction import Lasso, Reduction, ReliefF
from oncofed_shared.strict import Frozen

__all__ = [
    "CategoricalColumn",
    "Column",
    "Modality",
    "NumericColumn",
    "OrdinalColumn",
    "compile_pattern",
    "numeric_range",
    "side_of",
    "voxels_of",
]


class NumericColumn(Frozen):
    """A number; outside `range` (in `unit`) it is an error at the site.

    Attributes:
        knots: a column more for each, `age>60` for 60, with max(value - knot, 0): a linear path then bends there (a linear spline).
        center, spread: its own constants of `scaling = "constants"`, after the transform; without them the modality's.
    """

    kind: Literal["numeric"]
    unit: str | None = None
    range: Interval | None = None
    knots: tuple[float, ...] = ()
    center: float | None = None
    spread: Positive | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a later key that is not used: a study that was approved before it existed keeps its hash."""
        content: dict[str, Any] = written(self)
        return {k: v for k, v in content.items() if k != "knots" or v}

    @field_validator("range")
    @classmethod
    def _range(cls, bounds: Interval | None) -> Interval | None:
        ascending(bounds or ())
        return bounds

    @field_validator("knots")
    @classmethod
    def _knots(cls, knots: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        ascending(knots)
        bounds = info.data.get("range")
        if bounds is not None and any(not bounds[0] < k < bounds[1] for k in knots):
            message = "a knot lies inside the range"
            raise ValueError(message)
        return knots

    @property
    def bends(self) -> dict[str, float]:
        """Knots by the suffix of their column's name."""
        return {f">{k:g}": k for k in self.knots}

    @field_validator("spread")
    @classmethod
    def _pair(cls, spread: float | None, info: ValidationInfo) -> float | None:
        if "center" in info.data and (info.data["center"] is None) != (spread is None):
            message = "center and spread go together"
            raise ValueError(message)
        return spread


class CategoricalColumn(Frozen):
    """One of `categories`, one-hot encoded in this order."""

    kind: Literal["categorical"]
    categories: Annotated[Distinct, Field(min_length=2)]


class OrdinalColumn(Frozen):
    """One of `order`, encoded as its rank."""

    kind: Literal["ordinal"]
    order: Annotated[Distinct, Field(min_length=2)]


Column = Annotated[NumericColumn | CategoricalColumn | OrdinalColumn, Field(discriminator="kind")]


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a column pattern: `{gene}` and `*` match any text, everything else itself.

    >>> bool(compile_pattern("{gene}_rnaseq").fullmatch("TP53_rnaseq"))
    True
    >>> bool(compile_pattern("VOLUME_*").fullmatch("TEXTURE_1"))
    False

    Raises:
        ValueError: it names two parts alike.
    """
    parts = re.split(r"(\{[A-Za-z_]+\}|\*)", pattern)
    named = [p for p in parts[1::2] if p != "*"]
    if len(set(named)) != len(named):
        message = f"pattern {pattern!r} names two parts alike"
        raise ValueError(message)
    made = [".*" if p == "*" else f"(?P<{p[1:-1]}>.+)" for p in parts[1::2]]
    plain = [re.escape(p) for p in parts[::2]]
    return re.compile("".join(a + b for a, b in zip(plain, [*made, ""], strict=True)))


Encoder = Literal["linear", "cnn", "graph", "pathways"]
Side = Literal["imaging", "genes", "neither"]


class Modality(Frozen):
    """One kind of data about a patient: which columns, how scaled, what a gap means, which tokens.

    Attributes:
        table: logical name of the site's table; without it, any table that has the column.
        columns: named columns with their kinds, or
        patterns: patterns over column names, all numeric; the sites' names are united before training.
        vocabulary: names of the columns, in place of all that fit the patterns: a public list, and the sites agree on nothing.
        exclude: patterns of columns that must not be read.
        transform: `log` is log(1 + x) and refuses negative values; `signed_log` is sign(x) log(1 + |x|).
        scaling: `zscore` and `minmax` use sums over the sites; `minmax` uses `range` where one is declared and
            mean +- 3 sd where not, because a minimum is one patient's value and not a sum. `constants` uses `center`
            and `spread` of this plan: a numeric column's own, or the modality's; without the modality's, categories and
            ranks stay as they are. `robust` uses median and quartiles, from histograms over declared ranges.
        clip: bound on the scaled value.
        missing: `mask` (a missing value contributes nothing and the network sees how much of a token was observed),
            `impute` (the consortium's mean), `drop` (one missing value and the patient lacks the modality).
        tokens: `one`, `columns` (a token per column), a number (equal parts in sorted order), or named patterns (a
            column that fits two names goes to the first in the alphabet).
        emphasis: factor on the scaled columns, on top of block scaling. A decay holds a modality of emphasis 2 a quarter as much:
            ridge penalties by group (van de Wiel et al. 2016).
        presence: the linear path also reads this number where the patient has the modality, and 0 where not: who was sequenced or
            scanned differs from who was not, and a gap filled with 0 alone blurs that. 0 is without.
        required: a patient without this modality does not take part.
        genomics: how a site that has sequencing files makes these columns from them; see `plan_genomics`.
        encoder: what makes tokens: `linear` maps of columns; `cnn`, a convolutional network over `patch`; `graph`, a network
            along a gene graph; `pathways`, a linear map for each gene set; see `network_tokens`.
        graph: the gene graph of encoder `graph`; see `plan_genes`.
        pathways: gene sets, a token for each, of the encoders `graph` and `pathways`.
        reduction: how a few inputs are made of many columns; see `plan_reduction`.
        harmonise: how hospitals' own location and scale are taken out, before scaling; see `plan_harmonise`.
        side: which side of a `two_way` fusion reads the other; see `side_of` for what it is without it.
        extraction: how a site that has images makes these columns from them; see `plan_radiomics`.
        patch: role of a series -> how its patch is cut; see `plan_imaging`. Sites prepare them; encoder `cnn` reads them.
        augmentation: how patches are varied in training; without it they are not.
    """

    encoder: Encoder = "linear"
    table: str | None = None
    columns: dict[str, Column] | None = None
    patterns: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    vocabulary: Annotated[Distinct, Field(min_length=1, max_length=100_000)] | None = None
    range: Interval | None = None
    transform: Literal["none", "log", "signed_log"] = "none"
    scaling: Literal["zscore", "minmax", "none", "constants", "robust"] = "zscore"
    center: float | None = None
    spread: Positive | None = None
    clip: Positive | None = 5.0
    missing: Literal["mask", "impute", "drop"] = "mask"
    tokens: Literal["one", "columns"] | Annotated[int, Field(ge=1, le=256)] | dict[Name, tuple[str, ...]] = "one"
    emphasis: Positive = 1.0
    presence: NonNegative = 0.0
    required: bool = False
    genomics: GenomicFeatures | None = None
    extraction: RadiomicFeatures | None = None
    side: Side | None = None
    patch: Annotated[dict[Name, RegionPatch], Field(min_length=1)] | None = None
    graph: GeneGraph | None = None
    pathways: GeneSets | None = None
    reduction: Reduction | None = None
    harmonise: Combat | None = None
    augmentation: AugmentationSettings | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a later key that is not used: a study that was approved before it existed keeps its hash."""
        content: dict[str, Any] = written(self)
        unused = (
            "genomics",
            "extraction",
            "patch",
            "side",
            "graph",
            "pathways",
            "reduction",
            "augmentation",
            "harmonise",
            "vocabulary",
        )
        later = dict.fromkeys(unused) | {"encoder": "linear", "emphasis": 1.0, "presence": 0.0}
        return {k: v for k, v in content.items() if k not in later or v != later[k]}

    @field_validator("patterns")
    @classmethod
    def _sources(cls, patterns: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if "columns" not in info.data:
            return patterns
        given = (info.data["columns"] is not None) + (patterns is not None)
        if info.data.get("encoder") == "cnn" and given:
            message = "encoder = 'cnn' reads patches; make a modality of its own of the columns"
            raise ValueError(message)
        if info.data.get("encoder") != "cnn" and given != 1:
            message = "give either columns or patterns"
            raise ValueError(message)
        return patterns

    @field_validator("patterns", "exclude", "tokens")
    @classmethod
    def _compiled(cls, value: Any) -> Any:
        groups = value.values() if isinstance(value, dict) else [value] if isinstance(value, tuple) else []
        for pattern in (p for group in groups for p in group):
            compile_pattern(pattern)
        return value

    @field_validator("vocabulary")
    @classmethod
    def _listed(cls, names: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        wanted, excluded = ([compile_pattern(p) for p in info.data.get(k) or ()] for k in ("patterns", "exclude"))
        wrong = [
            n for n in names or () if not any(p.fullmatch(n) for p in wanted) or any(p.fullmatch(n) for p in excluded)
        ]
        if wrong and {"patterns", "exclude"} <= set(info.data):
            message = f"'{wrong[0]}' fits no pattern of this modality, or is excluded; a vocabulary goes with patterns"
            raise ValueError(message)
        return names

    @field_validator("range")
    @classmethod
    def _range(cls, bounds: Interval | None) -> Interval | None:
        ascending(bounds or ())
        return bounds

    @field_validator("transform")
    @classmethod
    def _logarithm(cls, transform: str, info: ValidationInfo) -> str:
        columns = (info.data.get("columns") or {}).values()
        ranges = [info.data.get("range"), *(c.range for c in columns if isinstance(c, NumericColumn))]
        if transform == "log" and any(r is not None and r[0] < 0 for r in ranges):
            message = "'log' takes no negative value, and a range begins below 0; use 'signed_log'"
            raise ValueError(message)
        return transform

    @field_validator("genomics")
    @classmethod
    def _read(cls, genomics: GenomicFeatures | None, info: ValidationInfo) -> GenomicFeatures | None:
        if genomics is None or not {"columns", "patterns"} <= set(info.data):
            return genomics
        made, names, patterns = genomics.column, info.data["columns"] or {}, info.data["patterns"] or ()
        fits = any(compile_pattern(made).fullmatch(n) for n in names)
        fits = fits or any(compile_pattern(p).fullmatch(made.replace("{gene}", "GENE")) for p in patterns)
        if not fits:
            message = f".column: no column or pattern of this modality reads '{made}'"
            raise ValueError(message)
        return genomics

    @field_validator("extraction")
    @classmethod
    def _one_origin(cls, extraction: RadiomicFeatures | None, info: ValidationInfo) -> RadiomicFeatures | None:
        if extraction is not None and info.data.get("genomics") is not None:
            message = "a modality comes from images or from sequencing files; make two modalities of it"
            raise ValueError(message)
        return extraction

    @field_validator("tokens")
    @classmethod
    def _grouped(cls, tokens: Any, info: ValidationInfo) -> Any:
        encoder = info.data.get("encoder", "linear")
        if encoder != "linear" and tokens != "one":
            message = f"encoder = '{encoder}' makes its own tokens; leave this out"
            raise ValueError(message)
        return tokens

    @field_validator("emphasis")
    @classmethod
    def _of_columns(cls, emphasis: float, info: ValidationInfo) -> float:
        if emphasis != 1 and info.data.get("encoder", "linear") == "cnn":
            message = "is a factor on columns, and encoder = 'cnn' reads voxels; leave this out"
            raise ValueError(message)
        return emphasis

    @field_validator("patch")
    @classmethod
    def _channels(cls, patch: dict[str, RegionPatch] | None, info: ValidationInfo) -> dict[str, RegionPatch] | None:
        if info.data.get("encoder") != "cnn":
            return patch
        if patch is None:
            message = "encoder = 'cnn' reads patches, and there are none; add [modalities.NAME.patch.ROLE]"
            raise ValueError(message)
        if len({p.size for p in patch.values()}) > 1:
            message = "patches of one modality are channels of one image: give all of them the same size"
            raise ValueError(message)
        return patch

    @field_validator("graph")
    @classmethod
    def _along(cls, graph: GeneGraph | None, info: ValidationInfo) -> GeneGraph | None:
        encoder = info.data.get("encoder", "graph" if graph else "linear")
        if (graph is not None) != (encoder == "graph"):
            message = f"goes with encoder = 'graph', and only with it; the encoder is '{encoder}'"
            raise ValueError(message)
        patterns = info.data.get("patterns", ("{gene}",)) or ()
        plain = all("{gene}" in p and not set("{*") & set(p.replace("{gene}", "", 1)) for p in patterns)
        if encoder in {"graph", "pathways"} and not (patterns and plain):
            message = f"encoder = '{encoder}' reads genes: it needs patterns with {{gene}} once in each, and no *"
            raise ValueError(message)
        return graph

    @field_validator("pathways")
    @classmethod
    def _grouped_by(cls, pathways: GeneSets | None, info: ValidationInfo) -> GeneSets | None:
        encoder = info.data.get("encoder", "graph")
        if pathways is None and encoder == "pathways":
            message = "is missing; encoder = 'pathways' makes a token for each of its gene sets"
            raise ValueError(message)
        if pathways is not None and encoder not in {"graph", "pathways"}:
            message = f"goes with encoder = 'graph' or 'pathways'; the encoder is '{encoder}'"
            raise ValueError(message)
        return pathways

    @field_validator("reduction")
    @classmethod
    def _reducible(cls, reduction: Reduction | None, info: ValidationInfo) -> Reduction | None:
        encoder = info.data.get("encoder", "linear")
        selects = isinstance(reduction, Lasso | ReliefF) and encoder != "cnn"
        if reduction is not None and encoder != "linear" and not selects:
            message = f".kind: '{reduction.kind}' leaves nothing that encoder = '{encoder}' could read"
            raise ValueError(message)
        return reduction

    @field_validator("scaling")
    @classmethod
    def _bent(cls, scaling: str, info: ValidationInfo) -> str:
        columns = (info.data.get("columns") or {}).values()
        bent = any(isinstance(c, NumericColumn) and c.knots for c in columns)
        if bent and (scaling != "zscore" or info.data.get("transform", "none") != "none"):
            message = "a column with knots needs scaling = 'zscore' and no transform"
            raise ValueError(message)
        return scaling

    @field_validator("scaling")
    @classmethod
    def _ranged(cls, scaling: str, info: ValidationInfo) -> str:
        columns = info.data.get("columns")
        whole = info.data.get("range") is not None
        lacking = [n for n, c in (columns or {}).items() if isinstance(c, NumericColumn) and c.range is None]
        if scaling == "robust" and not whole and (columns is None or lacking) and "columns" in info.data:
            message = "'robust' counts values in bins of a declared range, and there is none" + (
                f" of {', '.join(lacking[:5])}" if lacking else ""
            )
            raise ValueError(message)
        return scaling

    @field_validator("augmentation")
    @classmethod
    def _varied(cls, augmentation: Any, info: ValidationInfo) -> Any:
        if augmentation is not None and info.data.get("encoder") != "cnn":
            message = "varies patches, which only encoder = 'cnn' reads; leave this out"
            raise ValueError(message)
        return augmentation

    @field_validator("spread")
    @classmethod
    def _constants(cls, spread: float | None, info: ValidationInfo) -> float | None:
        given = (info.data.get("center", spread) is not None, spread is not None)
        columns = (info.data.get("columns") or {}).values()
        own = [c.spread is not None for c in columns if isinstance(c, NumericColumn)]
        if info.data.get("scaling") == "constants":
            # Where every numeric column has its own, the modality need not give any.
            fits = all(given) or (not any(given) and bool(columns) and all(own))
        else:
            fits = not any(given) and not any(own)
        if "scaling" in info.data and not fits:
            message = (
                "center and spread go with scaling = 'constants', and with nothing else; a numeric column "
                "without its own takes the modality's"
            )
            raise ValueError(message)
        return spread


def side_of(modality: Modality) -> Side:
    """The side of a modality: as the plan says, or by what it is made of.

    Without a word of the plan it is imaging if made of images, and genes if made of sequencing files, or read along a gene graph
    or by gene sets.
    """
    if modality.side is not None:
        return modality.side
    if modality.patch is not None or modality.extraction is not None:
        return "imaging"
    genes = (modality.genomics, modality.graph, modality.pathways)
    return "genes" if any(g is not None for g in genes) else "neither"


def numeric_range(modality: Modality, column: str) -> Interval | None:
    """The declared range of an encoded column, before the transform: 0 to 1 of a category's, None where none is declared."""
    columns = modality.columns
    if columns is None:
        return modality.range
    spec = columns.get(column)
    if isinstance(spec, OrdinalColumn):
        return (0.0, float(len(spec.order) - 1))
    if isinstance(spec, NumericColumn):
        return spec.range or modality.range
    for name, bent in columns.items():
        knot = bent.bends.get(column.removeprefix(name)) if isinstance(bent, NumericColumn) else None
        if column.startswith(f"{name}>") and knot is not None and isinstance(bent, NumericColumn):
            bounds = bent.range or modality.range
            return None if bounds is None else (0.0, bounds[1] - knot)
    return (0.0, 1.0)


def voxels_of(modality: Modality) -> int:
    """Voxels of one channel of a modality of patches; 0 where the network reads its columns."""
    if modality.encoder != "cnn" or modality.patch is None:
        return 0
    return math.prod(next(iter(modality.patch.values())).size)
