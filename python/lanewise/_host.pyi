# The docstrings of the compiled module are its reference; type checkers learn that it exists.
from typing import Any

def __getattr__(name: str) -> Any: ...
