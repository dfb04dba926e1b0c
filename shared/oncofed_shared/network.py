"""The shared network: tokens per modality, a way of joining them, a linear path, one head per task.

By default a small transformer joins them; the others are in `network_fusion`.

Nothing in it looks at another patient (no batch statistics), every layer gives per-sample gradients, and what a patient lacks
is masked before and after the tokeniser, so that garbage in an absent value changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name

from oncofed_shared.errors import ConfigError
from oncofed_shared.heads import baseline_width, first_baseline, joined, outputs
from oncofed_shared.messages import Columns
from oncofed_shared.modality_dropout import ModalityDropout
from oncofed_shared.network_fusion import JOINS, READS_WHOLE, Late, Shape, WeightedSum, modality_vectors
from oncofed_shared.plan import Modality, Plan, compile_pattern

__all__ = ["FusionNetwork", "build", "token_columns"]


def token_columns(columns: Columns, modalities: Mapping[str, Modality]) -> dict[str, list[int]]:
    """Which columns each token reads, as indices into the concatenation over sorted modalities.

    A column that no named pattern matches goes to a token `<modality>.other`.
    """
    tokens: dict[str, list[int]] = {}
    start = 0
    for name in sorted(columns):
        names = columns[name]
        indices = list(range(start, start + len(names)))
        start += len(names)
        rule = modalities[name].tokens
        if not names:
            continue
        if rule == "one":
            tokens[name] = indices
        elif rule == "columns":
            for column, index in zip(names, indices, strict=True):
                tokens.setdefault(f"{name}.{column.split('=')[0]}", []).append(index)
        elif isinstance(rule, int):
            parts = min(rule, len(names))
            for p in range(parts):
                cut = slice(p * len(names) // parts, (p + 1) * len(names) // parts)
                tokens[f"{name}.{p}"] = indices[cut]
        else:
            for column, index in zip(names, indices, strict=True):
                family = next(
                    (f for f, ps in rule.items() if any(compile_pattern(p).fullmatch(column) for p in ps)),
                    "other",
                )
                tokens.setdefault(f"{name}.{family}", []).append(index)
    return tokens


class _Attention(nn.Module):
    """Multi-head self-attention from plain linear layers (Vaswani et al. 2017), so that per-sample gradients are exact."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """(n, t, width) and (n, t) bool to (n, t, width)."""
        n, t, width = tokens.shape

        def split(layer: nn.Linear) -> Tensor:
            heads: Tensor = layer(tokens)
            return heads.view(n, t, self.heads, width // self.heads).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            split(self.query), split(self.key), split(self.value), attn_mask=present[:, None, None, :]
        )
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(n, t, width))
        return out


class _Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention, self.norm_feedforward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.widen, self.narrow = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """(n, t, width) to the same."""
        tokens = tokens + self.dropout(self.attention(self.norm_attention(tokens), present))
        inner = F.gelu(self.widen(self.norm_feedforward(tokens)))
        changed: Tensor = tokens + self.dropout(self.narrow(inner))
        return changed


class FusionNetwork(nn.Module):
    """Maps a patient's scaled values and their presence to one row of logits per task.

    Attributes:
        tokenisers: per token from its scaled values, and the share of them that is missing, to its vector. Where the fusion
            reads all columns at once, the first one does, with the shares that were observed.
        linear: from all columns to all outputs; starts at zero, as the transformer's heads do: the first prediction is the
            baseline for everybody.
        reads: numbers that it reads of a patient.
        named: all parameters, by name; walking the modules for them costs as much as a small step.
        baselines: per task, by name, the bias of each output or interval.
    """

    def __init__(self, plan: Plan, columns: Columns) -> None:
        super().__init__()
        model, training = plan.model, plan.training
        self.tasks = dict(sorted(plan.tasks.items()))
        self.sizes = {n: outputs(t, proportional=model.hazards == "proportional") for n, t in self.tasks.items()}
        self.input_dropout = nn.Dropout(training.input_dropout)
        self.modality_dropout = ModalityDropout(training.modality_dropout, [len(c) for _, c in sorted(columns.items())])
        total = sum(len(c) for c in columns.values())
        self.linear = nn.Linear(total, sum(self.sizes.values()), bias=False) if model.linear_path else None
        blocks = [len(c) ** -0.5 for _, c in sorted(columns.items()) for _ in c]
        self.block = torch.tensor(blocks) if model.block_scaling else None
        # A list, because a task may have any name, and a module's attributes may not.
        self.baselines = nn.ModuleList(nn.Linear(1, baseline_width(t), bias=False) for t in self.tasks.values())
        self.reads = total
        self.deep = model.layers > 0
        if self.deep:
            self._build_tokens(plan, columns)
            self._build_fusion(plan)
        self._initialise()
        self.named = dict(sorted(self.named_parameters()))
        self._vector: Tensor | None = None

    def _build_tokens(self, plan: Plan, columns: Columns) -> None:
        tokens = token_columns(columns, plan.modalities)
        total, count = sum(len(c) for c in columns.values()), len(tokens)
        # A token reads its columns and the share of them that is missing: one linear map each, over neighbouring inputs.
        order = [[*indices, total + t] for t, indices in enumerate(tokens.values())]
        self.order = torch.tensor([i for own in order for i in own])
        self.lengths = [len(own) for own in order]
        membership = torch.zeros(total, count)
        for t, indices in enumerate(tokens.values()):
            membership[indices, t] = 1 / len(indices)
        self.membership = membership
        fusion = plan.model.fusion
        self.whole, self.each = fusion in READS_WHOLE, fusion != "early"
        lengths = [sum(self.lengths)] * self.whole + self.lengths * self.each
        self.tokenisers = nn.ModuleList(nn.Linear(n, plan.model.width) for n in lengths)
        # Names of modalities have no dot, so that a token's first part is its modality.
        owners = [name.split(".")[0] for name in tokens]
        self.modalities = tuple(dict.fromkeys(owners))
        self.member = torch.tensor([[float(owner == m) for m in self.modalities] for owner in owners])

    def _build_fusion(self, plan: Plan) -> None:
        model, training = plan.model, plan.training
        self.transformer = model.fusion == "transformer"
        if not self.transformer:
            shape = Shape(
                modalities=self.whole + self.each * len(self.modalities),
                width=model.width,
                layers=model.layers,
                feedforward=model.feedforward,
                dropout=training.dropout,
                outputs=sum(self.sizes.values()),
            )
            self.fusion = JOINS[model.fusion](shape)
            return
        self.summary = nn.Linear(1, model.width, bias=False)
        self.layers = nn.ModuleList(
            _Layer(model.width, model.heads, model.feedforward, training.dropout) for _ in range(model.layers)
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
            values: (n, columns) scaled, anything where missing.
            seen: (n, columns), 1 where observed.

        Returns:
            Per task a head's logits, (n, `heads.baseline_width`).
        """
        seen = self.modality_dropout(seen)
        # Chosen, not multiplied: 0 times an infinite value is not 0.
        values = self.input_dropout(torch.where(seen > 0, values, 0))
        if self.block is not None:
            values = values * self.block.to(values.dtype)
        raw = values.new_zeros(len(values), sum(self.sizes.values()))
        if self.linear is not None:
            raw = raw + self.linear(values)
        if self.deep:
            raw = raw + (self.heads(self._summarise(values, seen)) if self.transformer else self._join(values, seen))
        one = values.new_ones(len(values), 1)
        split = torch.split(raw, list(self.sizes.values()), dim=1)
        return {
            name: joined(task, part, baseline(one))
            for (name, task), part, baseline in zip(self.tasks.items(), split, self.baselines, strict=True)
        }

    def _tokens(self, values: Tensor, shares: Tensor) -> Tensor:
        """(n, columns) and (n, tokens) to (n, tokens, width)."""
        inputs = torch.cat([values, 1 - shares], dim=1)[:, self.order]
        parts = torch.split(inputs, self.lengths, dim=1)
        own = list(self.tokenisers)[self.whole :]
        return torch.stack([t(part) for t, part in zip(own, parts, strict=True)], dim=1)

    def _join(self, values: Tensor, seen: Tensor) -> Tensor:
        """(n, columns) both to (n, outputs)."""
        shares = seen @ self.membership.to(seen.dtype)
        vectors, present = [], []
        if self.whole:
            # Observed shares, not missing ones: what is absent then adds 0 here too.
            everything = self.tokenisers[0](torch.cat([values, shares], dim=1)[:, self.order])
            vectors.append(F.gelu(everything)[:, None])
            present.append(values.new_ones(len(values), 1))
        if self.each:
            there = (shares > 0).to(values.dtype)
            made, has = modality_vectors(self._tokens(values, shares), there, self.member.to(values.dtype))
            vectors.append(made)
            present.append(has)
        joined: Tensor = self.fusion(torch.cat(vectors, dim=1), torch.cat(present, dim=1))
        return joined

    def modality_weights(self, seen: Tensor) -> dict[str, Tensor]:
        """How much each modality counts in each patient's prediction.

        Args:
            seen: (n, columns), 1 where observed.

        Returns:
            Per modality that has columns (n,): from 0, which an absent one has, to 1, which they add up to where there is any.

        Raises:
            ConfigError: the plan's fusion weighs no modality as a whole.
        """
        if not self.deep or self.transformer or not isinstance(self.fusion, Late | WeightedSum):
            raise ConfigError("model.fusion: has no weights per modality; 'weighted_sum' and 'late' have")
        there = ((seen @ self.membership.to(seen.dtype)) > 0).to(seen.dtype)
        weights = self.fusion.weights((there @ self.member.to(seen.dtype)).clamp(max=1))
        return dict(zip(self.modalities, weights.detach().unbind(dim=1), strict=True))

    def _summarise(self, values: Tensor, seen: Tensor) -> Tensor:
        one = values.new_ones(len(values), 1)
        shares = seen @ self.membership.to(seen.dtype)
        present = shares > 0
        tokens = self._tokens(values, shares)
        sequence = torch.cat([self.summary(one)[:, None], tokens * present[:, :, None]], dim=1)
        mask = torch.cat([one > 0, present], dim=1)
        for layer in self.layers:
            sequence = layer(sequence, mask)
        summary: Tensor = self.norm(sequence[:, 0])
        return summary


def build(plan: Plan, columns: Columns, seed: int) -> FusionNetwork:
    """Build the plan's network with first values that the seed alone decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FusionNetwork(plan, columns)
    return network.to(torch.float64 if plan.training.dtype == "float64" else torch.float32)
