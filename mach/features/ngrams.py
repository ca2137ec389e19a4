"""Normalising text and hashing its n-grams into slots."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import xxhash
from anyascii import anyascii
from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["FeatureSettings", "slots_of"]

_WORD = re.compile(r"\w+")
_FOREIGN = re.compile(r"[^\x00-\x7f]")
_hash = xxhash.xxh3_64_intdigest


class FeatureSettings(BaseModel):
    """How text becomes n-grams and n-grams become slots; part of the bundle's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    word_ngrams: int = Field(2, ge=0, le=5)
    """Longest run of words hashed as one feature; 0 uses no words, 2 words and word pairs."""
    char_ngrams_min: int = Field(0, ge=0, le=10)
    """Shortest character n-gram inside a word padded with a blank on either side; 0 is none."""
    char_ngrams_max: int = Field(0, ge=0, le=10)
    """Longest such character n-gram."""
    affix_lengths: tuple[int, ...] = ()
    """Beginnings and ends of these many characters of words longer than that."""
    transliterate: bool = False
    """Write letters of all scripts as ASCII first: ``é`` as ``e``, ``Москва`` as ``moskva``."""
    hash_bits: int = Field(24, ge=8, le=28)
    """log2 of the number of slots; words take the lower half, parts of words the upper."""

    @model_validator(mode="after")
    def _some_features(self) -> FeatureSettings:
        if (self.char_ngrams_min == 0) != (self.char_ngrams_max == 0) or (
            self.char_ngrams_min > self.char_ngrams_max
        ):
            raise ValueError("char_ngrams_min and char_ngrams_max must be a range, or both 0")
        if not all(1 <= length <= 20 for length in self.affix_lengths):
            raise ValueError("affix_lengths must be from 1 to 20")
        if list(self.affix_lengths) != sorted(set(self.affix_lengths)):
            raise ValueError("affix_lengths must increase")
        if self.word_ngrams == 0 and self.char_ngrams_max == 0 and not self.affix_lengths:
            raise ValueError("word_ngrams, char_ngrams_max and affix_lengths cannot all be 0")
        return self

    @property
    def first_subword(self) -> int:
        """The first slot of parts of words; those of words are below."""
        return 1 << (self.hash_bits - 1)


@lru_cache(1 << 16)
def _as_ascii(character: str) -> str:
    """A letter, mark or number as ASCII letters and digits; of anything else, a blank."""
    if unicodedata.category(character)[0] not in "LMN":
        return " "
    # Signs such as the apostrophe of a soft sign would cut the word in two.
    return "".join(filter(str.isalnum, anyascii(character)))


def words_of(text: str, settings: FeatureSettings) -> list[str]:
    """The words of ``text``.

    NFKC and case folding come first, so ``Straße``, ``STRASSE`` and full-width
    forms agree.
    """
    text = unicodedata.normalize("NFKC", text.casefold())
    if settings.transliterate and not text.isascii():
        text = _FOREIGN.sub(lambda found: _as_ascii(found.group()), text).lower()
    return _WORD.findall(text)


def slots_of(text: str, settings: FeatureSettings) -> list[int]:
    """Slots of the n-grams and parts of words of ``text``, repeats included.

    Lone surrogates, which no UTF-8 file can hold, count as ``?``.
    """
    words = words_of(text, settings)
    if not words:
        return []
    half = settings.first_subword
    mask = half - 1
    slots = []
    for length in range(1, settings.word_ngrams + 1):
        for start in range(len(words) - length + 1):
            ngram = " ".join(words[start : start + length])
            slots.append(_hash(ngram.encode("utf-8", "replace")) & mask)
    if settings.char_ngrams_max:
        for word in words:
            padded = f" {word} ".encode("utf-32-le", "replace")  # 4 bytes a character
            size = len(padded)
            for length in range(4 * settings.char_ngrams_min, 4 * settings.char_ngrams_max + 1, 4):
                for start in range(0, size - length + 1, 4):
                    slots.append(_hash(padded[start : start + length], seed=1) & mask | half)
    for length in settings.affix_lengths:
        for word in words:
            if len(word) > length:
                slots.append(_hash(word[:length].encode("utf-8", "replace"), seed=2) & mask | half)
                slots.append(_hash(word[-length:].encode("utf-8", "replace"), seed=3) & mask | half)
    return slots
