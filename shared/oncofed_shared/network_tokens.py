"""From a patient's columns and patches to tokens: a linear map for each group of columns, or an encoder of a modality's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from oncofed_shared.messages import Columns
from oncofed_shared.network_encoder import Encoder, EncoderShape
from oncofed_shared.network_image import Cnn
from oncofed_shared.plan import Modality, Plan, compile_pattern, voxels_of

__all__ = ["ENCODERS", "Tokenisers", "token_columns"]

ENCODERS: Mapping[str, Callable[[EncoderShape], Encoder]] = {"cnn": Cnn}
"""Every `[modalities.NAME] encoder` but the linear one."""
EARLY = "early"
"""The fusion that makes no tokens of columns."""


def token_columns(columns: Columns, modalities: Mapping[str, Modality]) -> dict[str, list[int]]:
    """Which columns each token reads, as indices into the concatenation over sorted modalities.

    A column that no named pattern matches goes to a token `<modality>.other`. A modality with an encoder of its own is one
    group here.
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


class Tokenisers(nn.Module):
    """All tokens of a patient.

    The linear maps are its children `0`, `1`, ..; encoders are `encoders.0`, `encoders.1`, .., in the order of their modalities.

    Attributes:
        whole: the first linear map reads all columns at once, and what encoders say of patches is added to it.
        each: there are tokens.
        modalities: those that have a column, sorted.
        member: (tokens, modalities), 1 where a token is of a modality.
        owners: modality of each encoder.
    """

    def __init__(self, plan: Plan, columns: Columns, *, whole: bool) -> None:
        super().__init__()
        self.whole, self.each, self.width = whole, plan.model.fusion != EARLY, plan.model.width
        groups = token_columns(columns, plan.modalities)
        # Names of modalities have no dot, so that a token's first part is its modality.
        owner = {token: token.split(".")[0] for token in groups}
        self.modalities = tuple(dict.fromkeys(owner.values()))
        own = [m for m in self.modalities if plan.modalities[m].encoder != "linear"]
        patches = {m for m in own if voxels_of(plan.modalities[m])}
        self._read(columns, groups)
        # A token reads its columns and the share of them that is missing: one linear map each, over neighbouring inputs.
        reads = [(owner[token], [*i, self.columns + t]) for t, (token, i) in enumerate(groups.items())]
        wide = [indices for modality, indices in reads if modality not in patches]
        self.mapped = [t for t, (modality, _) in enumerate(reads) if modality not in own]
        narrow = [reads[t][1] for t in self.mapped]
        self.lengths = [len(indices) for indices in narrow]
        self.order_whole = torch.tensor([i for indices in wide for i in indices], dtype=torch.long)
        self.order = torch.tensor([i for indices in narrow for i in indices], dtype=torch.long)
        lengths = [len(self.order_whole)] * self.whole + self.lengths * self.each
        for i, length in enumerate(lengths):
            self.add_module(str(i), nn.Linear(length, plan.model.width))
        self.owners = [m for m in own if self.each or m in patches]
        encoders = [
            ENCODERS[plan.modalities[m].encoder](
                EncoderShape(
                    name=m,
                    modality=plan.modalities[m],
                    columns=columns[m],
                    width=plan.model.width,
                    dropout=plan.training.dropout,
                )
            )
            for m in self.owners
        ]
        self.encoders = nn.ModuleList(encoders)
        self._places(plan, columns)
        owners = [reads[t][0] for t in self.mapped]
        owners += [m for m, e in zip(self.owners, encoders, strict=True) for _ in range(e.tokens)]
        self.member = torch.tensor([[float(owner == m) for m in self.modalities] for owner in owners])

    def _read(self, columns: Columns, groups: Mapping[str, list[int]]) -> None:
        self.columns = sum(len(c) for c in columns.values())
        self.membership = torch.zeros(self.columns, len(groups))
        self.kind = torch.zeros(self.columns, len(self.modalities))
        for t, (token, indices) in enumerate(groups.items()):
            self.membership[indices, t] = 1 / len(indices)
            self.kind[indices, self.modalities.index(token.split(".")[0])] = 1

    def _places(self, plan: Plan, columns: Columns) -> None:
        """Where each encoder's values and marks stand."""
        column, voxel = 0, self.columns
        found = {}
        for name in sorted(columns):
            marks = slice(column, column + len(columns[name]))
            column = marks.stop
            volume = len(columns[name]) * voxels_of(plan.modalities[name])
            found[name] = (slice(voxel, voxel + volume) if volume else marks, marks)
            voxel += volume
        self.places = [found[m] for m in self.owners]

    def __getitem__(self, index: int) -> nn.Linear:
        """A linear map; with `whole` the first one reads all columns."""
        layer = self._modules[str(index)]
        assert isinstance(layer, nn.Linear)  # noqa: S101 - what __init__ put there
        return layer

    def shares(self, seen: Tensor) -> Tensor:
        """(n, columns) of 0 and 1 to the share of each group of columns that was observed, (n, groups)."""
        return seen @ self.membership.to(seen.dtype)

    def sides(self, side: Mapping[str, str]) -> tuple[list[int], list[int]]:
        """Places of the tokens of imaging and of genes, from the side of each modality."""
        owner = [self.modalities[int(row.argmax())] for row in self.member]
        imaging, genes = ([t for t, m in enumerate(owner) if side[m] == name] for name in ("imaging", "genes"))
        return imaging, genes

    def present(self, seen: Tensor) -> Tensor:
        """(n, columns) of 0 and 1 to who has which modality, (n, modalities) of 0 and 1."""
        return (seen @ self.kind.to(seen.dtype) > 0).to(seen.dtype)

    def forward(self, values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make tokens.

        Args:
            values: (n, columns + voxels), 0 where a column was not observed; anything in the voxels of a series that is absent.
            seen: (n, columns) of 0 and 1.

        Returns:
            (n, 1, width) from everything at once with `whole`, or (n, 0, width); (n, tokens, width), anything finite where
            absent; (n, tokens) of 0 and 1, which tokens are there.
        """
        shares = self.shares(seen)
        table = values[:, : self.columns]
        whole = values.new_zeros(len(values), 0, self.width)
        if self.whole:
            # Observed shares, not missing ones: what is absent then adds 0 here too.
            whole = self[0](torch.cat([table, shares], dim=1)[:, self.order_whole])[:, None]
        made, there = [whole[:, :0]], [values.new_zeros(len(values), 0)]
        if self.each and self.lengths:
            parts = torch.split(torch.cat([table, 1 - shares], dim=1)[:, self.order], self.lengths, dim=1)
            made += [self[i](part)[:, None] for i, part in enumerate(parts, int(self.whole))]
            there.append((shares[:, self.mapped] > 0).to(values.dtype))
        for encoder, (own, marks) in zip(self.encoders, self.places, strict=True):
            tokens, present = encoder(values[:, own], seen[:, marks])
            if self.whole and own != marks:
                # An image has no columns to read at once: it enters as its encoder sees it.
                whole = whole + (tokens * present[:, :, None]).sum(dim=1, keepdim=True)
            if self.each:
                made.append(tokens)
                there.append(present)
        return whole, torch.cat(made, dim=1), torch.cat(there, dim=1)
