"""How a study uses what is publicly known about genes: a graph over them, and sets of them.

The files are public and the same for everybody. Their SHA-256 stands here and so in the plan's hash: a site whose file has
other bytes refuses.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from oncofed_shared.plan_radiomics import File
from oncofed_shared.strict import Frozen

__all__ = ["GeneFile", "GeneGraph", "GeneSets"]


class GeneFile(Frozen):
    """A public file about genes.

    Attributes:
        file: relative to `[simulation] files`, or to the study's folder.
        sha256: of its bytes, in hex.
    """

    file: File
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class GeneGraph(GeneFile):
    """A graph over genes, two gene symbols a line, and how the network reads a modality's columns along it.

    Attributes:
        kind: `convolution` mixes a gene's neighbours by fixed weights (Kipf & Welling 2017), `attention` by learned ones.
        layers: how many edges far a gene's vector reaches.
        channels: length of a gene's vector.
    """

    kind: Literal["convolution", "attention"] = "convolution"
    layers: Annotated[int, Field(ge=1, le=4)] = 2
    channels: Annotated[int, Field(ge=1, le=64)] = 4


class GeneSets(GeneFile):
    """Gene sets in the .gmt format (name, source, genes, between tabs): a token for each, in place of `tokens`.

    Attributes:
        smallest: a set with fewer genes among the modality's columns is left out.
        rest: what becomes of columns in no set: a token `other`, or nothing but the linear path.
    """

    smallest: Annotated[int, Field(ge=1, le=1000)] = 3
    rest: Literal["token", "leave"] = "token"
