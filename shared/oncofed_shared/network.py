"""The shared network: tokens per modality, a way of joining them, a linear path, one head per task.

By default a small transformer joins them; the others are in `network_fusion`.

Nothing in it looks at another patient (no batch statistics), every layer gives per-sample gradients, and what a patient lacks
is masked before and after the tokeniser, so that garbage in an absent value changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name

from oncofed_shared.heads import baseline_width, first_baseline, joined, outputs
from oncofed_shared.messages import Columns
from oncofed_shared.modality_dropout import ModalityDropout
from oncofed_shared.network_attention import Crossing, Layer
from oncofed_shared.network_fusion import ATTENTIVE, JOINS, READS_WHOLE, Shape, modality_vectors
from oncofed_shared.network_tokens import Tokenisers
from oncofed_shared.plan import Plan, side_of, voxels_of

__all__ = ["FusionNetwork", "build"]


def _column_factors(plan: Plan, columns: Columns) -> Tensor | None:
    """What each scaled column is multiplied by, (columns,): the share of its block, and what the plan says of its modality."""
    emphases = {m: plan.modalities[m].emphasis for m in columns}
    if not plan.model.block_scaling and set(emphases.values()) <= {1.0}:
        return None
    block = -0.5 if plan.model.block_scaling else 0.0
    return torch.tensor([len(c) ** block * emphases[m] for m, c in sorted(columns.items()) for _ in c])


def _marks(plan: Plan, columns: Columns) -> Tensor:
    """How strongly the linear path sees who has which modality, (columns, modalities that are marked): one entry per column."""
    marked = [m for m in sorted(columns) if plan.modalities[m].presence]
    owners = [m for m, c in sorted(columns.items()) for _ in c]
    made = [[plan.modalities[m].presence * (owner == m) for m in marked] for owner in owners]
    return torch.tensor(made, dtype=torch.float32).reshape(len(owners), len(marked))


class FusionNetwork(nn.Module):
    """Maps a patient's scaled values and their presence to one row of logits per task.

    Attributes:
        tokenisers: per token from its scaled values, and the share of them that is missing, to its vector; or an encoder of a
            modality's own. Where the fusion reads all columns at once, the first one does, with the shares that were observed.
        linear: from all columns to all outputs, and from who has which modality where the plan says so; starts at zero, as the
            transformer's heads do: the first prediction is the baseline for everybody.
        reads: numbers that it reads of a patient: columns, and voxels behind them.
        named: all parameters, by name; walking the modules for them costs as much as a small step.
        places: per modality that has any, the places of its columns.
        baselines: per task, by name, the bias of each output or interval.
    """

    def __init__(self, plan: Plan, columns: Columns) -> None:
        super().__init__()
        model, training = plan.model, plan.training
        self.tasks = dict(sorted(plan.tasks.items()))
        self.sizes = {n: outputs(t, proportional=model.hazards == "proportional") for n, t in self.tasks.items()}
        self.input_dropout = nn.Dropout(training.input_dropout)
        self.block = _column_factors(plan, columns)
        self.modality_dropout = ModalityDropout(training.modality_dropout, [len(c) for _, c in sorted(columns.items())])
        self.marks = _marks(plan, columns)
        total = sum(len(c) for c in columns.values())
        width = total + self.marks.shape[1]
        owners = [m for m in sorted(columns) for _ in columns[m]]
        self.places = {m: [i for i, owner in enumerate(owners) if owner == m] for m in dict.fromkeys(owners)}
        self.linear = nn.Linear(width, sum(self.sizes.values()), bias=False) if model.linear_path else None
        # A list, because a task may have any name, and a module's attributes may not.
        self.baselines = nn.ModuleList(nn.Linear(1, baseline_width(t), bias=False) for t in self.tasks.values())
        self.reads = total + sum(voxels_of(plan.modalities[m]) * len(c) for m, c in columns.items())
        self.deep = model.layers > 0
        if self.deep:
            self.tokenisers = Tokenisers(plan, columns, whole=plan.model.fusion in READS_WHOLE)
            self._build_fusion(plan)
        self._initialise()
        self.named = dict(sorted(self.named_parameters()))
        self._vector: Tensor | None = None

    def _build_fusion(self, plan: Plan) -> None:
        model, training = plan.model, plan.training
        self.transformer = model.fusion in ATTENTIVE
        if not self.transformer:
            shape = Shape(
                modalities=self.tokenisers.whole + self.tokenisers.each * len(self.tokenisers.modalities),
                width=model.width,
                layers=model.layers,
                feedforward=model.feedforward,
                dropout=training.dropout,
                outputs=sum(self.sizes.values()),
            )
            self.fusion = JOINS[model.fusion](shape)
            return
        self.crossing = None
        if model.fusion == "two_way":
            sides = self.tokenisers.sides({m: side_of(plan.modalities[m]) for m in self.tokenisers.modalities})
            self.crossing = Crossing(model.width, model.heads, training.dropout, sides)
        self.summary = nn.Linear(1, model.width, bias=False)
        self.layers = nn.ModuleList(
            Layer(model.width, model.heads, model.feedforward, training.dropout) for _ in range(model.layers)
        )
        self.norm = nn.LayerNorm(model.width)
        self.heads = nn.Linear(model.width, sum(self.sizes.values()), bias=False)

    def _initialise(self) -> None:
        if self.linear is not None:
            nn.init.zeros_(self.linear.weight)
        if self.deep and self.transformer:
            nn.init.zeros_(self.heads.weight)
        for task, baseline in zip(self.tasks.values(), self.baselines, strict=True):
            with torch.no_grad():
                baseline.get_parameter("weight").copy_(first_baseline(task))

    @property
    def vector(self) -> Tensor:
        """All parameters in one vector, by name as in a `Layout`; each is a view of it, so that one copy sets them all."""
        parameters = list(self.named.values())
        # A conversion of the network to another dtype gives its parameters a place of their own again.
        if self._vector is None or self._vector.data_ptr() != parameters[0].data_ptr():
            self._vector = torch.cat([p.detach().ravel() for p in parameters])
            parts = torch.split(self._vector, [p.numel() for p in parameters])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.data = part.view_as(parameter)
        return self._vector

    def forward(self, values: Tensor, seen: Tensor) -> dict[str, Tensor]:
        """Logits per task.

        Args:
            values: (n, columns) scaled, anything where missing; behind them the voxels of patches, if the plan reads any.
            seen: (n, columns), 1 where observed.

        Returns:
            Per task a head's logits, (n, `heads.baseline_width`).
        """
        seen = self.modality_dropout(seen)
        values = self._table(values, seen)
        raw = values.new_zeros(len(values), sum(self.sizes.values()))
        if self.linear is not None:
            raw = raw + self.linear(self._with_marks(values[:, : seen.shape[1]], seen))
        if self.deep:
            raw = raw + (self.heads(self._summarise(values, seen)) if self.transformer else self._join(values, seen))
        one = values.new_ones(len(values), 1)
        split = torch.split(raw, list(self.sizes.values()), dim=1)
        return {
            name: joined(task, part, baseline(one))
            for (name, task), part, baseline in zip(self.tasks.items(), split, self.baselines, strict=True)
        }

    def _with_marks(self, table: Tensor, seen: Tensor) -> Tensor:
        """What the linear path reads, (n, marked modalities + columns): a number for each marked modality that is there."""
        if not self.marks.shape[1]:
            return table
        there = torch.stack([(seen * (mark > 0)).any(dim=1) for mark in self.marks.T], dim=1)
        return torch.cat([there * self.marks.amax(dim=0).to(table.dtype), table], dim=1)

    def _table(self, values: Tensor, seen: Tensor) -> Tensor:
        """What the network reads: columns masked and scaled by block, voxels as they are."""
        # Chosen, not multiplied: 0 times an infinite value is not 0.
        table = self.input_dropout(torch.where(seen > 0, values[:, : seen.shape[1]], 0))
        if self.block is not None:
            table = table * self.block.to(values.dtype)
        voxels = values[:, seen.shape[1] :]
        return torch.cat([table, voxels], dim=1) if voxels.shape[1] else table

    def _join(self, values: Tensor, seen: Tensor) -> Tensor:
        """(n, columns + voxels) and (n, columns) to (n, outputs)."""
        whole, tokens, there = self.tokenisers(values, seen)
        vectors, present = [F.gelu(whole)], [values.new_ones(whole.shape[:2])]
        if self.tokenisers.each:
            made, has = modality_vectors(tokens, there, self.tokenisers.member.to(values.dtype))
            vectors.append(made)
            present.append(has)
        joined: Tensor = self.fusion(torch.cat(vectors, dim=1), torch.cat(present, dim=1))
        return joined

    def _summarise(self, values: Tensor, seen: Tensor) -> Tensor:
        one = values.new_ones(len(values), 1)
        _, tokens, present = self.tokenisers(values, seen)
        tokens = tokens * present[:, :, None]
        if self.crossing is not None:
            tokens = self.crossing(tokens, present > 0)
        sequence = torch.cat([self.summary(one)[:, None], tokens], dim=1)
        mask = torch.cat([one, present], dim=1) > 0
        for layer in self.layers:
            sequence = layer(sequence, mask)
        summary: Tensor = self.norm(sequence[:, 0])
        return summary

    def attended(self, values: Tensor, seen: Tensor) -> Tensor:
        """How much of each token the summary holds behind all attention: (n, tokens), 0 for what is absent.

        For a fusion of tokens; see `network_weights`.
        """
        table = self._table(values, seen)
        one = values.new_ones(len(values), 1)
        _, tokens, present = self.tokenisers(table, seen)
        tokens = tokens * present[:, :, None]
        n, t, _ = tokens.shape
        held = torch.eye(1 + t, dtype=tokens.dtype).repeat(n, 1, 1)
        if self.crossing is not None:
            held[:, 1:, 1:] = self.crossing.reading(tokens, present > 0)
            tokens = self.crossing(tokens, present > 0)
        sequence = torch.cat([self.summary(one)[:, None], tokens], dim=1)
        mask = torch.cat([one, present], dim=1) > 0
        for layer in self.layers:
            assert isinstance(layer, Layer)  # noqa: S101 - what __init__ put there
            held = layer.reading(sequence, mask) @ held
            sequence = layer(sequence, mask)
        read: Tensor = held[:, 0, 1:] * present
        return read


def build(plan: Plan, columns: Columns, seed: int) -> FusionNetwork:
    """Build the plan's network with first values that the seed alone decides."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also look for every kind of device, which takes longer than a small network.
        torch.default_generator.manual_seed(seed)
        network = FusionNetwork(plan, columns)
    return network.to(torch.float64 if plan.training.dtype == "float64" else torch.float32)
