"""Log lines in both formats."""

import json
import logging

import pytest

from mach.serving import configure_logging


@pytest.fixture(autouse=True)
def _restore_logging():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    asyncio_level = logging.getLogger("asyncio").level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("asyncio").setLevel(asyncio_level)


def test_json_lines_carry_fields_and_tracebacks(capsys):
    configure_logging("info", "json")
    logger = logging.getLogger("some.module")
    logger.debug("hidden")
    logger.info("bundle is %s", "active", extra={"bundle_version": "abc"})
    try:
        raise RuntimeError("oh")
    except RuntimeError:
        logger.exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first["message"] == "bundle is active"
    assert first["level"] == "info"
    assert first["logger"] == "some.module"
    assert first["bundle_version"] == "abc"
    assert first["time"].endswith("Z")
    assert "RuntimeError: oh" in second["traceback"]


def test_text_lines_carry_fields(capsys):
    configure_logging("warning", "text")
    logging.getLogger("some.module").info("hidden")
    logging.getLogger("some.module").warning("careful", extra={"repetition": 3})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING some.module: careful repetition=3")


def test_text_fields_stay_on_their_line(capsys):
    configure_logging("info", "text")
    logging.getLogger("some.module").info("query", extra={"query": "a\n2026 ERROR forged"})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(r"query='a\n2026 ERROR forged'")


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        ('Failed "execute_batch": (<SendStatusFromServerOperation>,)', 0),
        ("Failed grpc_call_start_batch: 8 with grpc_call_error value: 'TOO_MANY'", 1),
    ],
)
def test_a_caller_that_left_is_no_event(capsys, error, lines):
    configure_logging("info", "json")
    try:
        raise RuntimeError(error)
    except RuntimeError as caught:
        logging.getLogger("grpc._cython.cygrpc").exception(
            "ExecuteBatchError raised in core by servicer method [%s]", "/a.B/C", exc_info=caught
        )
    assert len(capsys.readouterr().err.splitlines()) == lines
    logging.getLogger("grpc._cython.cygrpc").error("anything else")
    assert "anything else" in capsys.readouterr().err
