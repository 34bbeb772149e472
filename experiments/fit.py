"""Fits a recommender on a table of clicks and one of items, and saves it.

python -m experiments.fit clicks.csv items.csv --user=customer --item=sku --out=models/shop

CLICKS has a row per click, ITEMS a row per item; both are CSV, TSV or Parquet. Columns of text,
categories ("a|b" holds two) and numbers are used as they are, and a line says what each became;
--columns=title:text,year:number,url:ignore decides otherwise. New items are given by the same
columns, for example to experiments.recommend.

- --method is semco (the default), linear (in seconds) or sasrec, which needs --time.
- --rating=COLUMN --min_rating=4 keeps the clicks that are rated at least 4.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from absl import app, flags

from experiments import main, tables
from jaxcold.types import DataError

METHODS = {"semco": "SEMCo", "linear": "Linear", "sasrec": "SASRec"}
EXAMPLE = "python -m experiments.fit clicks.csv items.csv --user=COLUMN --item=COLUMN --out=DIR"

if __name__ == "__main__":
    _METHOD = flags.DEFINE_enum("method", "semco", [*METHODS], "What is fitted.")
    _USER = flags.DEFINE_string("user", "user", "Column of CLICKS with the users.")
    _ITEM = flags.DEFINE_string("item", "item", "Column of both tables with the items.")
    _TIME = flags.DEFINE_string("time", None, "Column of CLICKS with the times, of sasrec.")
    _RATING = flags.DEFINE_string("rating", "rating", "Column of CLICKS that --min_rating reads.")
    _MIN_RATING = flags.DEFINE_float(
        "min_rating", None, "Keep clicks that are rated at least this."
    )
    _COLUMNS = flags.DEFINE_list("columns", [], "COLUMN:KIND,...: text, category, number, ignore.")
    _EPOCHS = flags.DEFINE_integer("epochs", None, "Of semco and sasrec.", lower_bound=1)
    _SEED = flags.DEFINE_integer("seed", 0, "Equal seeds give equal models.", lower_bound=0)
    _OUT = flags.DEFINE_string("out", None, "Folder of the model.")


def fit(
    clicks_path: pathlib.Path,
    items_path: pathlib.Path,
    out: pathlib.Path,
    *,
    method: str = "semco",
    columns: Mapping[str, str] | None = None,
    user: str = "user",
    item: str = "item",
    rating: str = "rating",
    min_rating: float | None = None,
    **options: Any,
) -> str:
    """Fits and saves; see the head of this file.

    Args:
        clicks_path: table with the columns `user`, `item` and those that options name.
        items_path: table with the column `item` and content.
        out: folder of the model; an older model is replaced.
        method: of METHODS.
        columns: what columns of the items are, where that is not left to their values.
        user: column.
        item: column.
        rating: column that `min_rating` reads.
        min_rating: keeps clicks rated at least this; None: all.
        **options: of the `fit` of the method.

    Returns:
        A line that says what was saved.

    Raises:
        DataError, ValueError: one line: the file, the row or column, and the remedy.
    """
    import jaxcold

    needed = [name for name in (options.get("time"),) if name]
    clicks = tables.read(clicks_path, (user, item), needed + [rating] * (min_rating is not None))
    items = tables.read(items_path, (item,))
    # Together: "007" in one of them makes the ids of both text.
    ids = tables.to_ids(pd.concat([clicks[item], items[item]]))
    clicks[item], items[item] = ids.iloc[: len(clicks)], ids.iloc[len(clicks) :]
    clicks[user] = tables.to_ids(clicks[user])
    if options.get("time") and not pd.api.types.is_numeric_dtype(clicks[options["time"]]):
        clicks[options["time"]] = pd.to_datetime(clicks[options["time"]], format="mixed", utc=True)
    model = getattr(jaxcold, METHODS[method]).fit(
        clicks,
        items,
        columns=columns or None,
        user=user,
        item=item,
        rating=rating,
        min_rating=min_rating,
        **options,
    )
    model.save(out)
    return f"{out}: {METHODS[method]}, {len(model.users):,} users, {len(model.items):,} items"


def parse_columns(entries: Sequence[str]) -> dict[str, str]:
    """ "title:text" entries as a dictionary.

    Raises:
        DataError: for an entry without a colon.
    """
    columns = {}
    for entry in entries:
        name, colon, kind = entry.rpartition(":")
        if not colon:
            raise DataError(f"--columns: {entry!r} has no kind; write it as {entry}:text")
        columns[name] = kind
    return columns


def _command(argv: Sequence[str]) -> int:
    if len(argv) != 3 or not _OUT.value:
        return main.stop(f"a table of clicks, one of items, and --out are required: {EXAMPLE}")
    clicks, items, out = (pathlib.Path(value) for value in (*argv[1:], _OUT.value))
    options: dict[str, Any] = {"seed": _SEED.value, "progress": True}
    if _METHOD.value == "sasrec":
        options["time"] = _TIME.value or "time"
    if _EPOCHS.value is not None and _METHOD.value != "linear":
        options["epochs"] = _EPOCHS.value

    def job() -> None:
        with main.warnings_in_one_line():
            line = fit(
                clicks,
                items,
                out,
                method=_METHOD.value,
                columns=parse_columns(_COLUMNS.value),
                user=_USER.value,
                item=_ITEM.value,
                rating=_RATING.value,
                min_rating=_MIN_RATING.value,
                **options,
            )
        print(line)

    return main.answer(job, ValueError, FloatingPointError)


if __name__ == "__main__":
    app.run(_command, flags_parser=main.parse_flags)
