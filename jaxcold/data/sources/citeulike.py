"""citeulike-a from its published files: interactions, and two content modes computed here.

Articles that users of CiteULike saved in their libraries, the articles' tags and citations (Wang,
Chen and Li, Collaborative Topic Regression with Social Regularization for Tag Recommendation,
IJCAI 2013); repository js05212/citeulike-a. Each row of a file is a count and as many ids from 0:

- ``users.dat``: row u, the items of user u.
- ``item-tag.dat``: row i, the tags of item i.
- ``citations.dat``: row i, the items that item i cites or is cited by.
- ``tags.dat``: row t, the text of tag t.

Items without tags (3,461 of 16,980) or outside the main citation network (5,579) have a row of
zeros in that mode, and 2,161 have one in both. Rows of zeros are valid input; ``missing_modes``
turns them into absent modes, and then an item without any content is an error.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from scipy import sparse

from jaxcold.data.pairs.dataset import ContentFeatures, Interactions
from jaxcold.data.readers import check_present
from jaxcold.data.sources.download import fetch
from jaxcold.files import write_atomic
from jaxcold.types import Csr, DataError

URL = "https://raw.githubusercontent.com/js05212/citeulike-a/master"
FILES = {
    "users.dat": "53211d82c14ff261e595634d285ed9fbf8049cf81dcb751d924d695b9612a02c",
    "item-tag.dat": "0f7b432796a5038ed2631c02b99d70e636123673afc11bf9e051de5b49467890",
    "tags.dat": "c02b3e5ee1a57f88f3a598b2040018bb198f54cd0c11116fa7a0db905b6f60e3",
    "citations.dat": "78458ba6b6f013552c43f47dbec1c2d19073820155c40567744cd8a038044364",
}
TEXT_WIDTH = 300
GRAPH_WIDTH = 128


def read(
    root: Path,
    cache: Path,
    modes: Sequence[str] | None = None,
    missing_modes: bool = False,
    url: str = URL,
) -> tuple[Interactions, ContentFeatures]:
    """Reads the raw files, downloading those that are missing, and computes the content.

    Args:
        root: folder that holds the files itself or in ``raw/``; downloads go to ``root/raw``.
        cache: folder where computed content is kept, under the hash of what it was made from.
        modes: of "text" and "graph"; None takes both.
        missing_modes: whether rows of zeros mean that an item lacks the mode.
        url: where the four files are published.

    Raises:
        DataError: if a file cannot be had or is malformed, or a mode is unknown.
    """
    modes = ("text", "graph") if modes is None else tuple(modes)
    if not modes or len(set(modes)) != len(modes) or not set(modes) <= set(_RECIPES):
        raise DataError(f"data.modes={list(modes)}: name each mode once, of {', '.join(_RECIPES)}")
    folder = _find_folder(root)
    for name, sha256 in FILES.items():
        if not (folder / name).is_file():
            fetch(f"{url}/{name}", folder / name, sha256)

    tags = _count_lines(folder / "tags.dat")
    item_tags = read_rows(folder / "item-tag.dat", tags, "tags.dat")
    citations = read_rows(folder / "citations.dat", item_tags.rows, "item-tag.dat")
    users = read_rows(folder / "users.dat", item_tags.rows, "item-tag.dat")
    if citations.rows != item_tags.rows:
        raise DataError(
            f"{folder / 'citations.dat'}: has {citations.rows} rows where item-tag.dat has "
            f"{item_tags.rows}; delete both files to download them again"
        )
    for kind, counts in (
        ("user", users.counts),
        ("item", np.bincount(users.indices, minlength=item_tags.rows)),
    ):
        if not counts.all():
            raise DataError(
                f"{folder / 'users.dat'}: {kind} {np.argmin(counts)} has no interaction; "
                "delete the file to download it again"
            )
    interactions = Interactions(
        users.row_of_entry.astype(np.int32),
        users.indices,
        num_users=users.rows,
        num_items=item_tags.rows,
    )
    source = {"text": _as_matrix(item_tags, tags), "graph": _as_matrix(citations, citations.rows)}
    tables = {mode: _cached(cache, mode, source[mode]) for mode in modes}
    present = {
        mode: np.asarray(table.any(axis=1) | (not missing_modes)) for mode, table in tables.items()
    }
    check_present(str(folder), present)
    return interactions, ContentFeatures(tables, present)


def find_files(root: Path) -> list[Path]:
    """The published files that :func:`read` takes from a folder."""
    return [_find_folder(root) / name for name in FILES]


def _find_folder(root: Path) -> Path:
    return root if (root / "users.dat").is_file() else root / "raw"


def read_rows(path: Path, end: int, of: str) -> Csr:
    """Reads rows of a count and as many distinct ids below ``end``.

    Args:
        path: the file.
        end: number of things that the ids name.
        of: file in which those things are the rows.

    Raises:
        DataError: at the first line that is anything else.
    """
    again = "delete the file to download it again"
    counts: list[int] = []
    ids: list[int] = []
    try:
        with open(path, encoding="ascii") as file:
            for number, line in enumerate(file, start=1):
                count, *row = map(int, line.split() or ["-1"])
                counts.append(count)
                ids += row
                wrong = [value for value in row if not 0 <= value < end]
                if count != len(row):
                    problem = f"{len(row)} ids where {count} are announced"
                elif wrong:
                    problem = f"id {wrong[0]} is outside the {end} rows of {of}"
                elif len(set(row)) != len(row):
                    problem = f"id {next(i for i in row if row.count(i) > 1)} is there twice"
                else:
                    continue
                if not line.split():
                    problem = "the line is blank"
                raise DataError(f"{path}: line {number}: {problem}; {again}")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not plain text; {again}") from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: line {number}: holds something but integers; {again}") from None
    if not counts:
        raise DataError(f"{path}: is empty; {again}")
    return Csr(np.concatenate([[0], np.cumsum(counts)]), np.array(ids, np.int32))


def text_features(item_tags: sparse.csr_matrix) -> np.ndarray:
    """f32[I, 300]: TF-IDF of the tags, reduced by truncated SVD. An item without tags is zero."""
    from sklearn.feature_extraction.text import TfidfTransformer

    return _reduced(TfidfTransformer().fit_transform(item_tags), TEXT_WIDTH)


def graph_features(citations: sparse.csr_matrix) -> np.ndarray:
    """f32[I, 128]: the citation graph, symmetrically normalised, reduced by truncated SVD.

    Self-loops are included. Only the largest connected component is reduced: the normalised graph
    has the leading eigenvalue 1 once per component, and the 5,405 components of citeulike-a would
    fill every dimension with their mere names. Items outside it are zero.
    """
    graph = ((citations + citations.T + sparse.identity(citations.shape[0])) > 0).astype(float)
    component = sparse.csgraph.connected_components(graph, directed=False)[1]
    inside = np.flatnonzero(component == np.bincount(component).argmax())
    graph = graph.tocsr()[inside][:, inside]
    scale = sparse.diags(1 / np.sqrt(np.asarray(graph.sum(axis=1)).ravel()))
    table = np.zeros((citations.shape[0], GRAPH_WIDTH), np.float32)
    table[inside] = _reduced(scale @ graph @ scale, GRAPH_WIDTH)
    return table


_RECIPES: dict[str, Callable[[sparse.csr_matrix], np.ndarray]] = {
    "text": text_features,
    "graph": graph_features,
}


def _reduced(matrix: sparse.csr_matrix, width: int) -> np.ndarray:
    """f32[rows, width]: left singular vectors times singular values; zero beyond the rank."""
    from sklearn.decomposition import TruncatedSVD

    # float64 takes six times as long and ranks no better.
    matrix = matrix.astype(np.float32)
    kept = min(width, min(matrix.shape))
    table = np.zeros((matrix.shape[0], width), np.float32)
    table[:, :kept] = TruncatedSVD(kept, random_state=0).fit_transform(matrix)
    return table


def _as_matrix(rows: Csr, columns: int) -> sparse.csr_matrix:
    ones = np.ones(len(rows.indices), np.float32)
    return sparse.csr_matrix((ones, rows.indices, rows.indptr), (rows.rows, columns))


def _count_lines(path: Path) -> int:
    with open(path, "rb") as file:
        lines = sum(1 for _ in file)
    if not lines:
        raise DataError(f"{path}: is empty; delete the file to download it again")
    return lines


def _cached(cache: Path, mode: str, source: sparse.csr_matrix) -> np.ndarray:
    """The mode's table, from the cache if it was computed before from the same numbers.

    A cache that cannot be written costs time on the next run and nothing else.
    """
    key = hashlib.sha256(f"1 {mode} {source.shape}".encode())  # 1: version of the recipes
    key.update(source.indptr.tobytes())
    key.update(source.indices.tobytes())
    path = cache / f"{mode}-{key.hexdigest()[:16]}.npy"
    with suppress(OSError, ValueError, EOFError):
        table = np.load(path, allow_pickle=False)
        if isinstance(table, np.ndarray) and len(table) == source.shape[0]:
            return table
    table = _RECIPES[mode](source)
    buffer = io.BytesIO()
    np.save(buffer, table, allow_pickle=False)
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        write_atomic(path, buffer.getbuffer())
    return table
