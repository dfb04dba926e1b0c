"""Small sites with sequencing files, written anew for each test."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oncofed_client.genomics.inputs import SiteFiles, open_files
from oncofed_client.genomics.settings import GenomicsSettings
from oncofed_shared.strict import validate

HGNC = (
    "hgnc_id\tsymbol\talias_symbol\tprev_symbol\tensembl_gene_id\n"
    "HGNC:11998\tTP53\tp53|LFS1\t\tENSG00000141510\n"
    "HGNC:3236\tEGFR\tERBB1|ERRP\tERBB\tENSG00000146648\n"
    'HGNC:3430\tERBB2\t"NEU|HER-2|HER2|CD340"\tNGL\tENSG00000141736\n'
    "HGNC:6407\tKRAS\tK-RAS|KRAS1\tKRAS2\tENSG00000133703\n"
    "HGNC:9588\tPTEN\tMMAC1|SHARED\tBZS\tENSG00000171862\n"
    "HGNC:1100\tBRCA1\tRNF53|SHARED\t\tENSG00000012048\n"
)


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., SiteFiles]:
    """A maker of sites: `site({"a.tsv": text, "b.gz": bytes}, expression={...})`. Every site has the table `hgnc.tsv`."""

    def make(files: dict[str, str | bytes], *, aliases: bool = True, **settings: Any) -> SiteFiles:
        (tmp_path / "hgnc.tsv").write_text(HGNC)
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            packed = isinstance(content, str) and name.endswith(".gz")
            whole = content.encode() if isinstance(content, str) else content
            path.write_bytes(gzip.compress(whole) if packed else whole)
        if aliases:
            settings["aliases"] = "hgnc.tsv"
        return open_files(tmp_path, validate(GenomicsSettings, settings, "site.toml: genomics"))

    return make
