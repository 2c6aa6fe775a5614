"""The model store: models as verified SafeTensors, each version written once and never changed."""

from __future__ import annotations

from sovereign_ai.store.install import Options, check_reachable, ensure
from sovereign_ai.store.layout import Store
from sovereign_ai.store.manifest import Manifest

__all__ = ["Manifest", "Options", "Store", "check_reachable", "ensure"]
