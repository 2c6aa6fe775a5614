"""`python -m sovereign_ai`, the same as `sovereign`."""

from __future__ import annotations

from sovereign_ai.cli import main

if __name__ == "__main__":
    main()
