"""What the report says of privacy: what epsilon stands for, against whom it holds, and which numbers nobody released."""

from __future__ import annotations

from dataclasses import dataclass

from oncofed_server.report_scores import Study, listing, mapping, number
from oncofed_server.report_verdict import count

__all__ = ["SpentRow", "epsilon_name", "mechanism", "noise_of", "spent_rows", "unreleased"]

CONSORTIUM = "consortium"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpentRow:
    """Of one site: epsilon and delta of a training patient, and epsilon if all other sites collude; None where nothing is left."""

    site: str
    epsilon: float
    delta: float | None
    alone: float | None


def noise_of(study: Study) -> str:
    """Who draws the noise: none, site, consortium."""
    return str(mapping(study.plan.get("privacy")).get("noise", "none"))


def _tolerated(study: Study) -> tuple[int, int]:
    """How many sites may drop, and how many may collude, as the noise reckons with them."""
    privacy = mapping(study.plan.get("privacy"))
    drop, collude = number(privacy.get("drop")), number(privacy.get("collude"))
    return int(drop or 0), int(1 if collude is None else collude)


def epsilon_name(study: Study) -> str:
    """What stands below epsilon in the strip of numbers."""
    noise = noise_of(study)
    if noise != CONSORTIUM:
        return f"epsilon, noise by the {noise}"
    drop, collude = _tolerated(study)
    return f"epsilon, noise by the consortium (drop {drop}, collude {collude})"


def spent_rows(study: Study) -> list[SpentRow]:
    """The sites that spent privacy; empty without noise."""
    sites = [(s, number(s.get("epsilon"))) for s in map(mapping, listing(study.raw.get("sites")))]
    return [
        SpentRow(site=str(s.get("name")), epsilon=e, delta=number(s.get("delta")), alone=number(s.get("epsilon_alone")))
        for s, e in sites
        if e is not None
    ]


def mechanism(study: Study) -> str:
    """What epsilon stands for, in sentences; empty without privacy."""
    privacy = mapping(study.plan.get("privacy"))
    rate, norm = number(privacy.get("sampling_rate")), number(privacy.get("clip_norm"))
    if rate is None or norm is None:
        return ""
    bounds = (
        "Epsilon bounds what the model and every message on the way to it tell about one training patient's presence"
    )
    steps = f"Poisson sampling with rate {rate:g}, every patient's gradient clipped to {norm:g}"
    if noise_of(study) != CONSORTIUM:
        return (
            f"{bounds}, at the hospital where he is a patient: DP-SGD at each site, {steps}. "
            "A patient known to several hospitals has the sum of theirs."
        )
    drop, collude = _tolerated(study)
    summed, located = (number(privacy.get(key)) for key in ("statistics_epsilon", "harmonise_epsilon"))
    statistics = ""
    if summed is not None:
        statistics += (
            f" Of epsilon, {summed:g} is spent before training on statistics that scale the values, which are summed and noised in "
            "the same way."
        )
    if located is not None:
        statistics += (
            f" Of epsilon, {located:g} is spent on each hospital's own location, which harmonises its values: with all the noise "
            "that it needs by itself, and sent nowhere."
        )
    if statistics:
        statistics += " Delta is divided evenly between these and the steps."
    return (
        f"{bounds}: DP-SGD over the patients of all sites together, {steps}. Each site draws a share of the noise, and only the "
        f"masked sum of all shares is opened.{statistics} Epsilon holds with drop = {drop} and collude = {collude}: as long as "
        f"at most {count(drop, 'site')} drop out of a sum and at most {count(collude, 'site')} tell the aggregator all they know. "
        "The last column is what a site's own share bounds if all other sites collude. A patient known to m hospitals has group "
        "privacy of size m: his epsilon is m times as large, and his delta larger still."
    )


def unreleased(study: Study) -> str:
    """Why the scores on the page are nobody's to have but a simulation's; empty where sites release them."""
    if noise_of(study) != CONSORTIUM:
        return ""
    where = "stands in Released scores" if listing(study.raw.get("released")) else "is the model alone"
    return (
        "Under this plan no site releases tables of its patients: these scores, by site, by group and in comparisons, are those of "
        f"a simulation. What is released {where}."
    )
