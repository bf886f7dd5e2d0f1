"""Property tests are about what comes out, not about how long it takes: machines that are busy are slow."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("tp2", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tp2")
