"""Everything that a study asks of a site's raw files, made once: killed and resumed, nothing is done twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from oncofed_client.consent import consented
from oncofed_client.imaging.series import Inventory, find_series
from oncofed_client.prepare.cache import Cache, Entry, PatchEntry, open_cache
from oncofed_client.prepare.cases import Case, GenomicsCase, PatchCase, image_cases, patch_cases, perform
from oncofed_client.prepare.feature_table import FeatureTable
from oncofed_client.prepare.pool import outcomes
from oncofed_client.prepare.radiomics import load_extraction
from oncofed_client.prepare.recipes import (
    patch_recipe,
    prepared_modalities,
    prepared_patches,
    recipe,
    undefined_names,
)
from oncofed_client.prepare.report import Failure, Report, without_names
from oncofed_client.prepare.stamps import Contents, folder_stamp
from oncofed_client.settings import SiteSettings
from oncofed_shared.errors import ConfigError, DataError
from oncofed_shared.plan import Plan
from oncofed_shared.storage import alone

__all__ = ["preprocess"]


class _Run:
    """One run over a site."""

    def __init__(
        self,
        folder: Path,
        settings: SiteSettings,
        plan: Plan,
        *,
        study: Path,
        cache: Cache,
        watch: Callable[[int, int], None],
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.cache = cache
        self.watch = watch
        self.allowed = consented(folder, settings)
        self.modalities = prepared_modalities(plan, settings)
        self.recipes = {name: recipe(m, settings) for name, m in self.modalities.items()}
        self.patches = prepared_patches(plan, settings)
        if settings.imaging is not None:
            rules = settings.imaging
            self.recipes |= {name: patch_recipe(role, cut, rules) for name, (role, cut) in self.patches.items()}
        self.undefined = {name: undefined_names(m, settings) for name, m in plan.modalities.items() if m.patch}
        self.undefined |= {name: undefined_names(m, settings) for name, m in self.modalities.items()}
        self.extractions = {
            name: load_extraction(study / m.extraction.file, m.extraction.sha256)
            for name, m in self.modalities.items()
            if m.extraction is not None
        }
        self.index: dict[str, Any] = cache.read_index()
        self.study = plan.study.name
        self.studies: dict[str, list[str]] = self.index.setdefault("studies", {})
        self.people = sorted(map(cache.key.pseudonym, self.allowed))
        self.sequenced = _of_people(self.index.get("sequencing", {}), self.people)
        self.contents = Contents(folder, cache.key, self.index.get("contents", {}))
        self.expected: dict[str, dict[str, str]] = {name: {} for name in self.recipes}
        self.failures: list[Failure] = []
        self.notes: list[str] = []
        self.found = 0
        self.seen: str | None = None

    def work(self, jobs: int) -> Report:
        """Do what is not done."""
        removed = self.cache.keep_only(self.allowed)
        self.cache.clear_leftovers()
        stamp = self._stamp()
        self.seen = folder_stamp(self.folder, self.cache.key, settled=False)
        report = self._nothing_new(stamp)
        if report is not None:
            return replace(report, withdrawn=removed)
        # Noted before anything is made, so that what a killed run leaves is known too.
        asked = {*self.studies.get(self.study, ()), *self.recipes.values()}
        self.studies[self.study] = sorted(asked)
        self.cache.write_index(self.index)
        inventory = self._inventory()
        cases: list[Case | PatchCase | GenomicsCase] = [*self._of_images(inventory), *self._of_sequencing()]
        total = self.found + len(cases)
        self.watch(self.found, total)
        for done, outcome in enumerate(outcomes(cases, perform, jobs), self.found + 1):
            if outcome.result is None:
                self._fail(outcome.case, outcome.problems, outcome.case.files())
            else:
                self._keep(outcome.case, outcome.result)
            self.watch(done, total)
        self._forget_others()
        self._forget_older(asked)
        report = Report(
            made=len(cases) - len(self.failures),
            found=self.found,
            failures=tuple(self.failures),
            patients={name: len(entries) for name, entries in self.expected.items()},
            withdrawn=removed,
            outside=len(set(inventory.patients()) - self.allowed),
            notes=tuple(dict.fromkeys(self.notes)),
        )
        self._remember(stamp, report)
        return report

    def _stamp(self) -> str | None:
        facts = (self.settings.model_dump_json(), *sorted(self.recipes.values()), *self.people)
        return folder_stamp(self.folder, self.cache.key, *facts)

    def _nothing_new(self, stamp: str | None) -> Report | None:
        """The last report, if no file, setting or consent changed since and every entry is whole."""
        last = self.index.get("last", {})
        if stamp is None or last.get("stamp") != stamp:
            return None
        expected: dict[str, dict[str, str]] = last["expected"]
        whole = all(
            self.cache.is_whole(pseudonym, self.recipes[name], inputs)
            for name, entries in expected.items()
            for pseudonym, inputs in entries.items()
        )
        if not whole:
            return None
        self.watch(last["cases"], last["cases"])
        return Report(
            found=last["cases"],
            patients={name: len(entries) for name, entries in expected.items()},
            outside=last["outside"],
            notes=tuple(last["notes"]),
        )

    def _inventory(self) -> Inventory:
        if self.settings.imaging is None or not (self.extractions or self.patches):
            return Inventory(series=(), problems=(), identifying={}, burned_in=0, others=0)
        inventory = find_series(self.folder, self.settings.imaging)
        if inventory.problems:
            count = len(inventory.problems)
            self.notes.append(f"{count} problems in the images; `oncofed-site check` on the folder lists them")
        return inventory

    def _of_images(self, inventory: Inventory) -> Iterator[Case | PatchCase]:
        """Cases that are not in the cache."""
        for name, absent in self.undefined.items():
            if absent:
                self.notes.append(
                    f"{name}: site.toml does not say what {' and '.join(absent)} is, which the study asks for"
                )
        for case in self._asked_of_images(inventory):
            try:
                inputs = self._inputs(case)
            except DataError as error:
                self._fail(case, error.problems, case.files())
                continue
            if self.cache.has(case.patient, self.recipes[case.modality], inputs):
                self.expected[case.modality][self.cache.key.pseudonym(case.patient)] = inputs
                self.found += 1
            else:
                yield replace(case, inputs=inputs)

    def _asked_of_images(self, inventory: Inventory) -> Iterator[Case | PatchCase]:
        """All that the study asks for of the images."""
        rules = self.settings.imaging
        if rules is None:
            return
        for name, extraction in self.extractions.items():
            features = self.modalities[name].extraction
            if features is not None:
                yield from image_cases(
                    name, features, extraction, inventory=inventory, patients=self.allowed, settings=rules
                )
        for name, (role, wanted) in self.patches.items():
            yield from patch_cases(name, role, wanted, inventory=inventory, patients=self.allowed, settings=rules)

    def _inputs(self, case: Case | PatchCase) -> str:
        """A keyed hash of the bytes of all files of a case, and of what each is to it; names and order mean nothing."""
        parts: list[bytes] = []
        for role, series in case.images.items():
            parts += [b"image", role.encode(), *self.contents.of_all(series.files)]
        regions = [self.contents.of_all(r.files) for r in case.regions]
        return self.cache.key.digest(*parts, b"regions", *chain(*sorted(regions)))

    def _of_sequencing(self) -> Iterator[GenomicsCase]:
        """Modalities whose sequencing files, or patients, changed."""
        for name, modality in self.modalities.items():
            if modality.genomics is None or self.settings.genomics is None:
                continue
            case = GenomicsCase(
                modality=name,
                folder=self.folder,
                settings=self.settings.genomics,
                features=modality.genomics,
                patients=self.allowed,
            )
            try:
                people = [p.encode() for p in self.people] if case.together else []
                inputs = self.cache.key.digest(*self.contents.of_all(case.files()), b"people", *people)
            except DataError as error:
                self._fail(case, error.problems, ())
                continue
            if self._known(name, inputs):
                self.found += 1
            else:
                yield replace(case, inputs=inputs)

    def _known(self, name: str, inputs: str) -> bool:
        """Whether all patients of a modality's sequencing files are in the cache; takes them over if so."""
        last = self.sequenced.get(self.recipes[name], {})
        if last.get("inputs") != inputs or last["people"] != self.people:
            return False
        entries: dict[str, str] = last["entries"]
        if not all(self.cache.is_whole(p, self.recipes[name], own) for p, own in entries.items()):
            return False
        self.expected[name] = entries
        return True

    def _keep(self, case: Case | PatchCase | GenomicsCase, result: Entry | PatchEntry | FeatureTable) -> None:
        """Write what a case gave."""
        name = case.modality
        if not isinstance(result, FeatureTable) and not isinstance(case, GenomicsCase):
            self.cache.put(case.patient, self.recipes[name], case.inputs, result)
            self.expected[name][self.cache.key.pseudonym(case.patient)] = case.inputs
            return
        if not isinstance(result, FeatureTable):
            message = "sequencing files give a table"
            raise TypeError(message)
        for row, patient in enumerate(result.patients):
            if patient in self.allowed:
                entry = Entry(columns=result.columns, values=result.values[row])
                inputs = self.cache.key.digest(entry.to_bytes())
                if not self.cache.has(patient, self.recipes[name], inputs):
                    self.cache.put(patient, self.recipes[name], inputs, entry)
                self.expected[name][self.cache.key.pseudonym(patient)] = inputs
        self.notes += without_names(result.problems, self.folder, case.files(), result.patients)
        self.sequenced[self.recipes[name]] = {
            "inputs": case.inputs,
            "people": self.people,
            "entries": self.expected[name],
        }
        self.cache.write_index(self.index | {"sequencing": self.sequenced})

    def _fail(self, case: Case | PatchCase | GenomicsCase, problems: tuple[str, ...], files: tuple[Path, ...]) -> None:
        """Note a case that cannot be done."""
        patients = tuple(self.allowed) if isinstance(case, GenomicsCase) else (case.patient,)
        self.failures.append(
            Failure(
                modality=case.modality,
                pseudonym="" if isinstance(case, GenomicsCase) else self.cache.key.pseudonym(case.patient),
                problems=problems,
                safe=without_names(problems, self.folder, files, patients),
            )
        )

    def _forget_others(self) -> None:
        """Remove the entries of patients whose files are gone, or can no longer be read."""
        for name, entries in self.expected.items():
            for patient in self.allowed:
                if self.cache.key.pseudonym(patient) not in entries:
                    self.cache.forget(patient, self.recipes[name])

    def _forget_older(self, asked: set[str]) -> None:
        """Remove what this study asked for before it, the site's rules or the code changed; other studies' entries stay."""
        self.studies[self.study] = sorted(self.recipes.values())
        older = asked - {made for recipes in self.studies.values() for made in recipes}
        self.cache.forget_recipes(older)
        self.sequenced = {made: known for made, known in self.sequenced.items() if made not in older}

    def _remember(self, stamp: str | None, report: Report) -> None:
        """Keep for the next run what lets it see that nothing changed."""
        self.index = {
            "contents": self.contents.kept,
            "sequencing": self.sequenced,
            "seen": self.seen,
            "studies": self.studies,
        }
        # A file that changed while this ran must be seen by the next run.
        if stamp is not None and not report.failures and stamp == self._stamp():
            self.index["last"] = {
                "stamp": stamp,
                "expected": self.expected,
                "cases": report.made + report.found,
                "outside": report.outside,
                "notes": report.notes,
            }
        self.cache.write_index(self.index)


def _of_people(sequenced: dict[str, Any], people: list[str]) -> dict[str, Any]:
    """What is known of sequencing files, without those who may no longer enter."""
    kept = set(people)
    return {
        made: {
            "inputs": known["inputs"],
            "people": sorted(kept & set(known["people"])),
            "entries": {p: own for p, own in known["entries"].items() if p in kept},
        }
        for made, known in sequenced.items()
    }


def preprocess(
    folder: Path,
    settings: SiteSettings,
    plan: Plan,
    *,
    study: Path,
    state: Path,
    jobs: int = 1,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Make what a study asks of a site's images and sequencing files, as far as it is not in the cache.

    Args:
        folder: the site's.
        settings: its `site.toml`.
        plan: the study.
        study: folder of the study's file, where the radiomics settings lie.
        state: the site's own state, with its key and the cache.
        jobs: processes, and so cases in memory at a time.
        watch: called with the number of cases that are done, and of all.

    Returns:
        What was done. A case that fails is in it and stops nothing.

    Raises:
        PolicyRefusal: no consent is stated.
        DataError: the folder or the tables with consent cannot be read.
        ConfigError: the study's radiomics settings are absent or not those of the plan, or the state lies in the folder.
        StorageError: the state folder cannot be used, or another run is at work there.

    Guarantees:
        - Killed at any point and run again, no finished case is done again.
        - Only patients who consented are read, beyond the headers that say whose a file is, and only they have entries.
        - What is written holds no id, name, date, text or UID of the source.
        - The number of processes changes no byte of the entries.
    """
    if state.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{state}: lies in the site's folder, into which nothing is written; choose another --state")
    with alone(state, "oncofed-site preprocess", lock=state / ".preprocess.lock", choose="--state"):
        return _Run(folder, settings, plan, study=study, cache=open_cache(state), watch=watch).work(jobs)
