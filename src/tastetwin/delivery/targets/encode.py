"""Lists of twins as JSON text, by Arrow: no Python per twin."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

_NUMBERS: Final = ("score", "percentile", "taste", "home", "chance")


def json_lists(lists: pa.ListArray) -> pa.StringArray:
    """[n] each list of twins as a JSON array of objects; ids hold no control characters, numbers are finite."""
    columns = dict(zip((field.name for field in lists.type.value_type), lists.flatten().flatten(), strict=True))
    parts: list[Any] = ['{"twin_idno":"', pc.replace_substring(escaped(columns["twin_idno"]), '"', r"\""), '"']
    for name in _NUMBERS:
        parts += [f',"{name}":', columns[name].cast(pa.string())]
    twins = pc.binary_join_element_wise(*parts, "}", "", null_handling="replace", null_replacement="null")
    starts = pc.subtract(lists.offsets, lists.offsets[0])
    joined = pc.binary_join(pa.ListArray.from_arrays(starts, twins), ",")
    return pc.binary_join_element_wise("[", joined, "]", "")


def escaped(text: pa.StringArray) -> pa.StringArray:
    """JSON and COPY both write a backslash as two."""
    return pc.replace_substring(text, "\\", r"\\")
