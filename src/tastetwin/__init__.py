"""TasteTwin: who shares my taste?

``tastetwin.TasteTwin`` is the Python interface, ``tastetwin.errors`` what it raises, ``tastetwin.config`` its settings.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tastetwin.api import TasteTwin

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would tell its maker of every model that it opens

__version__ = "0.1.0"

__all__ = ["TasteTwin", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the interface at first use: importing the package stays cheap."""
    if name == "TasteTwin":
        from tastetwin.api import TasteTwin

        return TasteTwin
    raise AttributeError(name)
