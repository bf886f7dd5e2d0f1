"""Writes what of docs/ follows from the code: ``python -m docgen``, or ``--check`` to see whether it has been done."""
