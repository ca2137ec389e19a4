"""Flags, environment variables, and what a mistake in them gets."""

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from mach.errors import ConfigError
from mach.serving import (
    CommaSeparatedInts,
    CommaSeparatedStrings,
    ServingSettings,
    load_settings,
    split_address,
)


class Settings(ServingSettings):
    model_config = SettingsConfigDict(env_prefix="MACH_SAMPLE_")

    number: CommaSeparatedInts
    """Some numbers."""
    name: CommaSeparatedStrings = Field(default_factory=list)
    """Some names."""


def load(*argv):
    return load_settings(Settings, argv, program="sample")


@pytest.mark.parametrize(
    "argv",
    [
        ["--number", "1,2,3"],
        ["--number", " 1, 2,3 "],
        ["--number", "1,2", "--number", "3"],
        ["--number=1", "--number=2", "--number=3"],
    ],
)
def test_lists_are_written_with_commas_or_by_repeating_the_flag(argv):
    assert load(*argv).number == [1, 2, 3]


def test_environment_variables_and_a_flag_wins(monkeypatch):
    monkeypatch.setenv("MACH_SAMPLE_NUMBER", "4,5")
    monkeypatch.setenv("MACH_SAMPLE_NAME", "a,b")
    monkeypatch.setenv("MACH_SAMPLE_DRAIN_SECONDS", "3.5")
    monkeypatch.setenv("MACH_SAMPLE_REFLECTION", "false")
    settings = load("--drain-seconds", "7")
    assert settings.number == [4, 5]
    assert settings.name == ["a", "b"]
    assert settings.drain_seconds == 7
    assert not settings.reflection
    assert not load("--no-reflection").reflection


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        ([], ["--number is required", "MACH_SAMPLE_NUMBER"]),
        (["--number", "1", "--wrong", "2"], ["--wrong"]),
        (["--number", "1", "stray"], ["stray"]),
        (["--number"], ["--number"]),
        (["--number", "x"], ["--number", "'x'", "integer"]),
        (["--number", "1", "--listen", "50051"], ["--listen", "'50051' is not HOST:PORT"]),
        (["--number", "1", "--listen", "h:70000"], ["--listen"]),
        (["--number", "1", "--metrics-listen", "no"], ["--metrics-listen", "'no'"]),
        (["--number", "1", "--log-level", "loud"], ["--log-level", "'loud'"]),
        (["--number", "1", "--drain-seconds", "-1"], ["--drain-seconds", "'-1'"]),
        (["--number", "1", "--num", "1"], ["--num"]),  # no guessing at abbreviations
    ],
)
def test_a_mistake_is_named(argv, fragments):
    with pytest.raises(ConfigError) as caught:
        load(*argv)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_help_tells_every_flag_and_its_meaning(capsys):
    with pytest.raises(SystemExit) as caught:
        load("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description.split()[0] in text


def test_addresses():
    assert split_address("127.0.0.1:80") == ("127.0.0.1", 80)
    assert split_address("[::1]:80") == ("::1", 80)
    assert split_address("shard-0.mach:0") == ("shard-0.mach", 0)
    for wrong in ("", ":80", "host", "host:", "host:port", "::1:80", "a b:1", "host:99999"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            split_address(wrong)
    assert load("--number", "1", "--listen", "unix:/tmp/x").listen == "unix:/tmp/x"
