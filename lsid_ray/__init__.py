"""Distributed training of low-light photograph enhancers on Ray."""

import os
import sys

__version__ = "0.1.0"

if sys.platform == "win32":
    print("error: lsid_ray does not run on Windows, only on Linux, such as that of WSL 2", file=sys.stderr)
    raise SystemExit(2)

# Ray prints these paragraphs in the terminal whatever `log_to_driver` is; a run says itself which nodes and workers it
# has lost, and that Ray starts many processes is no fault. Ray reads the variable when it is imported.
os.environ.setdefault(
    "RAY_DEDUP_LOGS_SKIP_REGEX",
    "has been marked dead|retries remaining|A worker died or was killed|maximum expected startup concurrency",
)
