"""The text preparation that linear models want and not all of these systems do themselves."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_WORD = re.compile(r"\w+")


@lru_cache(1 << 16)
def _as_ascii(character: str) -> str:
    from anyascii import anyascii  # noqa: PLC0415 - only where it is asked for

    if unicodedata.category(character)[0] not in "LMN":
        return " "
    return "".join(filter(str.isalnum, anyascii(character)))


def normalize(
    text: str, *, strip_accents: bool = False, transliterate: bool = False, min_word: int = 1
) -> str:
    """Lower-cased words with single spaces between them, punctuation gone.

    ``transliterate`` writes letters of all scripts as ASCII, as ours does with that setting.
    """
    text = text.lower()
    if transliterate:
        text = unicodedata.normalize("NFKC", text)
        text = "".join(c if c.isascii() else _as_ascii(c) for c in text).lower()
    if strip_accents:
        text = "".join(
            c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)
        )
    return " ".join(word for word in _WORD.findall(text) if len(word) >= min_word)
