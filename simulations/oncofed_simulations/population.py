"""The population behind a synthetic consortium: what is planted in it, and how patients are drawn.

Every modality m carries two hidden factors per patient, u_m and v_m, standard normal and
independent. u drives survival, v and a little of u drive the response to treatment; the columns
named in `PLANTED` measure them with noise, the others are noise. So each modality says something of
its own, and all of them together clearly more. Nothing here depends on the seed: two cohorts with
different seeds are two samples of one population.

    log hazard        = sum of u over all modalities + 0.8 (age - 62) / 10 + cancer type
    logit of response = sum of (1.3 v - 0.5 u) over all but clinical + treatment
                        + 0.9 (dose - 60) / 6

The clinical u shows in the stage, the clinical v in the dose of those who were irradiated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CANCER_TYPES",
    "COLUMNS",
    "MODALITIES",
    "PLANTED",
    "STAGES",
    "TREATMENTS",
    "Patients",
    "draw_features",
    "draw_outcomes",
    "draw_patients",
]

MODALITIES = ("clinical", "radiomics", "expression", "cnv", "mutations")
CANCER_TYPES = ("lung", "breast", "gbm")
STAGES = ("I", "II", "III", "IV")
TREATMENTS = ("surgery", "chemotherapy", "radiotherapy", "chemoradiotherapy")

_RADIOMICS = {  # column: centre and spread, of the size that the feature has in practice
    "shape_MeshVolume": (42000.0, 11000.0),
    "shape_SurfaceArea": (7200.0, 1500.0),
    "shape_Sphericity": (0.62, 0.08),
    "shape_Elongation": (0.71, 0.11),
    "shape_Flatness": (0.55, 0.1),
    "shape_Maximum3DDiameter": (54.0, 11.0),
    "firstorder_Mean": (31.0, 14.0),
    "firstorder_Median": (34.0, 15.0),
    "firstorder_Entropy": (4.3, 0.5),
    "firstorder_Uniformity": (0.07, 0.015),
    "firstorder_Skewness": (-0.4, 0.6),
    "firstorder_Kurtosis": (4.1, 0.8),
    "firstorder_90Percentile": (88.0, 19.0),
    "firstorder_RootMeanSquared": (71.0, 15.0),
    "glcm_Autocorrelation": (210.0, 45.0),
    "glcm_ClusterShade": (-95.0, 160.0),
    "glcm_Contrast": (19.0, 4.0),
    "glcm_Correlation": (0.48, 0.1),
    "glcm_Idm": (0.33, 0.05),
    "glcm_JointEnergy": (0.012, 0.0025),
    "glcm_JointEntropy": (7.6, 0.7),
    "glcm_SumEntropy": (5.1, 0.4),
    "glrlm_GrayLevelNonUniformity": (980.0, 220.0),
    "glrlm_LongRunEmphasis": (1.6, 0.15),
    "glrlm_RunEntropy": (4.8, 0.4),
    "glrlm_ShortRunEmphasis": (0.9, 0.02),
}
_EXPRESSION = (  # noqa: SIM905 - shorter
    "TP53 EGFR BRCA1 KRAS PTEN MYC MKI67 CCND1 CDK4 MDM2 VEGFA HIF1A "
    "CD8A GZMB CD274 CTLA4 STAT1 IFNG FOXP3 CXCL9 CXCL10 IDO1 "
    "NAPSA SFTPB ESR1 GATA3 GFAP OLIG2 "
    "AKT1 BRAF CDH1 ERBB2 FGFR1 JAK2 KIT MET NOTCH1 PIK3CA RB1 SMAD4"
).split()
_CNV = (  # noqa: SIM905
    "EGFR MYC CCND1 CDK4 MDM2 ERBB2 PTEN RB1 CDKN2A TP53 KRAS BRCA1 MET FGFR1 PDGFRA NF1 STK11 SMAD4 TERT SOX2"
).split()
_MUTATIONS = (  # noqa: SIM905
    "TP53 KRAS PTEN STK11 KEAP1 NF1 EGFR BRAF PIK3CA ARID1A BRCA1 ATM POLE KMT2D CDH1 NOTCH1 RB1 APC SMAD4 FAT1"
).split()
_MARKERS = {"lung": ("NAPSA", "SFTPB"), "breast": ("ESR1", "GATA3"), "gbm": ("GFAP", "OLIG2")}

COLUMNS = {
    "radiomics": tuple(_RADIOMICS),
    "expression": tuple(f"{gene}_rnaseq" for gene in _EXPRESSION),
    "cnv": tuple(f"{gene}_cnv" for gene in _CNV),
    "mutations": tuple(f"{gene}_mut" for gene in _MUTATIONS),
}
"""Feature columns of every modality but the clinical one."""

PLANTED: dict[str, dict[str, tuple[str, ...]]] = {
    "clinical": {"survival": ("age", "stage"), "response": ("treatment", "dose_gy")},
    "radiomics": {
        "survival": COLUMNS["radiomics"][:8],
        "response": COLUMNS["radiomics"][14:22],
    },
    "expression": {
        "survival": COLUMNS["expression"][:12],
        "response": COLUMNS["expression"][12:22],
    },
    "cnv": {"survival": COLUMNS["cnv"][:8], "response": COLUMNS["cnv"][8:16]},
    "mutations": {"survival": COLUMNS["mutations"][:8], "response": COLUMNS["mutations"][8:16]},
}
"""Columns that measure u (`survival`) and v (`response`), with alternating signs."""

_LOADING = 0.85
_MARKER_SHIFT = 1.8
_CNV_CUTS = (-1.7, -0.8, 0.8, 1.7)
_MUTATION_CUT = 0.5
_STAGE_CUTS = (-0.6, 0.2, 1.0)
_TYPE_AGE = {"lung": 66.0, "breast": 58.0, "gbm": 61.0}
_TYPE_LOG_HAZARD = {"lung": 0.0, "breast": -0.4, "gbm": 0.4}
_TREATMENT_LOGIT = {
    "surgery": -1.3,
    "chemotherapy": 0.0,
    "radiotherapy": 0.0,
    "chemoradiotherapy": 1.3,
}
_SCALE_DAYS, _WEIBULL_SHAPE = 1000.0, 1.3
_FOLLOW_UP_DAYS = (300.0, 3000.0)

Floats = NDArray[np.float64]
Texts = NDArray[np.str_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patients:
    """Patients of one site.

    Attributes:
        kind: (n,) cancer type.
        age: (n,) years, one decimal.
        sex, stage, treatment: (n,) texts.
        dose: (n,) Gy, NaN where there was no radiotherapy.
        u, v: (n, modalities) hidden factors.
    """

    kind: Texts
    age: Floats
    sex: Texts
    stage: Texts
    treatment: Texts
    dose: Floats
    u: Floats
    v: Floats


def _lookup(table: dict[str, float], keys: Texts) -> Floats:
    return np.array([table[str(key)] for key in keys], dtype=np.float64)


def draw_patients(rng: np.random.Generator, count: int, site_effect: float) -> Patients:
    """Draw `count` patients of one site, whose mix of cancer types and mean age are its own."""
    mix = rng.dirichlet([4.0 / max(site_effect, 0.01)] * len(CANCER_TYPES))
    older = 2.0 * site_effect * rng.standard_normal()
    u, v = rng.standard_normal((2, count, len(MODALITIES)))
    kind = rng.choice(CANCER_TYPES, size=count, p=mix)
    age: Floats = _lookup(_TYPE_AGE, kind) + older + 10.0 * rng.standard_normal(count)
    female = rng.random(count) < np.where(kind == "breast", 0.99, 0.45)
    grade = _LOADING * u[:, 0] + np.sqrt(1 - _LOADING**2) * rng.standard_normal(count)
    treatment = rng.choice(TREATMENTS, size=count, p=[0.25, 0.25, 0.2, 0.3])
    radiated = (treatment == "radiotherapy") | (treatment == "chemoradiotherapy")
    return Patients(
        kind=kind,
        age=np.asarray(np.round(np.clip(age, 21.0, 94.0), 1), dtype=np.float64),
        sex=np.where(female, "female", "male"),
        stage=np.array(STAGES)[np.digitize(grade, _STAGE_CUTS)],
        treatment=treatment,
        dose=np.where(radiated, np.round(60.0 + 6.0 * np.clip(v[:, 0], -4.0, 4.0), 1), np.nan),
        u=u,
        v=v,
    )


def draw_features(rng: np.random.Generator, modality: str, patients: Patients, site_effect: float) -> Floats:
    """Draw the columns of one modality as `COLUMNS` names them.

    Args:
        rng: this site's stream.
        modality: any but `clinical`.
        patients: the n patients of the site.
        site_effect: strength of the site's shift of radiomics (stretched too) and expression.

    Returns:
        (n, columns): radiomics in units of their own, expression as z-scores, copy number -2..2,
        mutations 0/1.
    """
    names = COLUMNS[modality]
    values = rng.standard_normal((len(patients.kind), len(names)))
    factors = {"survival": patients.u, "response": patients.v}
    for task, columns in PLANTED[modality].items():
        factor = factors[task][:, MODALITIES.index(modality)]
        for sign, name in zip([1.0, -1.0] * len(columns), columns, strict=False):
            j = names.index(name)
            values[:, j] *= np.sqrt(1 - _LOADING**2)
            values[:, j] += sign * _LOADING * factor
    if modality == "cnv":
        return np.digitize(values, _CNV_CUTS).astype(np.float64) - 2.0
    if modality == "mutations":
        return (values > _MUTATION_CUT).astype(np.float64)
    shift = site_effect * rng.standard_normal(len(names))
    if modality == "expression":
        for kind, genes in _MARKERS.items():
            for gene in genes:
                values[patients.kind == kind, names.index(f"{gene}_rnaseq")] += _MARKER_SHIFT
        return values + 0.15 * shift
    stretch = np.exp(0.15 * site_effect * rng.standard_normal(len(names)))
    centre, spread = np.array(list(_RADIOMICS.values())).T
    return np.asarray(centre + spread * (stretch * values + 0.5 * shift), dtype=np.float64)


def draw_outcomes(
    rng: np.random.Generator, patients: Patients, signal: float
) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    """Draw what happens to the patients.

    Returns:
        (n,) follow-up in whole days, at least 1; (n,) whether it ended with death; (n,) whether the
        tumour responded. Times are Weibull with proportional hazards, censored uniformly between
        300 and 3,000 days.
    """
    count = len(patients.kind)
    others_u, others_v = patients.u[:, 1:].sum(axis=1), patients.v[:, 1:].sum(axis=1)
    log_hazard = signal * (
        patients.u.sum(axis=1) + 0.8 * (patients.age - 62.0) / 10.0 + _lookup(_TYPE_LOG_HAZARD, patients.kind)
    )
    survived = rng.standard_exponential(count) * np.exp(-log_hazard)
    death = np.ceil(_SCALE_DAYS * survived ** (1 / _WEIBULL_SHAPE))
    censoring = np.ceil(rng.uniform(*_FOLLOW_UP_DAYS, size=count))
    logit = signal * (
        1.3 * others_v
        - 0.5 * others_u
        + _lookup(_TREATMENT_LOGIT, patients.treatment)
        + np.nan_to_num(0.9 * (patients.dose - 60.0) / 6.0)
    )
    responded = rng.random(count) < 1 / (1 + np.exp(-logit))
    return np.minimum(death, censoring), death <= censoring, responded
