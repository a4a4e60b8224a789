"""Landing with somebody in the deny set: lines a second that are looked through, beside the limit.

Run: python benchmarks/screen.py [--lines 100000]

ours        every line parsed, its user looked up by hash, fields that nobody reads searched for ids
limit       the strict parser alone (lines cut off have none)
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import deque
from collections.abc import Callable, Iterator

from tastetwin.jsonline import parse_line
from tastetwin.privacy.opt_out import OptOuts, name_of
from tastetwin.privacy.screen import Screen


def _lines(n: int, text_words: int) -> Iterator[bytes]:
    generator = random.Random(0)
    words = [f"word{number}" for number in range(20_000)]
    for number in range(n):
        line = {
            "review_id": f"r{number}",
            "user_idno": f"{generator.randrange(n // 20 + 1)}",
            "review_rating": 4.5,
            "review_visited_date": "2026-01-01 10:00:00",
            "review_place_id": f"p{generator.randrange(1000)}",
        }
        text = {"text": " ".join(generator.choices(words, k=text_words))} if text_words else {}
        yield json.dumps({**line, **text}).encode() + b"\n"


def _rate(work: Callable[[bytes], object], lines: list[bytes]) -> float:
    began = time.process_time()
    deque(map(work, lines), maxlen=0)
    return len(lines) / (time.process_time() - began)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=100_000)
    n = parser.parse_args().lines
    plain, wordy = list(_lines(n, 0)), list(_lines(n // 5, 60))
    people = OptOuts(frozenset(map(name_of, ("somebody", "else"))))
    cases = {"plain": plain, "with a text": wordy, "cut off": [line[:100] + b"\n" for line in plain[: n // 20]]}
    for name, lines in cases.items():
        screen = Screen(people)
        limit = "" if name == "cut off" else f"  limit {_rate(parse_line, lines):>10,.0f}"
        rate = _rate(lambda line, screen=screen: screen.line(line, "reviews"), lines)  # type: ignore[misc]
        print(f"{name:12} {sum(map(len, lines)) / len(lines):5.0f} bytes  ours {rate:>10,.0f}{limit}")


if __name__ == "__main__":
    _main()
