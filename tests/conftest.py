"""Set before any library reads it: tests are offline, and leave nothing in the user's caches."""

import os
import tempfile

_scratch = tempfile.TemporaryDirectory(prefix="pathprune-tests-")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": _scratch.name, "MPLCONFIGDIR": _scratch.name}
