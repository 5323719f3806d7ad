"""Distributed training of low-light photograph enhancers on Ray."""

import os

__version__ = "0.1.0"

# Ray prints these paragraphs in the terminal whatever `log_to_driver` is; a run says itself which nodes and workers it
# has lost. Ray reads the variable when it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "has been marked dead|retries remaining")
