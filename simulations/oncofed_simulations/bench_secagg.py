"""What a secure sum costs a site and the aggregator, beside Flower's SecAgg+ on the same vectors in the same run."""

from __future__ import annotations

import copy
import hashlib
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from oncofed_shared.secagg import AggregatorParty, Group, SiteParty, Step, smallest_threshold, to_bytes
from oncofed_shared.secagg.masks import Words
from oncofed_shared.secagg.messages import Reveal
from oncofed_simulations.bench_measure import Measure
from oncofed_simulations.flower_secagg import FlowerSecAgg

__all__ = ["SITES", "SecureRound", "quantised", "real_numbers", "secure_sums"]

SITES, MISSING, PARAMETERS, REPEATS = 8, (2, 5), 1_000_000, 25
EXAMPLES = 100
SCALE = 2.0**20
Floats = NDArray[np.float32]


def quantised(vector: Floats) -> Words:
    """Floats as words of the ring of 32 bits: multiples of 1 / SCALE."""
    scaled = vector * np.float32(SCALE)
    np.rint(scaled, out=scaled)
    return scaled.astype(np.int32).view(np.uint32)


def real_numbers(total: Words) -> Floats:
    """Inverse of `quantised`."""
    return total.view(np.int32).astype(np.float32) * np.float32(1 / SCALE)


class SecureRound:
    """Sites and an aggregator whose keys are dealt; each `mask` and each `unmask` is a step of its own."""

    def __init__(self, *, sites: int, drop: int, size: int, steps: int) -> None:
        keys = {f"site-{i:02}": Ed25519PrivateKey.generate() for i in range(sites)}
        members = tuple((n, k.public_key().public_bytes_raw()) for n, k in keys.items())
        self.group = Group(
            plan_hash="bench",
            session="bench",
            members=members,
            threshold=smallest_threshold(sites, 1),
            drop=drop,
            block=steps,
        )
        self.sites = {n: SiteParty(self.group, n, k) for n, k in keys.items()}
        self.aggregator = AggregatorParty(self.group)
        self.size, self.number = size, 0
        self.aggregator.open(0)
        self.exchange(lambda message: True)

    def exchange(self, wanted: Callable[[object], bool]) -> list[Reveal]:
        """Let the sites answer as long as the answers are wanted; give the reveals that were not."""
        kept: list[Reveal] = []
        while not kept and (asks := self.aggregator.asks()):
            for name, ask in asks.items():
                answer = self.sites[name].answer(ask)
                if isinstance(answer, Reveal) and not wanted(answer):
                    kept.append(answer)
                else:
                    self.aggregator.take(answer)
        return kept

    def step(self) -> Step:
        """The next step."""
        self.number += 1
        parameters = hashlib.sha256(b"parameters").digest()
        return Step(number=self.number - 1, attempt=0, parameters=parameters, size=self.size, kind="train")

    def mask(self, name: str, vector: Floats) -> Words:
        """Everything that a site does for an upload: quantise, agree on keys, mask, hash, sign."""
        return self.sites[name].upload(self.step(), quantised(vector)).masked

    def masked(self, vectors: Mapping[str, Floats]) -> list[Reveal]:
        """Do a step up to its reveals, which are given and not yet taken."""
        step = self.step()
        self.aggregator.begin(step)
        for name, vector in vectors.items():
            self.aggregator.take(self.sites[name].upload(step, quantised(vector)))
        self.aggregator.close()
        return self.exchange(lambda message: False)

    @staticmethod
    def unmask(aggregator: AggregatorParty, reveals: list[Reveal]) -> Floats:
        """Everything that the aggregator does from the reveals to the sum: check, combine, take masks off, make floats."""
        for reveal in reveals:
            aggregator.take(reveal)
        return real_numbers(aggregator.result())


def _in_turn(works: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Processor seconds of each, in turn, so that a busy machine disturbs all alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS):
        for name, work in works.items():
            started = time.process_time()
            work()
            times[name].append(time.process_time() - started)
    return times


def _ratio(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Of the smallest, and the median of pairs."""
    return min(theirs) / min(ours), statistics.median(t / o for o, t in zip(ours, theirs, strict=True))


def secure_sums(folder: Path) -> list[Measure]:
    """A site's upload and the aggregator's unmasking, ours and Flower's, and how many bytes an upload has."""
    del folder
    ours = SecureRound(sites=SITES, drop=len(MISSING), size=PARAMETERS, steps=REPEATS + 2)
    theirs = FlowerSecAgg.create(sites=SITES, threshold=ours.group.threshold)
    draw = np.random.default_rng(1)
    vectors = {n: draw.uniform(-1, 1, PARAMETERS).astype(np.float32) for n in ours.group.names}
    alive = {n: v for i, (n, v) in enumerate(vectors.items()) if i not in MISSING}

    reveals = ours.masked(alive)
    masked = [theirs.mask(i, [vectors[n]], EXAMPLES) for i, n in enumerate(vectors) if i not in MISSING]
    flower_total = [np.sum([m[i] for m in masked], axis=0) for i in range(2)]
    error = _check(ours, theirs, reveals, flower_total, alive)
    first, vector = next(iter(vectors.items()))
    parties = iter([copy.deepcopy(ours.aggregator) for _ in range(REPEATS)])
    times = _in_turn(
        {
            "mask": partial(ours.mask, first, vector),
            "their mask": partial(theirs.mask, 0, [vector], EXAMPLES),
            "unmask": lambda: SecureRound.unmask(next(parties), reveals),
            "their unmask": partial(theirs.unmask, flower_total, MISSING),
        }
    )
    uplink = len(to_bytes(ours.sites[first].upload(ours.step(), quantised(vector)))) / vector.nbytes
    size = f"{SITES} sites, {PARAMETERS} parameters, smallest of {REPEATS}"
    mask, mask_pairs = _ratio(times["mask"], times["their mask"])
    unmask, unmask_pairs = _ratio(times["unmask"], times["their unmask"])
    return [
        Measure(name="secure upload", value=1000 * min(times["mask"]), unit="ms", note=f"with hash, signature; {size}"),
        Measure(name="Flower's upload", value=1000 * min(times["their mask"]), unit="ms"),
        Measure(
            name="secure upload / Flower's", value=1 / mask, unit="x", goal=1 / 5, note=f"pairs {1 / mask_pairs:.3f}"
        ),
        Measure(name="unmasking", value=1000 * min(times["unmask"]), unit="ms", note=f"{len(MISSING)} sites missing"),
        Measure(name="Flower's unmasking", value=1000 * min(times["their unmask"]), unit="ms"),
        Measure(
            name="unmasking / Flower's", value=1 / unmask, unit="x", goal=1 / 4, note=f"pairs {1 / unmask_pairs:.3f}"
        ),
        Measure(name="upload / fp32 bytes", value=uplink, unit="x", goal=1.02, note="ring of 32 bits"),
        Measure(name="sums differ by", value=error, unit="", note="ours and the plain sum, largest; quantisation"),
    ]


def _check(
    ours: SecureRound,
    theirs: FlowerSecAgg,
    reveals: list[Reveal],
    flower_total: list[NDArray[np.int64]],
    alive: Mapping[str, Floats],
) -> float:
    """Both give what they should: the sum, and the mean; otherwise their times say nothing."""
    plain = np.sum(list(alive.values()), axis=0, dtype=np.float64)
    total = SecureRound.unmask(copy.deepcopy(ours.aggregator), reveals)
    mean = theirs.unmask(flower_total, MISSING)[0]
    error = float(np.abs(total - plain).max())
    if error > len(alive) / SCALE or np.abs(mean * len(alive) - plain).max() > len(alive) * 2e-3:
        raise SystemExit(f"the secure sums are wrong: by {error}")
    return error
