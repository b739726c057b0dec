"""API keys: the command that makes them, the file that holds them, and what is said of a wrong one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from elit_serve.errors import InvalidInput
from elit_serve.server.keys import Key, Keyring, digest_of, fresh_key, make_key, read_keyring, read_keys
from elit_serve.server.settings import Settings


def made(*arguments: str) -> tuple[str, str]:
    """(key, line) of `elit-serve key`."""
    command = [sys.executable, "-m", "elit_serve.cli", "key", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return done.stderr.split()[-1], done.stdout


def test_the_command_shows_a_key_once_and_its_line_lets_it_in(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    limits = ("--requests-per-minute", "90", "--burst", "5", "--share", "2.5")
    studio, first = made("studio", "--scope", "generate", "--scope", "metrics", *limits)
    other, second = made("other")
    file.write_text(first + second)
    assert studio not in first
    keys = Keyring(read_keys(file))
    key = keys.find(studio.encode())
    assert key is not None
    assert (key.name, key.scopes, key.share) == ("studio", {"generate", "metrics"}, 2.5)
    assert (key.requests_per_minute, key.burst) == (90, 5)
    plain = keys.find(other.encode())
    assert plain is not None
    assert (plain.name, plain.scopes, plain.requests_per_minute, plain.burst) == ("other", {"generate"}, None, None)
    assert keys.find(studio[:-1].encode()) is None


def test_a_line_says_all_that_a_key_has() -> None:
    entry = {"sha256": "0" * 64, "scopes": ["admin"], "requests_per_minute": 0.5, "burst": 1, "share": 3}
    key = make_key("a-1", entry)
    content = f'{{ sha256 = "{"0" * 64}", scopes = ["admin"], requests_per_minute = 0.5, burst = 1, share = 3 }}'
    assert key.line() == f"a-1 = {content}"


def test_fresh_keys_differ_and_can_be_given_as_a_setting() -> None:
    keys = {fresh_key() for _ in range(100)}
    assert len(keys) == 100
    assert len(list(read_keyring(Settings(api_key=",".join(keys))) or ())) == 100


def test_keys_of_the_settings_may_do_everything_and_there_are_none_without() -> None:
    keyring = read_keyring(Settings(api_key="token-abc123,token-def456"))
    assert keyring is not None
    key = keyring.find(b"token-def456")
    assert key is not None
    assert key.name == "api-key-2"
    assert all(key.allows(scope) for scope in ("generate", "metrics", "admin"))
    assert read_keyring(Settings()) is None


def test_a_scope_allows_itself_only() -> None:
    key = Key(name="a", sha256="0" * 64, scopes=frozenset({"metrics"}))
    assert key.allows("metrics")
    assert not key.allows("generate")
    assert not key.allows("admin")


GOOD = f'sha256 = "{"1" * 64}", scopes = ["generate"]'


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "at least one key"),
        ("a = 1", "a in"),
        (f'"a b" = {{ {GOOD} }}', "'a b'"),
        (f"a = {{ {GOOD}, rate = 5 }}", "a.rate in"),
        (f"a = {{ {GOOD}, burst = 0 }}", "a.burst in"),
        (f"a = {{ {GOOD}, burst = {10**20} }}", "a.burst in"),
        (f"a = {{ {GOOD}, share = 0 }}", "a.share in"),
        (f"a = {{ {GOOD}, share = 1e308 }}", "a.share in"),
        (f"a = {{ {GOOD}, requests_per_minute = 1e-300 }}", "a.requests_per_minute in"),
        (f"a = {{ {GOOD}, requests_per_minute = {'9' * 5000} }}", "a TOML file"),
        ('a = { scopes = ["generate"] }', "a.sha256 in"),
        (f'a = {{ sha256 = "{"1" * 64}", scopes = [] }}', "a.scopes in"),
        (f'a = {{ sha256 = "{"1" * 64}", scopes = ["root"] }}', "'metrics' or 'admin'"),
        (f"a = {{ {GOOD} }}\nb = {{ {GOOD} }}", "same key as a"),
        ('a = { sha256 = "elit-plain-secret", scopes = ["generate"] }', "a.sha256 in"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_and_no_secret_shown(content: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(content)
    with pytest.raises(InvalidInput) as refusal:
        read_keyring(Settings(keys_file=str(file)))
    assert named in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_an_editor_may_have_put_a_mark_in_front(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f"a = {{ {GOOD} }}", encoding="utf-8-sig")
    assert [key.name for key in read_keyring(Settings(keys_file=str(file))) or ()] == ["a"]


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(make_key("a", {"sha256": digest_of("token-abc123"), "scopes": ["generate"]}).line())
    with pytest.raises(InvalidInput):
        read_keyring(Settings(keys_file=str(file), api_key="token-abc123"))
