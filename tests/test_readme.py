"""What the documents tell a reader to type exists: commands and their options, make's targets, files, links, studies."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import click
import pytest
import typer

from oncofed_client.settings import settings_from_text
from oncofed_shared.errors import ExitCode
from oncofed_shared.plan import Plan, parse
from oncofed_simulations.run import Options, run_study
from oncofed_simulations.synthetic import write_cohort

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").glob("*.md")]
DOCUMENTS = {str(p.relative_to(ROOT)): p for p in sorted(PAGES)}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^|\n)\n((?:(?: {4}[^\n]*)?(?:\n|$))+)")
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(name: str) -> str:
    return DOCUMENTS[name].read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of fenced and indented blocks."""
    fenced = [(m[1], m[2]) for m in FENCE.finditer(text)]
    rest = FENCE.sub("", text)
    return fenced + [("", re.sub(r"^ {4}", "", m[1], flags=re.MULTILINE)) for m in INDENTED.finditer(rest)]


def lines(text: str) -> list[str]:
    """Command lines in blocks, without comments."""
    found = [
        line.split(" # ")[0].strip()
        for language, block in blocks(text)
        if language != "toml"
        for line in block.splitlines()
    ]
    return [line for line in found if line]


def inline(text: str) -> list[str]:
    without = FENCE.sub("", text)
    return [m[1] for m in INLINE.finditer(without)]


@cache
def scripts() -> dict[str, click.Command]:
    """The command line of each installed script."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = {name: target.split(":")[0] for name, target in project["scripts"].items()}
    return {name: typer.main.get_command(importlib.import_module(m).app) for name, m in modules.items()}


def command_line(line: str) -> list[str] | None:
    """The words of a line that calls one of our scripts, brackets of a synopsis taken off; None for another line."""
    plain = re.sub(r"^(\$ )?([A-Z_]+=\S+ )*(\.venv/bin/)?", "", line)
    return shlex.split(re.sub(r"[\[\]]", "", plain)) if plain.startswith("oncofed-") else None


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words name, and what is left of them."""
    assert words[0] in scripts(), f"{words[0]} is not in [project.scripts]"
    command, rest = scripts()[words[0]], words[1:]
    while isinstance(command, click.Group) and rest:
        assert rest[0] in command.commands, f"{words[0]} has no command {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


CALLS = sorted({(n, line) for n in DOCUMENTS for line in lines(text_of(n)) if command_line(line)})
# Units of systemd have names like commands.
UNITS = {p.stem for p in (ROOT / "deploy" / "systemd").glob("*.service")} - {"oncofed-aggregator"}
MENTIONS = sorted({line for n in DOCUMENTS for line in inline(text_of(n)) if line not in UNITS and command_line(line)})


@pytest.mark.parametrize("line", sorted({line for _, line in CALLS}))
def test_a_command_in_a_block_parses(line):
    command, rest = resolve(command_line(line))
    with command.make_context(command.name, list(rest)) as context:
        assert context.command is command
    with pytest.raises(click.exceptions.Exit) as ended:
        command.make_context(command.name, ["--help"])
    assert ended.value.exit_code == ExitCode.DONE


@pytest.mark.parametrize("line", sorted({line for _, line in CALLS}))
def test_a_file_that_a_command_names_exists(line):
    named = [w for w in command_line(line) if w.startswith(("simulations/", "docs/", "tests/", "deploy/"))]
    assert [w for w in named if not (ROOT / w).exists()] == []


@pytest.mark.parametrize("line", MENTIONS)
def test_a_command_in_a_sentence_exists(line):
    command, rest = resolve(command_line(line))
    known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
    assert [w for w in rest if w.startswith("--") and w not in known] == []


def test_the_documents_do_call_the_commands():
    called = {command_line(line)[0] for _, line in CALLS}
    assert called == set(scripts())
    assert {name for name, _ in CALLS} >= {
        "README.md",
        "docs/site.md",
        "docs/aggregator.md",
        "deploy/README.md",
        "deploy/RUNBOOK.md",
    }


def test_the_readme_lists_every_command_and_every_option_of_run():
    readme = text_of("README.md")

    def leaves(command: click.Command, words: tuple[str, ...]) -> list[tuple[str, ...]]:
        if isinstance(command, click.Group):
            return [leaf for n, c in command.commands.items() for leaf in leaves(c, (*words, n)) if not c.hidden]
        return [words]

    every = [" ".join(leaf) for name, command in scripts().items() for leaf in leaves(command, (name,))]
    assert [c for c in every if f"| `{c} " not in readme] == []
    run, _ = resolve(["oncofed-simulate", "run"])
    options = [o for p in run.params if isinstance(p, click.Option) for o in p.opts if o.startswith("--")]
    assert [o for o in options if f"| `{o}` |" not in readme] == []


def test_the_readme_has_every_exit_code():
    readme = text_of("README.md")
    assert [int(c) for c in ExitCode if f"\n| {int(c)} |" not in readme] == []


@cache
def targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_knows_every_target_that_is_named(name):
    text = text_of(name)
    called = {w for line in [*lines(text), *inline(text)] for w in re.findall(r"(?:^|&& )make ([a-z][\w-]*)", line)}
    assert called <= targets()


def test_the_readme_begins_with_the_two_commands_and_ci_runs_its_test_command():
    readme = text_of("README.md")
    assert "\n    make demo" in readme
    assert "\n    make test " in readme
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    does = [line.strip() for line in ci if line.strip() and not line.lstrip().startswith(("#", "set ", "cd "))]
    assert does == ["make test"]


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    for link in LINK.findall(FENCE.sub("", text_of(name))):
        target, _, anchor = link.partition("#")
        path = (DOCUMENTS[name].parent / target) if target else DOCUMENTS[name]
        assert "://" in link or path.exists(), link
        if anchor:
            assert anchor in anchors(path), link


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_a_document_names_exist(name):
    folders = ("shared", "client", "server", "strategies", "simulations", "tests", "docs", "deploy", ".ci")
    named = {w for w in inline(text_of(name)) if w.split("/")[0] in folders and "/" in w and " " not in w}
    # What is measured on real cohorts is written when it was measured.
    assert [w for w in sorted(named - {"docs/results.md"}) if not (ROOT / w).exists()] == []


def test_the_pictures_are_small_and_the_drawing_has_a_dark_side():
    report, drawing = ROOT / "docs/images/report.png", ROOT / "docs/images/how-it-works.svg"
    assert report.read_bytes().startswith(b"\x89PNG")
    assert report.stat().st_size < 400_000
    text = drawing.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert "<desc" in text
    assert "<script" not in text


TOML = [(n, block) for n in DOCUMENTS for language, block in blocks(text_of(n)) if language == "toml"]


@pytest.mark.parametrize(("name", "block"), TOML)
def test_a_toml_example_is_what_the_program_reads(name, block):
    content = tomllib.loads(block)
    if "study" in content:
        assert isinstance(parse(content, name), Plan)
    elif "site" in content:
        assert settings_from_text(block, name).consent.given


def example() -> dict:
    return next(tomllib.loads(b) for n, b in TOML if n == "README.md" and "[study]" in b)


def test_the_readme_s_study_is_a_page():
    block = next(b for n, b in TOML if n == "README.md" and "[study]" in b)
    assert len(block.splitlines()) <= 60


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The README's study on hospitals as the README makes them; fewer rounds and patients, which change no key."""
    folder = tmp_path_factory.mktemp("readme")
    write_cohort(folder / "hospitals", sites=3, patients=90, seed=1)
    content = example()
    content["training"] |= {"rounds": 2, "validate_every": 1}
    content["evaluation"] |= {"bootstrap": 50, "resplits": 2, "minimum_shown": 2, "minimum_events": 1}
    content["tasks"]["response"] = {
        "kind": "classification", "table": "clinical", "label": "response", "classes": ["non-responder", "responder"],
    }  # fmt: skip
    content["evaluation"]["subgroups"] = {"age": {"column": "age", "edges": [0, 60, 120]}}
    options = Options(sites=folder / "hospitals", external=None, out=folder / "out")
    return run_study(parse(content), options), folder / "out"


def test_the_readme_s_study_runs_and_leaves_what_it_says(result):
    _, out = result
    readme, keys = text_of("README.md"), text_of("docs/result-json.md")
    left = {p.name + ("/" if p.is_dir() else "") for p in out.iterdir()}
    assert {"report.html", "result.json", "model.safetensors", "manifest.json"} <= left
    assert [n for n in left if f"| `{n}` |" not in keys] == []
    listed = set(re.findall(r"^\| `([\w.]+/?)` \|", readme, re.MULTILINE)) & {"report.html", "sites/", "manifest.json"}
    assert listed <= left


def keys_of(value: object, depth: int = 0) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {k for v in value.values() for k in keys_of(v, depth + 1)}
    if isinstance(value, list):
        return {k for v in value for k in keys_of(v, depth + 1)}
    return set()


def test_every_key_of_a_result_is_explained(result):
    made, _ = result
    text = text_of("docs/result-json.md")
    task = next(iter(made["tasks"]))
    arms = [a for metrics in made["tasks"][task].values() for a in metrics.values()]
    found = (
        set(made) | set().union(*(r.keys() for r in made["rounds"])) | set().union(*(s.keys() for s in made["sites"]))
    )
    found |= {m for t in made["tasks"].values() for m in t} | {
        a for t in made["tasks"].values() for m in t.values() for a in m
    }
    found |= set().union(*arms) | set().union(*(a["external"] for a in arms))
    found |= {k for t in made["figures"].values() for arm in t.values() for k in arm}
    found |= {
        k
        for part in ("resplits", "folds")
        for t in made[part].values()
        for m in t.values()
        for a in m.values()
        for k in a
    }
    found |= {k for a in arms for groups in a["subgroups"].values() for g in groups.values() for k in g}
    assert sorted(k for k in found if f"`{k}`" not in text) == []
