"""tp2 makes a Kubernetes cluster's services reachable by name, from any program on this machine.

Start reading at :mod:`tp2.daemon`, which puts the parts together, or at ``docs/DESIGN.md``.
"""

__version__ = "0.1.0"
