"""Settings shared by every test."""

import os

from hypothesis import HealthCheck, settings
from interpreted import (  # noqa: F401  hooks
    interpreting,
    pytest_collect_file,
    pytest_collection_finish,
    pytest_collection_modifyitems,
    pytest_pycollect_makemodule,
    pytest_sessionfinish,
)

settings.register_profile(
    "lanewise",
    derandomize=True,
    deadline=None,
    max_examples=int(os.environ.get("LANEWISE_TEST_EXAMPLES", "25")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("lanewise")

if interpreting:
    import triton_interpreter

    triton_interpreter.replace_cpu_kernels()
