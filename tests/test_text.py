"""The built-in text encoder: what it learns, what it makes of new texts, and that it repeats."""

import dataclasses

import numpy as np
import pytest

from jaxcold.data.text import TextEncoder, fit_text
from jaxcold.types import DataError

TITLES = ["red shoe", "red hat", "blue hat", "blue shoe", "garden hose", "garden chair", "", None]


@pytest.fixture(scope="module")
def encode():
    return fit_text(TITLES)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_texts_with_common_words_are_close_and_others_are_not(encode):
    vectors = encode(["a red hat", "red hats", "garden furniture"])
    catalogue = encode(TITLES)
    assert [np.argmax(catalogue @ row) for row in vectors[:1]] == [1]
    assert cosine(vectors[2], catalogue[4]) > 0.5
    assert abs(cosine(vectors[2], catalogue[1])) < 1e-5


def test_all_directions_of_a_small_catalogue_keep_the_products_of_tf_idf(encode):
    """By hand: words and pairs, smoothed weights, unit rows. The SVD is whole here."""
    texts = [t or "" for t in TITLES]
    terms = [[*t.split(), *([t] if " " in t else [])] for t in texts]
    names = sorted({term for row in terms for term in row})
    counts = np.array([[row.count(name) for name in names] for row in terms], float)
    idf = np.log((1 + len(texts)) / (1 + (counts > 0).sum(0))) + 1
    weighted = counts * idf
    weighted /= np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-30)
    assert list(encode.terms) == names
    vectors = encode(TITLES)
    np.testing.assert_allclose(vectors @ vectors.T, weighted @ weighted.T, atol=1e-5)
    assert vectors.shape[1] == np.linalg.matrix_rank(weighted) == 6


def test_a_text_has_the_same_bits_alone_and_in_company(encode):
    together = encode(TITLES)
    alone = np.concatenate([encode([title]) for title in TITLES])
    np.testing.assert_array_equal(alone, together)
    assert together.dtype == np.float32


def test_what_is_unknown_is_zero(encode):
    assert not encode(["unheard of", "", None, np.nan, "?!"]).any()


def test_case_and_spelling_of_unicode_do_not_count():
    encode = fit_text(["CAFÉ Straße", "tea"])
    rows = encode(["cafe\u0301 STRASSE", "ｃａｆｅ\u0301 straße", "café strasse"])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert rows[0].any()


def test_equal_texts_and_seeds_give_equal_bits(encode):
    again = fit_text(TITLES)
    assert again.terms == encode.terms
    for field in dataclasses.fields(TextEncoder):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(encode, field.name))


def test_sizes_are_bounded():
    encode = fit_text([f"common word{i}" for i in range(30)], dim=5, max_terms=7)
    assert encode.components.shape == (7, 5)
    assert "common" in encode.terms


def test_bad_input_is_named(encode):
    with pytest.raises(DataError, match=r"row 1 \(counted from 0\) is 3, not text"):
        encode(["a", 3])
    with pytest.raises(DataError, match=r"row 0 .* is \['a'\], not text"):
        fit_text([["a"]])
    with pytest.raises(DataError, match="none holds a word"):
        fit_text(["", "!"])
    with pytest.raises(ValueError, match="at least 1"):
        fit_text(["a"], dim=0)
