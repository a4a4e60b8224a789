"""The app's start: what it is given, and what of it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tastetwin.cli.options import GATEWAY_KEY, key_of
from tastetwin.errors import UsageError
from tastetwin.serving.app.serve import Credentials


def test_the_gateways_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never from the command line, where every user of the machine sees it."""
    (tmp_path / "key").write_text("tt_from-file\n")
    monkeypatch.setenv(GATEWAY_KEY, "tt_from-environment")
    assert (key_of(tmp_path / "key"), key_of(None)) == ("tt_from-file", "tt_from-environment")


@pytest.mark.parametrize("text", [b"", b"\n", b"two words", b"\xff", b"a\nb"])
def test_what_is_no_key_is_refused_and_not_repeated(tmp_path: Path, text: bytes) -> None:
    """It may be half of one."""
    (tmp_path / "key").write_bytes(text)
    with pytest.raises(UsageError, match="GATEWAY-KEY") as caught:
        key_of(tmp_path / "key")
    assert "two words" not in str(caught.value)


def test_without_a_key_there_is_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every request would fail."""
    monkeypatch.delenv(GATEWAY_KEY, raising=False)
    for path in (None, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="GATEWAY-KEY"):
            key_of(path)


def test_credentials_do_not_show_the_key() -> None:
    """What is printed ends up in tickets."""
    assert "tt_secret" not in repr(Credentials(Path("k"), "tt_secret", Path("s")))
