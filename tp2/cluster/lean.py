"""Importing the Kubernetes client without its 850 generated modules, which take three quarters of tp2's start.

kubernetes_asyncio's packages import every API and every model when they are first touched. tp2 reads raw JSON and needs
two classes, ``ApiClient`` and ``Configuration``, and the kubeconfig loader. So the packages are put into
:data:`sys.modules` as they are, but without running their ``__init__``; the modules that are really needed then import
as always. Should another version of the library not fit, it is imported the ordinary way: slower, but the same.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

logger = logging.getLogger(__name__)

_ROOT: Final = "kubernetes_asyncio"
_EMPTY: Final = (_ROOT, f"{_ROOT}.client", f"{_ROOT}.client.models")
_NEEDED: Final = {"ApiClient": f"{_ROOT}.client.api_client", "Configuration": f"{_ROOT}.client.configuration"}


def prepare() -> None:
    """See to it that importing ``kubernetes_asyncio.client`` and ``.config`` from now on is quick.

    Does nothing where the client is imported already.
    """
    if _ROOT in sys.modules:
        return
    before = set(sys.modules)
    try:
        _import_lean()
    except Exception as error:  # noqa: BLE001 - whatever does not fit, the ordinary way is left
        logger.debug("importing all of %s: %s", _ROOT, error)
        for name in set(sys.modules) - before:
            if name == _ROOT or name.startswith(f"{_ROOT}."):
                del sys.modules[name]
        importlib.import_module(f"{_ROOT}.client")
    importlib.import_module(f"{_ROOT}.config")


def _import_lean() -> None:
    spec = importlib.util.find_spec(_ROOT)
    if spec is None or spec.origin is None:
        raise ImportError(f"there is no {_ROOT}")
    directory = Path(spec.origin).parent
    for name in _EMPTY:
        package = ModuleType(name)
        package.__path__ = [str(directory.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, package)
    client = sys.modules[f"{_ROOT}.client"]
    for name, module in _NEEDED.items():
        setattr(client, name, getattr(importlib.import_module(module), name))
