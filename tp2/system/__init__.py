"""This machine, as far as all rooms need it: interfaces, limits, listeners, files that change, the event loop."""
