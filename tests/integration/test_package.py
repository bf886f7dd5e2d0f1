"""What is built is whole: a wheel that brings everything it needs, and nothing of the workshop."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tp2 import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(place)], cwd=ROOT, check=True, capture_output=True
    )
    return place


def test_the_wheel_has_tp2_and_its_manual_page(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "tp2").rglob("*.py")}
    assert modules <= set(names)
    assert "tp2/py.typed" in names
    assert f"tp2-{__version__}.data/data/share/man/man1/tp2.1" in names
    assert {name.partition("/")[0] for name in names} == {
        "tp2",
        f"tp2-{__version__}.dist-info",
        f"tp2-{__version__}.data",
    }


def test_installed_into_a_fresh_environment_it_runs(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # Its dependencies are lent by this environment, whose own tp2 is not seen: scripts/package fetches them.
    lent = tmp_path / "venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (lent / "lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    program = tmp_path / "venv" / "bin" / "tp2"
    done = subprocess.run([program, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"tp2, version {__version__}\n"
    where = subprocess.run(
        [python, "-c", "import tp2; print(tp2.__file__)"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert where.stdout.startswith(str(lent))
    assert (tmp_path / "venv" / "share" / "man" / "man1" / "tp2.1").is_file()


def test_the_source_distribution_can_be_tested_and_documented(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for needed in (
        *("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "mkdocs.yml"),
        *("requirements.lock", "requirements-dev.lock", "scripts/test", "scripts/setup", "scripts/docs"),
        *("docgen/errors.py", "docs/man/tp2.1", "docs/DESIGN.md", "bench/__main__.py", "tests/e2e/conftest.py"),
        "deploy/proxy.yaml",
    ):
        assert needed in names, needed


def test_what_the_image_is_made_of_is_there() -> None:
    """No container engine runs here, so the image is not built; what it copies exists at least."""
    text = (ROOT / "deploy" / "Dockerfile.tp2").read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY") and "--from" not in line]
    assert copied
    for name in (name for names in copied for name in names):
        assert (ROOT / name).exists(), name
    assert 'ENTRYPOINT ["tp2"]' in text
