"""Certificates are checked when they are read, and taken up when they change."""

from __future__ import annotations

import os

import pytest

from mach.errors import ConfigError
from mach.reloading import Reloaded
from mach.tls import ClientTls, ServerTls, Tls, check_pair, read_ca, read_pair
from tests.certificates import Authority, write

NAMES = ("--tls-certificate", "--tls-key")


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def test_a_pair_is_read_with_its_expiry(authority):
    files = authority.issue("server", days=3)
    pair = read_pair(files.certificate, files.key, NAMES)
    assert pair.certificate == files.certificate.read_bytes()
    assert pair.key == files.key.read_bytes()
    assert abs(pair.expires - (files.key.stat().st_mtime + 3 * 86_400)) < 60
    assert "KEY" not in repr(pair)


def missing(authority, files):
    files.certificate.unlink()


def unreadable(authority, files):
    files.key.unlink()
    files.key.mkdir()


def no_certificate(authority, files):
    files.certificate.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----")


def no_key(authority, files):
    files.key.write_bytes(files.certificate.read_bytes())


def another_key(authority, files):
    files.key.write_bytes(authority.pem()[1])


def with_passphrase(authority, files):
    certificate, key = authority.pem(passphrase=b"secret")
    files.certificate.write_bytes(certificate)
    files.key.write_bytes(key)


def expired(authority, files):
    authority.issue("server", days=-1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, r"--tls-certificate .*server\.crt: No such file"),
        (unreadable, r"--tls-key .*server\.key: Is a directory"),
        (no_certificate, r"--tls-certificate .*server\.crt: is not a certificate in PEM form"),
        (no_key, r"--tls-key .*server\.key: is not a private key in PEM form"),
        (another_key, r"--tls-key .*: is not the key of the certificate .*server\.crt"),
        (with_passphrase, r"--tls-key .*: has a passphrase"),
        (expired, r"--tls-certificate .*: expired at \d{4}-"),
    ],
)
def test_what_cannot_be_used_is_named(authority, spoil, message):
    files = authority.issue("server")
    spoil(authority, files)
    with pytest.raises(ConfigError, match=message) as caught:
        ServerTls(files.certificate, files.key, None)
    assert "\n" not in str(caught.value)


def test_authorities_must_be_certificates(authority, tmp_path):
    assert read_ca(authority.ca, "--shard-ca") == authority.ca.read_bytes()
    with pytest.raises(ConfigError, match=r"--shard-ca .*: is not a certificate"):
        read_ca(authority.issue("server").key, "--shard-ca")
    with pytest.raises(ConfigError, match=r"tls\.ca .*none: No such file"):
        ClientTls(Tls(ca=tmp_path / "none"))


def test_a_certificate_needs_its_key():
    check_pair(None, None, NAMES)
    check_pair("a", "b", NAMES)
    with pytest.raises(ConfigError, match="--tls-certificate needs --tls-key as well"):
        check_pair("a", None, NAMES)
    with pytest.raises(ConfigError, match="--tls-key needs --tls-certificate as well"):
        check_pair(None, "b", NAMES)
    with pytest.raises(ConfigError, match=r"tls\.certificate needs tls\.key"):
        ClientTls(Tls(certificate="a"))


def test_files_that_change_are_taken_up_once(authority):
    files = authority.issue("server")
    tls = ServerTls(files.certificate, files.key, authority.ca)
    before = tls.files.value
    assert not tls.files.check()
    os.utime(files.key)  # touched, not changed
    assert not tls.files.check()
    assert tls.files.value is before
    authority.issue("server")
    assert tls.files.check()
    assert tls.files.value.pair.certificate == files.certificate.read_bytes()
    assert not tls.files.check()


def test_files_that_cannot_be_used_are_told_of_once_and_what_was_there_stays(authority):
    files = authority.issue("server")
    tls = ServerTls(files.certificate, files.key, None)
    before = tls.files.value
    certificate, key = authority.pem()
    write(files.certificate, certificate)  # the key is not there yet
    with pytest.raises(ConfigError, match="is not the key"):
        tls.files.check()
    assert not tls.files.check()
    assert tls.files.value is before
    write(files.key, key)
    assert tls.files.check()
    assert tls.files.value.pair.key == key


def test_a_file_that_is_gone_is_a_change(tmp_path):
    path = tmp_path / "file"
    path.write_text("1")
    reloaded = Reloaded("number", [path], lambda: int(path.read_text()))
    path.unlink()
    with pytest.raises(OSError, match="No such file"):
        reloaded.check()
    assert not reloaded.check()
    path.write_text("2")
    assert reloaded.check()
    assert reloaded.value == 2


def test_a_failure_that_passes_is_got_over_without_a_change(tmp_path):
    path, failures = tmp_path / "file", []

    def load():
        if failures:
            raise ConfigError(failures[0])
        return path.read_text()

    path.write_text("1")
    reloaded = Reloaded("text", [path], load)
    path.write_text("22")
    failures.append("too many open files")
    with pytest.raises(ConfigError, match="too many"):
        reloaded.check()
    assert not reloaded.check()  # the same is told once
    failures[0] = "no memory"
    with pytest.raises(ConfigError, match="no memory"):
        reloaded.check()
    failures.clear()
    assert reloaded.check()
    assert reloaded.value == "22"


def test_permissions_are_a_change(tmp_path):
    path = tmp_path / "file"
    path.write_text("1")
    loads = []
    reloaded = Reloaded("text", [path], lambda: loads.append(1))
    path.chmod(0o600)
    reloaded.check()
    assert len(loads) == 2
