"""Everything that leads connections to tp2, in either mode, tied together."""
