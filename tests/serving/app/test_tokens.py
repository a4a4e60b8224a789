"""User tokens: what opens something, and what does not."""

from __future__ import annotations

import hashlib
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import URLSafeSerializer

from tastetwin.errors import StoreError
from tastetwin.serving.app.tokens import PREFIX, PURPOSE, Tokens, signing_keys
from tastetwin.serving.keys import SCOPES
from tests.serving.app.conftest import SECRET, Product

OPTIONS = {"key_derivation": "hmac", "digest_method": hashlib.sha256}


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def tokens(*keys: str, clock: Clock | None = None) -> Tokens:
    return Tokens(keys or (SECRET,), 5.0, 20, clock or Clock())


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=1_000))
def test_a_token_is_its_users_whatever_their_id(user: str) -> None:
    """Ids are the source's: of any letters, and long."""
    made = tokens().make(user, 60)
    found = tokens().caller(made)
    assert found is not None and found.user == user and found.scopes == {"me"}
    assert made.isascii() and made.isprintable() and " " not in made


def test_it_opens_nothing_once_its_time_is_over() -> None:
    """To the second."""
    clock = Clock()
    mine = tokens(clock=clock)
    made = mine.make("u", 60)
    clock.now += 59.9
    assert mine.caller(made) is not None
    clock.now += 0.1
    assert mine.caller(made) is None


@given(st.data())
def test_one_changed_character_opens_nothing(data: st.DataObject) -> None:
    """Wherever it is."""
    made = tokens().make("u42", 60)
    at = data.draw(st.integers(0, len(made) - 1))
    other = data.draw(st.sampled_from("abcXYZ019_-.").filter(lambda letter: letter != made[at]))
    found = tokens().caller(made[:at] + other + made[at + 1 :])
    # Of the last letter of base64, some bits stand for nothing: another letter may be the same signature.
    assert found is None or (at == len(made) - 1 and found.user == "u42")


def test_secrets_can_be_replaced_one_after_the_other() -> None:
    """Tokens of the old one count for as long as it is in the file; new ones are of the last."""
    old, new = "o" * 40, "n" * 40
    assert tokens(old, new).caller(tokens(old).make("u", 60)) is not None
    assert tokens(new).caller(tokens(old, new).make("u", 60)) is not None
    assert tokens(new).caller(tokens(old).make("u", 60)) is None


def wrong_tokens() -> dict[str, str]:
    def signed(salt: str = PURPOSE, key: str = SECRET) -> str:
        made = URLSafeSerializer(key, salt=salt, signer_kwargs=OPTIONS).dumps(["u42", 4_000_000_000])
        return PREFIX + (made if isinstance(made, str) else made.decode())

    good = signed()
    return {
        "none": "",
        "no token": PREFIX,
        "of another secret": signed(key="x" * 40),
        "for another purpose": signed(salt="tastetwin.other"),
        "without signature": good.rsplit(".", 1)[0],
        "without prefix": good.removeprefix(PREFIX),
        "another's payload": signed().replace(good.split(".")[0], signed(key="x" * 40).split(".")[0] + "A"),
        "long": PREFIX + "a" * 20_000,
        "not of this alphabet": PREFIX + "é.é",
    }


@pytest.mark.parametrize("name", wrong_tokens())
def test_whatever_is_wrong_with_a_token_the_answer_is_the_same(shop: Product, name: str) -> None:
    """401, byte for byte that of no key at all: it tells nothing to whoever tries."""
    expired = shop.reply("GET", "/v1/me/twins", Tokens([SECRET], 1, 1, lambda: 0.0).make("u42", 60), x_request_id="r")
    wrong = shop.reply("GET", "/v1/me/twins", wrong_tokens()[name], x_request_id="r")
    assert (wrong.status, wrong.body) == (expired.status, expired.body)
    assert wrong.status == 401


def test_the_premise_of_it(shop: Product) -> None:
    """The same thing signed right does open the door."""
    good = URLSafeSerializer(SECRET, salt=PURPOSE, signer_kwargs=OPTIONS).dumps(["u42", 4_000_000_000])
    assert shop.reply("GET", "/v1/me/twins", PREFIX + str(good)).status == 200


def test_no_api_key_can_be_given_a_users_scope() -> None:
    """It would open everybody's things at once."""
    assert "me" not in SCOPES


def test_a_secret_is_made_for_its_owner_only_and_kept(tmp_path: Path) -> None:
    """Whoever reads it can be everybody."""
    path = tmp_path / "deep" / "secret"
    first = signing_keys(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert signing_keys(path) == first and len(first[0]) >= 32
    assert [each.name for each in path.parent.iterdir()] == ["secret"]


def test_processes_that_start_together_agree_on_the_secret(tmp_path: Path) -> None:
    """Else every other token is refused."""
    path = tmp_path / "s"
    code = "import sys, pathlib; from tastetwin.serving.app.tokens import signing_keys as s; "
    code += "sys.stdin.read(1); sys.stdout.write(s(pathlib.Path(sys.argv[1]))[0])"
    command = [sys.executable, "-c", code, str(path)]
    there = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {each.communicate("x", timeout=60)[0] for each in there} == set(signing_keys(path))


@pytest.mark.parametrize("text", [b"", b"\n", b"short\n", b"\xff" * 40])
def test_a_secret_that_is_none_stops_the_start(tmp_path: Path, text: bytes) -> None:
    """A guessable one would be worse than none."""
    path = tmp_path / "secret"
    path.write_bytes(text)
    with pytest.raises(StoreError, match="SECRET-FILE"):
        signing_keys(path)
