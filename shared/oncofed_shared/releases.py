"""What leaves the sites under a plan without a privacy charge, by name, so that a report can stand it beside epsilon."""

from __future__ import annotations

from oncofed_shared.features import encoded_columns
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan, SitePrivacy
from oncofed_shared.plan_harmonise import uncharged_harmonisations
from oncofed_shared.plan_reduction import Charged, Lasso
from oncofed_shared.reduction_rules import uncharged_reductions

__all__ = ["charged_statistics", "uncharged"]

_TABLES = "tables of counts of each site, for {parts}: with few patients nearly a list of (risk, outcome)"


def charged_statistics(plan: Plan) -> str:
    """What statistics of training patients a plan releases with noise and charges, in words; empty for none."""
    privacy = plan.privacy
    if not isinstance(privacy, ConsortiumPrivacy) or privacy.statistics_epsilon is None:
        return ""
    means = [n for n, m in plan.modalities.items() if m.scaling == "zscore" or m.missing == "impute"]
    quantiles = [n for n, m in plan.modalities.items() if m.scaling == "robust"]
    parts = [f"number, sum and squares per column of {', '.join(means)}"] if means else []
    parts += [f"histogram per column of {', '.join(quantiles)}"] if quantiles else []
    parts += ["patients per class"] if plan.training.class_weights == "balanced" else []
    products = [n for n, m in plan.modalities.items() if isinstance(m.reduction, Charged)]
    parts += [f"sums of products of each two columns of {', '.join(products)}"] if products else []
    chosen = [n for n, m in plan.modalities.items() if isinstance(m.reduction, Lasso)]
    parts += [f"sums of products of columns of {', '.join(chosen)} with what they are chosen by"] if chosen else []
    return f"statistics of training patients before training: {'; '.join(parts)}"


def uncharged(plan: Plan, *, runs: int = 1) -> tuple[str, ...]:
    """Everything that a run of the plan releases without a charge.

    Args:
        runs: how often a simulation trains over the same patients; epsilon is of one of them.

    Guarantees:
        - Without privacy that is all that leaves; sums of reductions are named one by one, and the patients of each modality
          that `average = "holders"` sends.
        - Under a private plan it names each message of a site that is not noised and charged, and what its timing tells. Names of
          columns are among them where the plan has patterns without a vocabulary.
    """
    parts = "validation and test patients" if plan.evaluation.split.validation else "test patients"
    privacy = plan.privacy
    if isinstance(privacy, NoPrivacy):
        counts = ("each site's number of training patients for each modality that it has, in every round",)
        return (
            "column names and numbers of patients of each site",
            "sums per column over each site's training patients (scaling, class weights)",
            *uncharged_harmonisations(plan.modalities),
            *uncharged_reductions(plan.modalities),
            "each site's update and mean training loss in every round",
            *(counts if plan.strategy.average == "holders" else ()),
            _TABLES.format(parts="validation and test"),
        )
    asked = [n for n, m in plan.modalities.items() if encoded_columns(m) is None]
    found = [
        *(
            [f"each site's names of columns in {', '.join(asked)}: which it has measured, of any patient"]
            if asked
            else []
        ),
        "whether each site takes part: that enough patients consented, and that its files could be read",
        "how long each site computes in a round, which hints at how many patients were sampled",
    ]
    if isinstance(privacy, ConsortiumPrivacy):
        found.append("how many entries each site's ledger has, for whatever study: its signed head says so, to others")
    if isinstance(privacy, SitePrivacy) and privacy.release_tables:
        found.append(_TABLES.format(parts=f"its {parts}, who never train") + "; and so their numbers")
    if runs > 1:
        found.append(
            f"{runs - 1} more training runs over the same patients: epsilon is of one; a deployed study makes one"
        )
    return tuple(found)
