"""Files that are written whole or not at all."""

from __future__ import annotations

import pytest

from mach.files import atomic_path, write_atomically


def by_path(path):
    with atomic_path(path) as draft:
        draft.write_text("x")


@pytest.mark.parametrize("write", [by_path, lambda path: write_atomically(path, "x")])
def test_an_error_names_the_file_that_was_asked_for(tmp_path, write):
    directory = tmp_path / "directory"
    (directory / "full").mkdir(parents=True)
    for path, kind in (
        (directory, IsADirectoryError),
        (tmp_path / "none" / "file", FileNotFoundError),
    ):
        with pytest.raises(kind) as caught:
            write(path)
        assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [directory]
