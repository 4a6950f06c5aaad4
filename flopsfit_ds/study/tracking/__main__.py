"""`python -m flopsfit_ds.study.tracking NAME FOLDER`: tell one tracker of a sweep until standard input ends."""

from __future__ import annotations

import sys
from pathlib import Path

from flopsfit_ds.study.tracking.following import follow

if __name__ == "__main__":
    sys.exit(follow(sys.argv[1], Path(sys.argv[2])))
