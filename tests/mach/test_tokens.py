"""The token file and the commands that write it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from mach.cli.app import build_app, main
from mach.errors import ConfigError, InvalidInput
from mach.tokens import create_token, hash_token, id_of, read_tokens, revoke_token


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens.json"


def run(*arguments):
    return CliRunner().invoke(build_app(), ["token", *map(str, arguments)])


def test_the_file_holds_hashes_only(path):
    token = create_token(path, "storefront", rate=100, burst=300)
    assert re.fullmatch(r"mach_[0-9a-f]{8}_[\w-]{43}", token)
    (entry,) = read_tokens(path).tokens
    assert entry.sha256 == hashlib.sha256(token.encode()).hexdigest() == hash_token(token).hex()
    assert entry.id == id_of(token)
    assert (entry.scopes, entry.rate, entry.burst, entry.expires) == (("search",), 100, 300, None)
    assert token[14:] not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    create_token(path, "other")
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_keeps_its_owner(path):
    create_token(path, "a")
    os.chown(path, 65534, 65533)
    revoke_token(path, "a")
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (65534, 65533, 0o600)


def test_a_link_to_the_file_stays_one(path, tmp_path):
    path.symlink_to(tmp_path / "elsewhere.json")
    create_token(path, "a")
    create_token(path, "b")
    assert path.is_symlink()
    assert [token.name for token in read_tokens(tmp_path / "elsewhere.json").tokens] == ["a", "b"]


def test_tokens_made_at_once_are_all_kept(path):
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(lambda number: create_token(path, f"client-{number}"), range(16)))
    assert {id_of(token) for token in tokens} == {entry.id for entry in read_tokens(path).tokens}


@pytest.mark.parametrize("by_id", [True, False])
def test_a_token_is_revoked_by_name_or_id(path, by_id):
    token = create_token(path, "a")
    create_token(path, "b")
    assert revoke_token(path, id_of(token) if by_id else "a").name == "a"
    assert [entry.name for entry in read_tokens(path).tokens] == ["b"]
    with pytest.raises(InvalidInput, match="has no token a"):
        revoke_token(path, "a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "with space"}, "name: "),
        ({"name": "taken"}, "has a token named taken already"),
        ({"name": "a", "rate": 0.0}, "rate: "),
        ({"name": "a", "rate": float("nan")}, "rate: "),
        ({"name": "a", "burst": 5}, "burst: a burst needs a rate"),
        ({"name": "a", "scopes": ["everything"]}, "scopes: "),
        ({"name": "a", "scopes": []}, "scopes: "),
    ],
)
def test_arguments_out_of_range_are_named_and_nothing_is_written(path, arguments, message):
    create_token(path, "taken")
    before = path.read_text()
    with pytest.raises(InvalidInput, match=message):
        create_token(path, **arguments)
    assert path.read_text() == before


GOOD = {
    "id": "00000000",
    "name": "a",
    "sha256": "0" * 64,
    "scopes": ["search"],
    "created": "2026-01-01T00:00:00Z",
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "content: "),
        (json.dumps({"tokens": [{**GOOD, "sha256": "x"}]}), r"tokens\.0\.sha256: "),
        (json.dumps({"tokens": [{**GOOD, "scope": "x"}]}), r"tokens\.0\.scope: "),
        (json.dumps({"tokens": [{**GOOD, "created": "2026-01-01"}]}), r"tokens\.0\.created: "),
        (json.dumps({"tokens": [{**GOOD, "burst": 3}]}), "a burst needs a rate"),
        (json.dumps({"tokens": [GOOD, {**GOOD, "id": "00000001"}]}), "the name a is there twice"),
        (json.dumps({"tokens": [GOOD, {**GOOD, "name": "b"}]}), "the id 00000000 is there twice"),
    ],
)
def test_a_file_that_is_none_is_refused_in_a_sentence(path, content, message):
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_tokens(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_without_tokens_is_one(path):
    path.write_text("{}")
    assert read_tokens(path).tokens == ()


@pytest.mark.parametrize(
    "text", ["", "mach_", "mach_0000000_" + "a" * 43, "mach_00000000_" + "a" * 42, "x" * 10_000]
)
def test_what_is_no_token_has_no_id(text):
    assert id_of(text) is None


def test_the_commands(path):
    created = run("create", path, "storefront", "--rate", "50", "--expires-in-days", "30")
    assert created.exit_code == 0
    token = created.stdout.strip()
    assert id_of(token)
    assert run("create", path, "operator", "--scope", "admin", "--scope", "search").exit_code == 0
    listed = run("list", path)
    assert "storefront" in listed.stdout and "admin, search" in listed.stdout
    fields = json.loads(run("list", path, "--json").stdout)["tokens"]
    assert [one["name"] for one in fields] == ["storefront", "operator"]
    assert "sha256" not in fields[0] and token not in listed.stdout
    days = datetime.fromisoformat(fields[0]["expires"]) - datetime.now(UTC)
    assert 29 < days.total_seconds() / 86_400 <= 30
    assert run("revoke", path, "storefront").exit_code == 0
    assert [entry.name for entry in read_tokens(path).tokens] == ["operator"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["revoke", "{path}", "nobody"], "has no token nobody"),
        (["list", "{path}.none"], "No such file"),
        (["create", "{path}/below/it", "a"], "Not a directory"),
        (["create", "{path}", "a", "--burst", "3"], "burst: a burst needs a rate"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(tmp_path, capsys, arguments, message):
    path = tmp_path / "tokens.json"
    create_token(path, "somebody")
    with pytest.raises(SystemExit) as ended:
        main(["token", *(word.replace("{path}", str(path)) for word in arguments)])
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
