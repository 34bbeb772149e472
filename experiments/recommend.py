"""Recommends with a saved model, and places new items in it.

python -m experiments.recommend --model=models/shop --user=ann --k=5
python -m experiments.recommend --model=models/shop --history=12,31 --candidates=cold --format=json
python -m experiments.recommend --model=models/shop --new_items=new.csv

--model is a folder that the `save` of any recommender wrote, experiments.fit among them, or the
WORKDIR/models/seed_N of a run.

- --user: the best items for a user of the training data, or several: --user=ann,bob.
- --history: the best items for somebody who took these items, the latest last.
- --new_items: a CSV, TSV or Parquet file of items that the model does not know, with the columns
  that it was fitted on. Alone: the best users for each of them. With --user or --history they
  compete with the others; nothing is saved.
- --candidates: what may be recommended: all, warm or cold items.
- --format: table, json or csv, on standard output.

Exit codes: 0 done; 2 an error, said in one line.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import pandas as pd
from absl import app, flags

from experiments import main, tables
from jaxcold.types import DataError

FORMATS = ("table", "json", "csv")
EXAMPLE = "python -m experiments.recommend --model=DIR --user=USER"

if __name__ == "__main__":
    _MODEL = flags.DEFINE_string("model", None, "Folder of a saved model.")
    _USER = flags.DEFINE_list("user", [], "Users of the training data.")
    _HISTORY = flags.DEFINE_list("history", [], "Items that somebody took, the latest last.")
    _NEW_ITEMS = flags.DEFINE_string("new_items", None, "Table of items that are new.")
    _ITEM = flags.DEFINE_string(
        "item", None, "Column of ids in --new_items; unset, as in training."
    )
    _K = flags.DEFINE_integer("k", 10, "Length of a list.", lower_bound=1)
    _CANDIDATES = flags.DEFINE_enum("candidates", "all", ["all", "warm", "cold"], "What competes.")
    _FORMAT = flags.DEFINE_enum("format", "table", FORMATS, "Of the output.")


def recommend(
    folder: pathlib.Path,
    *,
    users: Sequence[str] = (),
    history: Sequence[str] = (),
    new_items: pathlib.Path | None = None,
    item: str | None = None,
    k: int = 10,
    candidates: str = "all",
) -> pd.DataFrame:
    """Lists of a saved model; see the head of this file.

    Args:
        folder: of the model.
        users: ids, as text.
        history: ids of items, as text.
        new_items: table; None: no item is new.
        item: column of ids there; None: as in the log of training.
        k: length of a list.
        candidates: "all", "warm" or "cold".

    Returns:
        Columns user, item, rank and score; of new items alone item, user, rank and score.

    Raises:
        DataError, ValueError: one line: what is wrong, and the remedy.
    """
    from jaxcold.estimators.base import Recommender

    if bool(users) == bool(history) and not (new_items and not users):
        raise DataError("--user, --history or --new_items: give one of them")
    model = load(folder)
    if not isinstance(model, Recommender):
        if history or new_items or candidates != "all":
            raise DataError(
                f"{folder}: holds vectors of users and items alone; it knows --user, and neither "
                "--history, --new_items nor --candidates"
            )
        return model.recommend(to_known(model.users, users, "--user"), k)
    added: list[Any] = []
    if new_items is not None:
        frame = read_new_items(model, new_items, item)
        added = frame.index.tolist()
        model = model.add_items(added, to_content(model, frame, new_items))
    if users:
        asked: Any = to_known(model.users, users, "--user")
    elif history:
        asked = {"history": to_known(model.items, history, "--history")}
    else:
        return model.recommend_users(added, k)
    return model.recommend(asked, k, candidates=candidates)


def load(folder: pathlib.Path) -> Any:
    """The model of a folder, or the only one of a workdir.

    Raises:
        DataError: if there is none, or several.
    """
    import jaxcold

    seeds = sorted((folder / "models").glob("seed_*"))
    if seeds and not (folder / "model.json").exists():
        if len(seeds) > 1:
            raise DataError(f"{folder}: holds {len(seeds)} models; name one, such as {seeds[0]}")
        folder = seeds[0]
    return jaxcold.load(folder)


def to_known(known: pd.Index, values: Sequence[str], flag: str) -> list[Any]:
    """Ids from text, of the type that the known ones have; whether they are known is not checked.

    Raises:
        DataError: if the known ones are whole numbers and one of these is not.
    """
    if not pd.api.types.is_integer_dtype(known.dtype):
        return list(values)
    try:
        return [int(value) for value in values]
    except ValueError as error:
        raise DataError(
            f"{flag}: {str(error).rpartition(': ')[2]} is no id; those of this model are whole "
            f"numbers, such as {known[0]}"
        ) from None


def read_new_items(model: Any, path: pathlib.Path, item: str | None) -> pd.DataFrame:
    """A table of items, indexed by ids of the type that those of the model have."""
    item = item or model.options.get("log", {}).get("item", "item")
    frame = tables.read(path, (item,))
    ids = frame[item].tolist()
    return frame.drop(columns=item).set_axis(pd.Index(to_known(model.items, ids, str(path))))


def to_content(model: Any, frame: pd.DataFrame, path: pathlib.Path) -> Any:
    """A table as the content that a model takes.

    Raises:
        DataError: if the model has several modes of features, which one table cannot tell apart.
    """
    if not model.widths:
        raise DataError(f"{path}: the model knows no content, so that it cannot place new items")
    if "" in model.modes.raw:
        return frame
    if len(model.widths) > 1 or model.modes.raw:
        raise DataError(
            f"{path}: the model takes the modes {', '.join(model.widths)}, which one table cannot "
            "hold; add the items in Python, by add_items"
        )
    ((mode, names),) = model.columns.items()
    if names is not None:
        absent = [name for name in names if str(name) not in map(str, frame.columns)]
        if absent:
            raise DataError(f"{path}: has no column {absent[0]}, which the model was trained on")
        frame = frame.rename(columns=str)[[str(name) for name in names]].set_axis(names, axis=1)
        return {mode: frame}
    numeric = frame.select_dtypes("number")
    if numeric.shape[1] != model.widths[mode]:
        raise DataError(
            f"{path}: has {numeric.shape[1]} columns of numbers beside the ids; the model takes "
            f"{model.widths[mode]}"
        )
    return {mode: numeric}


def to_text(lists: pd.DataFrame, form: str) -> str:
    """Lists as one of FORMATS."""
    if form == "json":
        return lists.to_json(orient="records", force_ascii=False)
    if form == "csv":
        return lists.to_csv(index=False).rstrip("\n")
    return lists.to_string(index=False)


def _command(argv: Sequence[str]) -> int:
    if len(argv) > 1:
        return main.stop(f"argument {argv[1]!r} is not understood; flags begin with --")
    if not _MODEL.value:
        return main.stop(f"--model is required; for example {EXAMPLE}")
    folder = pathlib.Path(_MODEL.value)

    def job() -> None:
        with main.warnings_in_one_line():
            lists = recommend(
                folder,
                users=_USER.value,
                history=_HISTORY.value,
                new_items=pathlib.Path(_NEW_ITEMS.value) if _NEW_ITEMS.value else None,
                item=_ITEM.value,
                k=_K.value,
                candidates=_CANDIDATES.value,
            )
        print(to_text(lists, _FORMAT.value))

    return main.answer(job, ValueError)


if __name__ == "__main__":
    app.run(_command, flags_parser=main.parse_flags)
