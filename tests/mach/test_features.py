"""Text to features: normalisation, n-grams, TF-IDF, sparse batches."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mach.errors import InvalidInput
from mach.features import FeatureSettings, Featurizer, SlotCounter, SparseBatch, slots_of

WORDS = FeatureSettings()
CHARS = FeatureSettings(word_ngrams=1, char_ngrams_min=3, char_ngrams_max=4)
AFFIXES = FeatureSettings(affix_lengths=(3, 5))
ASCII = FeatureSettings(transliterate=True, char_ngrams_min=2, char_ngrams_max=4)
LOG = ["red cordless drill", "blue cordless drill", "red paint", "Bohrhammer 18 V", "red drill"]


def fitted(settings=WORDS, texts=LOG, **keep):
    counter = SlotCounter(settings)
    counter.add(texts)
    return counter.featurizer(**keep)


def test_words_and_word_pairs():
    assert len(slots_of("red cordless drill", WORDS)) == 5
    assert slots_of("red cordless drill", WORDS)[:3] == [
        slots_of(word, WORDS)[0] for word in ("red", "cordless", "drill")
    ]


def test_character_ngrams_do_not_cross_words_and_count_characters_not_bytes():
    # " ab " has two 3-grams and one 4-gram, and the word itself makes four.
    assert len(slots_of("ab", CHARS)) == len(slots_of("äö", CHARS)) == 4
    assert len(slots_of("ab cd", CHARS)) == 8


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Straße", "STRASSE"),
        ("ＤＲＩＬＬ", "drill"),
        ("é", "e\u0301"),
        ("a-b", "a b"),
        (" a ", "a"),
    ],
)
def test_forms_of_one_text_agree(one, other):
    assert slots_of(one, WORDS) == slots_of(other, WORDS)


@pytest.mark.parametrize(
    ("foreign", "latin"),
    [
        ("München", "Munchen"),
        ("Усть-Кут", "ust kut"),  # the soft sign does not cut the word
        ("Мельник", "Melnik"),
        ("Ελλάδα", "Ellada"),
        ("दिल्ली", "dilli"),  # nor do vowel signs
        ("東京", "dongjing"),
        ("İzmir – Œuvre", "izmir oeuvre"),
    ],
)
def test_transliterated_names_agree_with_latin_ones(foreign, latin):
    assert slots_of(foreign, ASCII) == slots_of(latin, ASCII) != []
    assert slots_of(foreign, CHARS) != slots_of(latin, CHARS)


def test_transliteration_leaves_ascii_text_as_it_is():
    plain = FeatureSettings(char_ngrams_min=2, char_ngrams_max=4)
    assert slots_of("Red drill_2, 18-V", ASCII) == slots_of("Red drill_2, 18-V", plain)


@given(st.text(max_size=60))
def test_any_text_gives_slots_in_range_and_never_fails(text):
    for settings in (WORDS, CHARS, AFFIXES, ASCII):
        assert all(0 <= slot < 2**settings.hash_bits for slot in slots_of(text, settings))


def test_lone_surrogates_do_not_fail():
    assert slots_of("a\ud800", WORDS)


@pytest.mark.parametrize(
    "settings",
    [
        {"word_ngrams": 0},
        {"char_ngrams_min": 3},
        {"char_ngrams_min": 4, "char_ngrams_max": 3},
        {"hash_bits": 40},
        {"unknown": 1},
        {"affix_lengths": (0,)},
        {"affix_lengths": (5, 3)},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValidationError):
        FeatureSettings(**settings)


def reference_row(text, featurizer):
    """TF-IDF over the kept slots, written the slow way."""
    counts = Counter(slots_of(text, featurizer.settings))
    row = {}
    for subword in (False, True):
        part = {}
        for index, slot in enumerate(featurizer.slots.tolist()):
            if counts[slot] and (slot >= featurizer.settings.first_subword) == subword:
                part[index] = (1 + math.log(counts[slot])) * float(featurizer.weights[index])
        length = sum(value**2 for value in part.values()) ** 0.5
        row |= {index: value / length for index, value in part.items()}
    return row


@given(
    st.lists(
        st.lists(st.sampled_from(["red", "blue", "drill", "paint", "cordless", "xyz"]), max_size=9)
    )
)
def test_batches_agree_with_a_plain_reference(texts):
    for settings in (WORDS, CHARS, AFFIXES):
        agrees(texts, fitted(settings))


def agrees(texts, featurizer):
    texts = [" ".join(words) for words in texts]
    batch = featurizer.batch(texts)
    batch.check(featurizer.num_features)
    assert len(batch) == len(texts)
    for row, text in enumerate(texts):
        part = batch.rows(row, row + 1)
        expected = reference_row(text, featurizer)
        assert part.indices.tolist() == list(expected)
        np.testing.assert_allclose(part.values, list(expected.values()), rtol=1e-6)


@given(st.lists(st.text(max_size=30), max_size=8), st.integers(0, 8))
def test_a_row_does_not_depend_on_its_batch(texts, cut):
    featurizer = fitted(CHARS)
    whole = featurizer.batch(texts)
    parts = SparseBatch.concatenate([featurizer.batch(texts[:cut]), featurizer.batch(texts[cut:])])
    for name in ("indices", "values", "splits"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_a_text_without_a_known_feature_is_an_empty_row():
    batch = fitted().batch(["zzz qqq", "", "!!!", "red"])
    assert np.diff(batch.splits).tolist() == [0, 0, 0, 1]


def test_min_count_and_max_features_keep_the_frequent():
    assert fitted(min_count=3).num_features == 2  # red, drill
    assert fitted(max_features=1).num_features == 1
    everything = fitted()
    assert set(fitted(min_count=2).slots) < set(everything.slots)
    with pytest.raises(InvalidInput, match="min_count"):
        fitted(min_count=99)


def test_rare_features_weigh_more():
    featurizer = fitted()
    weight = dict(zip(featurizer.slots.tolist(), featurizer.weights.tolist(), strict=True))
    assert weight[slots_of("paint", WORDS)[0]] > weight[slots_of("red", WORDS)[0]]


def test_arrow_round_trip_and_damage():
    featurizer = fitted()
    table = featurizer.to_arrow()
    again = Featurizer.from_arrow(WORDS, table)
    np.testing.assert_array_equal(again.slots, featurizer.slots)
    np.testing.assert_array_equal(again.weights, featurizer.weights)
    with pytest.raises(InvalidInput):
        Featurizer.from_arrow(WORDS, table.slice(0, 0))
    with pytest.raises(InvalidInput):
        Featurizer.from_arrow(WORDS, table.take(list(range(table.num_rows))[::-1]))
    with pytest.raises(InvalidInput):
        Featurizer.from_arrow(FeatureSettings(hash_bits=8), table)


def batch_of(indices, values, splits):
    return SparseBatch(
        np.array(indices, np.int32), np.array(values, np.float32), np.array(splits, np.int32)
    )


@pytest.mark.parametrize(
    ("batch", "field"),
    [
        (batch_of([0], [1, 2], [0, 1]), "features.values"),
        (batch_of([0], [1], [0, 2]), "features.splits"),
        (batch_of([0], [1], [1, 1]), "features.splits"),
        (batch_of([0, 1], [1, 1], [0, 2, 1, 2]), "features.splits"),
        (batch_of([], [], []), "features.splits"),
        (batch_of([-1], [1], [0, 1]), "features.indices"),
        (batch_of([5], [1], [0, 1]), "features.indices"),
        (batch_of([0], [np.nan], [0, 1]), "features.values"),
        (batch_of([0], [np.inf], [0, 1]), "features.values"),
    ],
)
def test_malformed_batches_name_the_field(batch, field):
    with pytest.raises(InvalidInput, match=field):
        batch.check(5)


def test_padding():
    indices, values = batch_of([3, 1, 4], [0.5, 1, 2], [0, 2, 2, 3]).padded()
    assert indices.tolist() == [[3, 1], [0, 0], [4, 0]]
    assert values.tolist() == [[0.5, 1], [0, 0], [2, 0]]
    assert batch_of([], [], [0, 0]).padded()[0].shape == (1, 1)


@given(st.data())
def test_some_rows_are_padded_as_if_they_were_alone(data):
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=7))
    splits = np.cumsum([0, *lengths])
    batch = batch_of(1 + np.arange(splits[-1]), 0.5 - np.arange(splits[-1]), splits)
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=9)))
    for found, expected in zip(batch.padded_rows(rows), batch.take(rows).padded(), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
