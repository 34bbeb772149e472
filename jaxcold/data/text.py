"""Titles and descriptions as vectors: TF-IDF of words and pairs of words, reduced by an SVD.

`fit_text` learns the terms, their weights and the directions from the texts of a catalogue, and
`TextEncoder` encodes any text with them. A term is a word or two words in a row; a word is a run of
letters, digits and underscores, case aside. Scripts that write no spaces have no such words: encode
their texts by a language model (``python -m experiments.encode_text``).

The counting and the randomised SVD are scikit-learn's, which the package depends on anyway. What is
learnt is plain arrays, so it is saved without pickle.

Source: latent semantic analysis, Deerwester et al., 1990.
"""

import dataclasses
import functools
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxcold.types import DataError

DIM = 128  # numbers of a vector
MAX_TERMS = 20_000
_SMALLEST = 1e-4  # singular value, relative to the largest, of a direction that is kept


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """What `fit_text` learnt: texts in, f32 vectors out, the same bits alone as in any company."""

    terms: Sequence[str]  # [V], distinct
    idf: np.ndarray  # f32[V]: weights of the terms
    components: np.ndarray  # f32[V, d]: directions of the SVD

    def __call__(self, texts: Iterable[Any]) -> np.ndarray:
        """f32[n, d]: vectors of texts, of norm 1 at most; zero for a text without a known term.

        Args:
            texts: strings; None and NaN are texts without a word.

        Raises:
            DataError: naming the first value that is something else.
        """
        return self._vectorizer.transform(to_texts(texts)) @ self.components

    @functools.cached_property
    def _vectorizer(self) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        numbers = {term: number for number, term in enumerate(self.terms)}
        vectorizer = TfidfVectorizer(**_options(), vocabulary=numbers)
        vectorizer.idf_ = self.idf
        return vectorizer


def fit_text(
    texts: Iterable[Any], *, dim: int = DIM, max_terms: int = MAX_TERMS, seed: int = 0
) -> TextEncoder:
    """Learns an encoder from the texts of a catalogue.

    Args:
        texts: one per item, see `TextEncoder`.
        dim: numbers of a vector, at most; directions without variance are left out.
        max_terms: terms that are kept at most: those in the most texts.
        seed: of the SVD. Equal seeds and texts give equal encoders on one machine.

    Raises:
        DataError: naming the first value that is no text, or if no text holds a word.

    Example:
        >>> encode = fit_text(["red shoe", "red hat", "blue hat"])
        >>> vectors = encode(["a red hat", "unheard of"])
        >>> vectors.shape, vectors[1].any()
        ((2, 3), np.False_)
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import CountVectorizer

    if dim < 1 or max_terms < 1:
        raise ValueError(f"dim and max_terms are at least 1, not {dim} and {max_terms}")
    texts = to_texts(texts)
    counter = CountVectorizer(**_options())
    try:
        counts = counter.fit_transform(texts)
    except ValueError:  # scikit-learn's "empty vocabulary"
        raise DataError("texts: none holds a word; give titles or descriptions") from None
    items = np.bincount(counts.indices, minlength=counts.shape[1])
    kept = np.sort(np.argsort(-items, kind="stable")[:max_terms])
    terms = counter.get_feature_names_out()[kept].tolist()
    # As scikit-learn has it: as if one more text held every term, so none is divided by zero.
    idf = np.log((1 + len(texts)) / (1 + items[kept])) + 1
    encoder = TextEncoder(terms, idf.astype(np.float32), np.zeros((len(terms), 0), np.float32))
    weighted = encoder._vectorizer.transform(texts)
    svd = TruncatedSVD(min(dim, *weighted.shape), random_state=seed).fit(weighted)
    values = svd.singular_values_
    components = svd.components_[values > _SMALLEST * values.max()].T
    return dataclasses.replace(encoder, components=np.ascontiguousarray(components, np.float32))


def to_texts(values: Iterable[Any]) -> list[str]:
    """Strings as they are, missing values as "".

    Raises:
        DataError: naming the first value that is neither.
    """
    texts = []
    for row, value in enumerate(values):
        if isinstance(value, str):
            texts.append(value)
        elif pd.api.types.is_scalar(value) and pd.isna(value):
            texts.append("")
        else:
            raise DataError(
                f"texts: row {row} (counted from 0) is {value!r:.40}, not text; make it a string"
            )
    return texts


def _options() -> dict[str, Any]:
    return {
        "preprocessor": _normalized,
        "token_pattern": r"\w+",
        "ngram_range": (1, 2),
        "dtype": np.float32,
    }


def _normalized(text: str) -> str:
    """One spelling of letters that Unicode can write in several ways, without case."""
    return unicodedata.normalize("NFKC", text).casefold()
