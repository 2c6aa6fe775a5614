"""Moves Triton's Python stub into the engine environment, then hands over to Triton's own module.

The stub embeds the shared libpython of the interpreter that the environment was made with. It starts isolated
(PYTHONPATH and PYTHONHOME are ignored), so it sees that interpreter's packages, not the environment's. This
file stands where the stub looks for Triton's `triton_python_backend_utils` and is imported before any
model.py: the one place where the move can be made for every backend.
"""

import locale
import multiprocessing
import os
import sys

# Model files are UTF-8; the stub starts in the C locale, whatever LC_ALL says.
locale.setlocale(locale.LC_ALL, "C.UTF-8")

_root = os.environ["SOVEREIGN_ENGINE_ROOT"]
_version = f"{sys.version_info.major}.{sys.version_info.minor}"
_foreign = ("site-packages", "dist-packages")
sys.path[:] = [entry for entry in sys.path if entry and not entry.rstrip("/").endswith(_foreign)]
sys.path.append(f"{_root}/lib/python{_version}/site-packages")

# Worker processes must start from the environment's interpreter, not from the stub's binary.
sys.executable = f"{_root}/bin/python"
multiprocessing.set_executable(sys.executable)

from _triton_python_backend_utils import *  # noqa: E402, F403
