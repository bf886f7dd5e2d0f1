"""Doubles of systemctl, journalctl and launchctl: programs on PATH that keep a record, and insist on order.

The real systemd is beside this in tests/e2e/test_service.py; what is here are its failures, and macOS.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_PROGRAM = '''\
#!{python}
"""What the real ones would do, as far as tp2 uses them."""
import json, sys
from pathlib import Path

state_file = Path({state!r})
state = json.loads(state_file.read_text())
program, arguments = Path(sys.argv[0]).name, sys.argv[1:]
state["calls"].append(" ".join([program, *arguments]))
words = [word for word in arguments if not word.startswith("-")]
unit = Path({unit!r})
text = unit.read_text() if unit.exists() else None


def end(code=0, error=""):
    state_file.write_text(json.dumps(state))
    if error:
        print(error, file=sys.stderr)
    sys.exit(code)


if state["fails"] and " ".join([program, *arguments]).startswith(state["fails"]):
    end(1, "Job for tp2.service failed because the control process exited with error code.")
if program == "journalctl":
    print("-- No entries --\\n-- cursor: s=1;i=2" if "--show-cursor" in arguments else state["journal"])
elif program == "launchctl" and words[0] == "enable":
    state["enabled"] = True
elif words[0] == "daemon-reload":
    state["known"] = text
elif words[0] in ("enable", "restart"):
    if text is None:
        end(1, f"Failed to {{words[0]}} unit: Unit file tp2.service does not exist.")
    if text != state["known"]:
        end(1, "Warning: the unit file changed on disk. Run 'systemctl daemon-reload'.")
    state["enabled"] = True
    if words[0] == "restart":
        state["running"] = text
elif words[0] == "disable":
    if text is None:
        end(1, "Failed to disable unit: Unit file tp2.service does not exist.")
    state["enabled"], state["running"] = False, None if "--now" in arguments else state["running"]
elif words[0] == "bootout":
    if state["running"] is None:
        end(113, "Boot-out failed: 113: Could not find specified service")
    state["running"] = None
elif words[0] == "bootstrap":
    if state["running"] is not None:
        end(5, "Bootstrap failed: 5: Input/output error")
    state["running"] = Path(words[2]).read_text()
end()
'''


class Managers:
    """The doubles below *directory*, and a root directory for the files of services."""

    def __init__(self, directory: Path, unit: str) -> None:
        self.root = directory / "root"
        self.unit = self.root / unit
        self.path = directory / "bin"
        self._state = directory / "state.json"
        (self.root / "run/systemd/system").mkdir(parents=True)
        self.path.mkdir()
        self._set(calls=[], fails="", journal="", known=None, enabled=False, running=None)
        for name in ("systemctl", "journalctl", "launchctl"):
            program = self.path / name
            program.write_text(_PROGRAM.format(python=sys.executable, state=str(self._state), unit=str(self.unit)))
            program.chmod(0o755)

    def fail(self, command: str, journal: str = "") -> None:
        """Let commands fail that begin with *command*; the journal then has *journal*."""
        self._set(**{**self.state, "fails": command, "journal": journal})

    @property
    def state(self) -> dict[str, Any]:
        """``calls``, and what the manager would ``known``, has ``enabled`` and has ``running``."""
        state: dict[str, Any] = json.loads(self._state.read_text())
        return state

    def files(self) -> list[str]:
        """Every file below the root directory."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())

    def _set(self, **state: Any) -> None:
        self._state.write_text(json.dumps(state))
