"""What runs on GitHub is of a form that GitHub understands, and names what is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(path: Path) -> dict[Any, Any]:
    loaded = yaml.safe_load(path.read_text())
    assert isinstance(loaded, dict)
    return loaded


def scripts(workflow: dict[Any, Any]) -> list[str]:
    """The shell of every step, that in a virtual machine included."""
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    return [step["run"] for step in steps if "run" in step] + [
        step["with"]["run"] for step in steps if "run" in step.get("with", {})
    ]


def test_there_is_one_for_linux_one_for_pf_and_one_for_releases() -> None:
    assert [path.name for path in WORKFLOWS] == ["pf.yml", "release.yml", "test.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_whole(path: Path) -> None:
    workflow = load(path)
    # YAML 1.1 reads the key "on" as true; GitHub does not.
    occasions = {"push"} if path.name == "release.yml" else {"push", "pull_request"}
    assert occasions <= workflow[True].keys()
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert 0 < job["timeout-minutes"] <= 30
        assert job["steps"][0]["uses"].startswith("actions/checkout@")
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
        # A version is named: what runs today runs tomorrow.
        assert all(re.fullmatch(r"[\w./-]+@(release/)?v\d+", step["uses"]) for step in job["steps"] if "uses" in step)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_its_scripts_are_shell_and_the_files_in_them_exist(path: Path) -> None:
    for script in scripts(load(path)):
        shell = re.sub(r"\$\{\{.*?\}\}", "value", script)
        assert subprocess.run(["bash", "-n"], input=shell, text=True, capture_output=True).returncode == 0, script
        for named in re.findall(r"(?:bash|-c) ([\w./-]+/[\w./-]+)|(tests/\S+)", shell):
            assert (ROOT / (named[0] or named[1])).exists(), named


def test_the_live_test_is_switched_on_there_and_watches_its_own_files() -> None:
    workflow = load(ROOT / ".github" / "workflows" / "pf.yml")
    assert workflow["jobs"].keys() == {"macos", "freebsd"}
    live = [script for script in scripts(workflow) if "tests/live" in script]
    assert len(live) == 2
    assert all("TP2_LIVE_PF=1" in script for script in live)
    assert workflow[True]["push"] == workflow[True]["pull_request"]
    for pattern in workflow[True]["push"]["paths"]:
        assert list(ROOT.glob(pattern.replace("/**", "/*"))), pattern


def test_only_a_tag_is_published_and_only_what_was_tried() -> None:
    workflow = load(ROOT / ".github" / "workflows" / "release.yml")
    assert workflow[True]["push"] == {"tags": ["v*"]}
    jobs = workflow["jobs"]
    assert jobs["publish"]["needs"] == "try"
    assert jobs["try"]["needs"] == "build"
    assert jobs["publish"]["if"] == "github.ref_type == 'tag'"
    # The right to publish is one job's, which builds nothing and runs nothing of ours.
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == ["publish"]
    assert not any("scripts/" in script or "pip" in script for script in scripts({"jobs": {"p": jobs["publish"]}}))
