"""The lean import of the Kubernetes client gives the same classes, in a fraction of the modules."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


USE = """
from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.config import load_kube_config_from_dict
import sys
print(ApiClient.__module__, Configuration.__module__, load_kube_config_from_dict.__module__)
"""


def test_the_classes_are_the_same_and_the_models_are_left_out() -> None:
    count = "print(len([name for name in sys.modules if name.startswith('kubernetes_asyncio')]))"
    lean, few = run(f"from tp2.cluster import lean; lean.prepare(){USE}{count}").splitlines()
    stock, many = run(f"{USE}{count}").splitlines()
    assert lean == stock
    assert int(few) * 10 < int(many)


@pytest.mark.parametrize(
    "broken", ["lean._NEEDED['ApiClient'] = 'kubernetes_asyncio.nowhere'", "lean._ROOT = 'nowhere'"]
)
def test_a_library_that_does_not_fit_is_imported_the_ordinary_way(broken: str) -> None:
    if "_ROOT" in broken:
        # No library at all is an error as ever.
        done = subprocess.run(
            [sys.executable, "-c", f"from tp2.cluster import lean; {broken}; lean.prepare()"],
            capture_output=True,
            check=False,
        )
        assert b"ModuleNotFoundError" in done.stderr
        return
    assert run(f"from tp2.cluster import lean; {broken}; lean.prepare(){USE}").startswith(
        "kubernetes_asyncio.client.api_client"
    )


def test_after_an_ordinary_import_nothing_is_changed() -> None:
    script = "import kubernetes_asyncio.client as before; from tp2.cluster import lean; lean.prepare();"
    assert run(
        f"{script} import kubernetes_asyncio.client as after; print(before is after, hasattr(after, 'CoreV1Api'))"
    ) == ("True True")
