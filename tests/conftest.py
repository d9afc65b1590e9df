"""Settings shared by every test."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "lanewise",
    derandomize=True,
    deadline=None,
    max_examples=int(os.environ.get("LANEWISE_TEST_EXAMPLES", "25")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("lanewise")
