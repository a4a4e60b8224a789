"""Until ``tastetwin.serving.protocol`` is there, the tests' own reading of the wire stands in for it."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

from tests.serving.gateway import wire

if find_spec("tastetwin.serving.protocol") is None:
    stand_in = ModuleType("tastetwin.serving.protocol")
    vars(stand_in).update(infer_request=wire.infer_request, read_infer_response=wire.read_infer_response)
    sys.modules[stand_in.__name__] = stand_in
