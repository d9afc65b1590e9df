"""transformers without its progress bars and remarks, which would lie across the tables."""

from __future__ import annotations

from types import ModuleType

import transformers as library

library.utils.logging.disable_progress_bar()
library.utils.logging.set_verbosity_error()

transformers: ModuleType = library
