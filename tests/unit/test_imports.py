"""A quick start leaves everything as it was, and trusts nobody more than a slow one."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from tp2.system import imports

WATCHED = """
import ctypes.util, ssl, subprocess, sys
loads = []
ssl.SSLContext.load_default_certs = lambda *args: loads.append(args)
programs = []
sys.addaudithook(lambda event, args: programs.append(args[0]) if event == "subprocess.Popen" else None)
before = ssl.create_default_context, ctypes.util._findLib_gcc
from tp2.system.imports import quickly
with quickly():
    import aiohttp, asyncssh
assert before == (ssl.create_default_context, ctypes.util._findLib_gcc)
assert not loads, loads
assert {str(program).rpartition("/")[2] for program in programs} <= {"ldconfig", "sh"}, programs
from aiohttp import connector
unsaid = connector._SSL_CONTEXT_VERIFIED
assert unsaid.verify_mode is ssl.CERT_REQUIRED and unsaid.check_hostname
assert not unsaid.get_ca_certs()
"""


def test_no_certificates_are_read_and_no_compiler_is_asked() -> None:
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_ends_as_it_began_when_an_import_fails() -> None:
    import ctypes.util
    import ssl

    before = ssl.create_default_context, ctypes.util._findLib_gcc  # type: ignore[attr-defined]
    try:
        with pytest.raises(ImportError), imports.quickly():
            assert not gc.isenabled()
            import no_such_module  # type: ignore[import-not-found]  # noqa: F401
        assert gc.isenabled()
        assert before == (ssl.create_default_context, ctypes.util._findLib_gcc)  # type: ignore[attr-defined]
    finally:
        gc.unfreeze()
