"""The text preparation that linear models want and not all of these systems do themselves."""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"\w+")


def normalize(text: str, *, strip_accents: bool = False, min_word: int = 1) -> str:
    """Lower-cased words with single spaces between them, punctuation gone."""
    text = text.lower()
    if strip_accents:
        text = "".join(
            c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)
        )
    return " ".join(word for word in _WORD.findall(text) if len(word) >= min_word)
