"""Replaces the layers of a model by lanewise's, in place.

One file for each kind of layer. `swap` exchanges classes, `serving` says what the kernels take,
`families` which class of transformers is replaced by which, and `model` does it.
"""

from lanewise.integrations.optimize.model import optimize, unoptimize
from lanewise.integrations.optimize.report import Report

__all__ = ["Report", "optimize", "unoptimize"]
