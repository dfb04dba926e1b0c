"""Image recipe, compose file and manifests: what they promise, and that they speak of the same things. Nothing is started."""

from __future__ import annotations

import copy
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

with warnings.catch_warnings():
    # typer 0.20 asks click 8.5, on import, for names that click is about to drop.
    warnings.simplefilter("ignore", DeprecationWarning)
    from oncofed_client.__main__ import app as site
    from oncofed_server.__main__ import app as aggregator

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RECIPE = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
MANIFEST = DEPLOY / "kubernetes" / "aggregator.yaml"
# The newest schemas that the package has, and those of the oldest Kubernetes that is still looked after.
KUBERNETES = ("1.37", "1.34")
APPS = {"oncofed-site": typer.main.get_command(site), "oncofed-aggregator": typer.main.get_command(aggregator)}
VERSION = re.search(r'^version = "(.+)"', (DEPLOY.parent / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[
    1
]


def objects() -> dict[str, dict[str, Any]]:
    found = list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))
    assert len({o["kind"] for o in found}) == len(found)
    return {o["kind"]: o for o in found}


def pod() -> dict[str, Any]:
    return objects()["StatefulSet"]["spec"]["template"]["spec"]


def containers() -> list[dict[str, Any]]:
    return [*pod()["initContainers"], *pod()["containers"]]


def targets() -> dict[str, str]:
    """Instructions of each stage of the recipe."""
    parts = re.split(r"^FROM \S+ AS (\w+)$", RECIPE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


# -- manifests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_one_of_kubernetes(version: str) -> None:
    for each in objects().values():
        kubernetes_validate.validate(each, version, strict=True)


def _misspelt(found: dict[str, Any]) -> None:
    found["StatefulSet"]["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}


def _wrong_kind(found: dict[str, Any]) -> None:
    found["Service"]["spec"]["ports"][0]["port"] = "many"


def _missing(found: dict[str, Any]) -> None:
    del found["StatefulSet"]["spec"]["selector"]


@pytest.mark.parametrize("change", [_misspelt, _wrong_kind, _missing])
def test_the_schemas_refuse_a_mistake(change: Any) -> None:
    found = copy.deepcopy(objects())
    change(found)
    changed = next(o for kind, o in found.items() if o != objects()[kind])
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(changed, KUBERNETES[0], strict=True)


def test_there_is_all_that_an_aggregator_needs_in_one_namespace() -> None:
    found = objects()
    assert set(found) == {
        *("Namespace", "ServiceAccount", "PersistentVolumeClaim", "StatefulSet", "Service", "NetworkPolicy"),
    }
    own = {o["metadata"].get("namespace") for kind, o in found.items() if kind != "Namespace"}
    assert own == {found["Namespace"]["metadata"]["name"]}
    labels = found["Namespace"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_folder_has_one_writer() -> None:
    found = objects()
    assert found["StatefulSet"]["spec"]["replicas"] == 1
    assert found["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOncePod"]
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod()["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [found["PersistentVolumeClaim"]["metadata"]["name"]]


def test_every_container_is_as_restricted_as_a_namespace_can_ask() -> None:
    """Pod Security Standards, "restricted", and a root that is read-only beside it."""
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod()["automountServiceAccountToken"] is False
    for each in containers():
        rights = each["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert {"requests", "limits"} <= set(each["resources"])
    kinds = {"persistentVolumeClaim", "secret", "emptyDir"}
    assert {next(k for k in v if k != "name") for v in pod()["volumes"]} == kinds
    (running,) = pod()["containers"]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(running)
    # The running one does not see the secret; the one that does ends before.
    assert "secret" not in {m["name"] for m in running["volumeMounts"]}


def test_it_is_called_on_one_port_and_calls_nobody() -> None:
    found = objects()
    policy = found["NetworkPolicy"]["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["egress"] == []
    labels = found["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == found["Service"]["spec"]["selector"] == labels
    (running,) = pod()["containers"]
    ports = {p["containerPort"] for p in running["ports"]}
    assert {p["port"] for rule in policy["ingress"] for p in rule["ports"]} == ports
    assert {p["port"] for p in found["Service"]["spec"]["ports"]} == ports
    assert {int(p) for p in re.findall(r"^EXPOSE (\d+)$", targets()["aggregator"], re.MULTILINE)} == ports


# -- recipe and compose file ----------------------------------------------------------------------------------------------


def test_nothing_is_fetched_while_an_image_is_built() -> None:
    assert not re.search(r"apt-get|curl|wget|https?://|--index-url", RECIPE)
    assert RECIPE.count("pip install") == RECIPE.count("--no-index") == 1
    assert "sha256sum --check --strict" in RECIPE


@pytest.mark.parametrize("name", ["site", "aggregator"])
def test_an_image_has_a_user_a_healthcheck_and_reports_to_nobody(name: str) -> None:
    stage = targets()[name]
    assert re.search(r"^USER 1000[12]:1000[12]$", stage, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK (?!NONE)", stage, re.MULTILINE)
    for switch in ("FLWR_TELEMETRY_ENABLED=0", "FLWR_DISABLE_UPDATE_CHECK=1", "RAY_USAGE_STATS_ENABLED=0"):
        assert switch in targets()["common"]


def test_the_daemon_has_no_network_and_the_gate_no_data() -> None:
    daemon, gate = COMPOSE["services"]["daemon"], COMPOSE["services"]["gate"]
    assert daemon["network_mode"] == "none"
    assert "ports" not in daemon
    assert "networks" not in daemon
    places = {v["target"]: v for v in daemon["volumes"]}
    assert places["/data"]["read_only"] is True
    assert set(places) - {v["target"] for v in gate["volumes"]} == {"/data", "/state"}
    assert gate["secrets"] == ["enrolment.json", "node.key"]
    assert "secrets" not in daemon
    assert daemon["user"] != gate["user"]
    # The socket's folder is the one thing that both have.
    both = {v["source"] for v in daemon["volumes"]} & {v["source"] for v in gate["volumes"]}
    assert both == {"socket"}


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_every_service_is_hardened_and_limited(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "cpus", "pids_limit", "ulimits", "stop_grace_period"} <= set(service)
    assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & set(service)
    assert int(service["user"].split(":")[0]) > 10000
    assert service["image"].endswith(f":{VERSION}")


def programs() -> Iterator[tuple[str, list[str]]]:
    """(where, words) of everything that a container of ours starts with."""
    entry = {"aggregator": ["oncofed-aggregator"], "site": ["oncofed-site"]}
    for target, words in entry.items():
        assert f'ENTRYPOINT ["{words[0]}"]' in targets()[target]
    for name, service in COMPOSE["services"].items():
        image = re.search(r"oncofed-(\w+):", service["image"])[1]
        yield name, [*service.get("entrypoint", entry[image]), *service["command"]]
    (running,) = pod()["containers"]
    yield "kubernetes", [*entry["aggregator"], *running["args"]]


@pytest.mark.parametrize(("where", "words"), list(programs()))
def test_every_option_is_one_of_the_program(where: str, words: list[str]) -> None:
    options = {w for w in words if w.startswith("--")}
    if words[0] == "python":
        said = subprocess.run(
            [sys.executable, *words[1:3], "--help"], check=True, capture_output=True, text=True
        ).stdout
        known = set(re.findall(r"--[a-z-]+", said))
    else:
        command = APPS[words[0]].commands[words[1]]
        known = {o for p in command.params for o in p.opts}
    assert options - known == set(), where


def test_what_a_container_is_told_lies_where_something_is_mounted() -> None:
    for service in COMPOSE["services"].values():
        mounted = {v["target"] for v in service["volumes"]} | {"/run/secrets"}
        named = [w for w in service["command"] if w.startswith("/")]
        assert [w for w in named if not any(Path(w).is_relative_to(m) for m in mounted)] == []
    (running,) = pod()["containers"]
    mounted = {m["mountPath"] for m in running["volumeMounts"]}
    assert [w for w in running["args"] if w.startswith("/") and f"/{w.split('/')[1]}" not in mounted] == []


def test_folders_of_the_recipe_belong_to_the_users_of_the_compose_file() -> None:
    made = {
        words[-1]: words for line in re.findall(r"install --directory[^\n\\]*", RECIPE) for words in [shlex.split(line)]
    }
    for name, service in COMPOSE["services"].items():
        user = service["user"].split(":")[0]
        for volume in service["volumes"]:
            if volume["type"] == "volume" and volume["source"] != "socket":
                words = made[volume["target"]]
                assert words[words.index("--owner") + 1] == user, (name, volume["target"])
    words = made["/run/oncofed"]
    daemon, gate = (COMPOSE["services"][n]["user"].split(":") for n in ("daemon", "gate"))
    assert (words[words.index("--owner") + 1], words[words.index("--group") + 1]) == (daemon[0], gate[1])
    assert words[words.index("--mode") + 1] == "2750"
    # An engine that fills a volume may drop the group's bit; the daemon sets it again, which only a member may.
    assert COMPOSE["services"]["daemon"]["group_add"] == [gate[1]]


def test_a_machine_that_cannot_build_images_is_told_why(tmp_path: Path) -> None:
    """With a path on which there is neither buildah nor debootstrap."""
    for name in ("sh", "realpath", "dirname", "id"):
        (tmp_path / name).symlink_to(shutil.which(name))
    words = [str(tmp_path / "sh"), str(DEPLOY / "images.sh"), str(tmp_path), str(tmp_path / "out")]
    ended = subprocess.run(words, check=False, capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert ended.returncode == 3
    assert "missing: buildah debootstrap tar (apt-get install buildah debootstrap); nothing was built" in ended.stderr
    assert not (tmp_path / "out").exists()
