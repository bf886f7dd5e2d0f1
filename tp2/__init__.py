"""tp2 makes a Kubernetes cluster's services reachable by name, from any program on this machine.

Start reading at :mod:`tp2.daemon`, which puts the parts together, or at ``docs/DESIGN.md``.
"""

import os
import sys

__version__ = "0.1.0"

if hasattr(os, "geteuid") and os.geteuid() == 0 and "SUDO_UID" in os.environ:
    # The user's installation of tp2 gets no byte code that is root's, which they could not delete.
    sys.dont_write_bytecode = True
