"""Genes in the network: gradients per patient, absent genes, gene sets, and the layers against their definitions."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor

from oncofed_shared.errors import ConfigError
from oncofed_shared.losses import Target, patient_losses
from oncofed_shared.messages import Columns
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.network_graph import GeneGraphNetwork, Pathways, gather_genes
from oncofed_shared.plan import Plan, parse
from oncofed_shared.plan_sizes import SIZES, Fusion

FUSIONS = get_args(Fusion)
EDGES = b"# made up\nA\tB\nB C\nD\tC\nD D\n"
SETS = b"ONE\tx\tA\tB\tC\nTWO\tx\tC\tD\nTHREE\tx\tX\tY\tA\n"
COLUMNS: Columns = {
    "clinical": ("age",),
    # Gene E is in no edge and no set, and C has no mutations.
    "genes": ("A_mut", "A_rna", "B_mut", "B_rna", "C_rna", "D_mut", "D_rna", "E_rna"),
}
GENES = slice(1, 9)
INDEX = [[1, 0], [3, 2], [4, -1], [6, 5], [7, -1]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("genes")
    (folder / "graph.txt").write_bytes(EDGES)
    (folder / "sets.gmt").write_bytes(SETS)
    return folder


def named(content: bytes, file: str, **more: Any) -> dict[str, Any]:
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest(), **more}


def modality(encoder: str, *, kind: str = "convolution", sets: bool = False, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"encoder": encoder, "patterns": ["{gene}_rna", "{gene}_mut"]}
    if encoder == "graph":
        made["graph"] = named(EDGES, "graph.txt", kind=kind, channels=3)
    if sets:
        made["pathways"] = named(SETS, "sets.gmt", smallest=2)
    return made | more


ENCODERS = {
    "convolution": modality("graph"),
    "attention": modality("graph", kind="attention"),
    "graph and sets": modality("graph", sets=True),
    "attention and sets": modality("graph", kind="attention", sets=True),
    "pathways": modality("pathways", sets=True),
}


def plan_of(genes: dict[str, Any], folder: Path | None = None, **model: Any) -> Plan:
    return parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": {"two": {"kind": "classification", "label": "two", "classes": ["no", "yes"]}},
            "modalities": {
                "clinical": {"columns": {"age": {"kind": "numeric"}}, "side": "imaging"},
                "genes": {"side": "genes"} | genes,
            },
            "model": {"width": 8, "heads": 2, "layers": 1, "feedforward": 12, "linear_path": False, **model},
            "training": {"rounds": 1, "dtype": "float64"},
            "simulation": {} if folder is None else {"files": str(folder)},
        }
    )


def lively(plan: Plan) -> FusionNetwork:
    """A network whose zeros are filled, so that every path has an influence."""
    network = build(plan, COLUMNS, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.3)
    return network.eval()


def patients(n: int = 6) -> tuple[Tensor, Tensor]:
    """The first has nothing, the second no gene, the third one gene, the others most of everything."""
    rng = np.random.default_rng(0)
    seen = rng.random((n, 9)) < 0.8
    seen[0], seen[1, 1:], seen[2, 1:] = False, False, False
    seen[2, 2] = True
    return torch.tensor(np.where(seen, rng.normal(size=(n, 9)), 0)), torch.tensor(seen).double()


SHOWN = ("graph and sets", "attention", "pathways")
CASES = [(SHOWN[0], {"fusion": f}) for f in FUSIONS] + [(e, {"size": s}) for e in SHOWN for s in SIZES]
each_case = pytest.mark.parametrize(
    ("encoder", "model"), CASES, ids=[f"{e}-{next(iter(m.values()))}" for e, m in CASES]
)
each_encoder = pytest.mark.parametrize("encoder", ENCODERS)


@each_case
def test_gradients_are_those_of_each_patient_alone_and_opacus_is_content(
    files: Path, encoder: str, model: dict[str, Any]
) -> None:
    plan = plan_of(ENCODERS[encoder], files, **model)
    values, seen = patients()
    goal = torch.tensor([1.0, 0.0] * 3, dtype=torch.float64)

    def loss(network: torch.nn.Module, rows: slice) -> Tensor:
        target = Target(goal=goal[rows, None], weight=torch.ones_like(goal[rows]))
        return patient_losses(plan, network(values[rows], seen[rows]), {"two": target}).sum()

    network = lively(plan)
    assert ModuleValidator.validate(lively(plan).train(), strict=False) == []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        hooked = GradSampleModule(lively(plan).train(), loss_reduction="sum", strict=True)
        torch.autograd.backward([loss(hooked, slice(None))])
    for i in range(len(values)):
        network.zero_grad(set_to_none=True)
        torch.autograd.backward([loss(network, slice(i, i + 1))])
        for name, parameter in hooked._module.named_parameters():
            alone = dict(network.named_parameters())[name].grad
            torch.testing.assert_close(
                parameter.grad_sample[i], torch.zeros_like(parameter) if alone is None else alone, rtol=1e-5, atol=1e-5
            )


@each_case
def test_garbage_in_an_absent_value_changes_nothing_and_what_is_there_counts(
    files: Path, encoder: str, model: dict[str, Any]
) -> None:
    network = lively(plan_of(ENCODERS[encoder], files, **model))
    values, seen = patients()
    clean = network(values, seen)["two"]
    for garbage in (float("nan"), float("inf"), 1e30):
        assert torch.equal(network(torch.where(seen > 0, values, garbage), seen)["two"], clean)
    other = values.clone()
    other[3:, 1:] += torch.linspace(-2, 2, 8, dtype=torch.float64) * seen[3:, 1:]
    changed = (network(other, seen)["two"] != clean)[:, 0]
    assert not changed[:3].any()
    assert changed[3:].any()


def encoder_of(plan: Plan) -> GeneGraphNetwork | Pathways:
    found = lively(plan).tokenisers.encoders[0]
    assert isinstance(found, GeneGraphNetwork | Pathways)
    return found


@each_encoder
def test_a_patient_alone_and_among_others_has_the_same_tokens(files: Path, encoder: str) -> None:
    made = encoder_of(plan_of(ENCODERS[encoder], files))
    values, seen = (t[:, GENES] for t in patients())
    tokens, present = made(values, seen)
    for i in range(len(values)):
        torch.testing.assert_close(made(values[i : i + 1], seen[i : i + 1])[0][0], tokens[i], rtol=1e-12, atol=1e-12)
    assert present[:2].sum() == 0
    assert present[3:].all()


def adjacency() -> np.ndarray[Any, Any]:
    """A-B, B-C, C-D and a loop at each, written out."""
    edges = np.eye(5)
    for a, b in ((0, 1), (1, 2), (2, 3)):
        edges[a, b] = edges[b, a] = 1
    return edges


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def test_genes_are_gathered_by_channel(files: Path) -> None:
    values, seen = (t[:, GENES] for t in patients())
    made = encoder_of(plan_of(ENCODERS["convolution"], files))
    assert made.index.tolist() == INDEX
    genes, present = gather_genes(values, seen, made.index)
    for i, row in enumerate(values.tolist()):
        for g, places in enumerate(INDEX):
            wanted = [row[p] if p >= 0 and seen[i, p] else 0 for p in places]
            assert genes[i, g].tolist() == wanted
            assert present[i, g] == any(p >= 0 and seen[i, p] for p in places)


@pytest.mark.parametrize("kind", ["convolution", "attention"])
def test_a_layer_is_what_its_paper_says(files: Path, kind: str) -> None:
    """Each gene written out by itself, from the sums over its neighbours."""
    made = encoder_of(plan_of(ENCODERS[kind], files))
    assert isinstance(made, GeneGraphNetwork)
    layer: Any = made.layers[0]
    edges, torch_rng = adjacency(), torch.Generator().manual_seed(5)
    genes = torch.randn((3, 5, 3), generator=torch_rng, dtype=torch.float64)
    present = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 0, 1.0]], dtype=torch.float64)
    genes = genes * present[:, :, None]
    found = layer(genes, present)
    degree = edges.sum(axis=1)
    for i in range(3):
        for g in np.flatnonzero(present[i]).tolist():
            near = [k for k in range(5) if edges[g, k] and (kind == "convolution" or present[i, k])]
            if kind == "convolution":
                mixed = sum(genes[i, k] / (degree[g] * degree[k]) ** 0.5 for k in near) @ layer.near.weight.T
            else:
                query = layer.query.weight @ genes[i, g]
                scores = torch.stack([query @ (layer.key.weight @ genes[i, k]) / 3**0.5 for k in near])
                weights = scores.softmax(dim=0)
                mixed = sum(w * (layer.value.weight @ genes[i, k]) for w, k in zip(weights, near, strict=True))
            wanted = genes[i, g] + gelu(layer.own(genes[i, g]) + mixed)
            torch.testing.assert_close(found[i, g], wanted, rtol=1e-6, atol=1e-6)


def test_a_gene_reaches_as_far_as_there_are_layers(files: Path) -> None:
    """A is three edges from D: one layer more than two."""
    for layers, reached in ((1, 2), (2, 3), (3, 4)):
        genes = modality("graph") | {"graph": named(EDGES, "graph.txt", layers=layers, channels=3)}
        made = encoder_of(plan_of(genes, files))
        assert isinstance(made, GeneGraphNetwork)
        values = torch.zeros(1, 5, 3, dtype=torch.float64)
        values[0, 0] = 1
        values.requires_grad_()
        mixed = values
        for layer in made.layers:
            mixed = layer(mixed, torch.ones(1, 5, dtype=torch.float64))
        touched = [
            bool(torch.autograd.grad(mixed[0, g].sum(), values, retain_graph=True)[0][0, 0].any()) for g in range(5)
        ]
        assert touched == [g < reached for g in range(5)]


def test_tokens_are_the_gene_sets_that_are_large_enough_and_the_rest(files: Path) -> None:
    def groups(**more: Any) -> list[list[int]]:
        genes = modality("pathways", pathways=named(SETS, "sets.gmt", **more))
        return [g.tolist() for g in encoder_of(plan_of(genes, files)).groups]

    one, two, three, rest = [0, 1, 2], [2, 3], [0], [4]
    assert groups(smallest=2) == [one, two, rest]
    assert groups(smallest=1) == [one, three, two, rest]
    assert groups(smallest=3) == [one, [3, 4]]
    assert groups(smallest=2, rest="leave") == [one, two]
    assert groups(smallest=9, rest="leave") == [[0, 1, 2, 3, 4]], "with no set at all there is something to read"


def test_a_token_reads_its_set_alone(files: Path) -> None:
    made = encoder_of(plan_of(ENCODERS["pathways"], files))
    values = torch.zeros(1, 8, dtype=torch.float64, requires_grad=True)
    tokens, _ = made(values, torch.ones(1, 8, dtype=torch.float64))
    read = [torch.autograd.grad(t.sum(), values, retain_graph=True)[0][0].nonzero()[:, 0].tolist() for t in tokens[0]]
    assert read == [[0, 1, 2, 3, 4], [4, 5, 6], [7]]


def test_absent_parts_of_a_set_are_told_from_zeros(files: Path) -> None:
    made = encoder_of(plan_of(ENCODERS["pathways"], files))
    values, seen = torch.zeros(1, 8, dtype=torch.float64), torch.ones(1, 8, dtype=torch.float64)
    some = seen.clone()
    some[0, 4] = 0
    whole, part = made(values, seen)[0], made(values, some)[0]
    assert not torch.equal(whole[0, 0], part[0, 0])
    assert torch.equal(whole[0, 2], part[0, 2])


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        (
            {"encoder": "graph", "patterns": ["{gene}_rna"]},
            "genes.graph: goes with encoder = 'graph', and only with it",
        ),
        (modality("graph") | {"encoder": "linear"}, "genes.graph: goes with encoder = 'graph', and only with it"),
        (modality("graph", patterns=["*_rna"]), r"genes.graph: encoder = 'graph' reads genes: it needs patterns"),
        (modality("graph", patterns=["{gene}_*"]), "it needs patterns"),
        (modality("pathways"), "genes.pathways: is missing"),
        (
            {"patterns": ["{gene}_rna"], "pathways": named(SETS, "sets.gmt")},
            "genes.pathways: goes with encoder = 'graph'",
        ),
        (modality("pathways", sets=True, tokens=3), "genes.tokens: encoder = 'pathways' makes its own tokens"),
        (modality("graph", graph=named(EDGES, "../graph.txt")), "genes.graph.file: must lie beside the study"),
        (modality("graph", graph=named(EDGES, "g") | {"sha256": "0"}), "genes.graph.sha256: "),
        (modality("graph", graph=named(EDGES, "g", kind="isomorphism")), "genes.graph.kind: "),
    ],
)
def test_what_an_encoder_of_genes_cannot_read_is_refused(genes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(genes)
