"""The fields that every run has, with their defaults and what they mean.

A file in this folder starts from `get_config`, says where its data are and how they are read, and
returns it; flags such as ``--config.model.alpha=1.5`` override single fields. The fields of a
method are in `experiments.models`. `resolve` fills what a run leaves unset.
"""

import difflib
import json
import math
import signal
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from experiments import method as methods
from experiments.method import ConfigError
from jaxcold.data.sequences.load import protocol_defaults

# Fields that do not change a run's numbers: where they differ, the same command still goes on.
UNRELATED = ("about", "data.published", "data.root", "eval.figure", "eval.baselines", "checkpoint.")

# Names that fields had before -> what they are called now.
RENAMED = {
    "data.val_share": "data.val_fraction",
    "data.cold_share": "data.cold_fraction",
    "data.repeats": "data.consecutive_duplicates",
}


class StoppedError(BaseException):
    """The process was asked to end; the same command goes on from where it stopped.

    As with KeyboardInterrupt, nothing that handles errors handles it.

    Args:
        message: one line.
        signal_number: what asked for it, SIGTERM or SIGINT (Ctrl-C).
    """

    def __init__(self, message: str, signal_number: int = signal.SIGTERM):
        super().__init__(message)
        self.signal_number = signal_number


def get_config(
    model: str, *, dataset: str, about: str, kinds: tuple[str, ...] = ("pairs",)
) -> config_dict.ConfigDict:
    """The defaults of a data set and a method.

    Args:
        model: the method, which follows the colon in ``--config=FILE.py:MODEL``; a name in
            `experiments.models`, or the dotted path of a module elsewhere.
        dataset: its name, also of its folder.
        about: the header of the config file, shown when its data are absent.
        kinds: how the data set can be read, "pairs" or "sequences"; the first that the method
            takes decides.

    Raises:
        ConfigError: for an unknown method, or one for other data.
    """
    method = methods.find(model)
    kind = next((kind for kind in kinds if kind in method.tasks), None)
    if kind is None:
        raise ConfigError(
            f"model {model!r} is for {' and '.join(method.tasks)}; {dataset} has "
            f"{' and '.join(kinds)}"
        )
    c = config_dict.ConfigDict()
    c.about = about
    c.about_dataset = dataset  # of whose absence `about` tells
    c.seeds = method.seeds  # one training run each; results are their mean and deviation
    # auto | jit | pmap | shard_map: the step on one device (jit), or on all; auto: by their number,
    # those that a CPU simulates not counted.
    c.parallel = "auto"
    c.shard_items = False  # shard tables with a row per item over the devices

    c.data = _pairs_fields() if kind == "pairs" else _sequences_fields()
    c.data.kind = kind
    c.data.name = dataset
    c.data.root = config_dict.placeholder(str)  # unset: $JAXCOLD_DATA/NAME, then the user's cache
    c.data.split_file = config_dict.placeholder(str)  # .npz of a split; unset: one from split_seed
    c.data.split_seed = 42
    c.data.published = ""  # where the files can be had

    c.model = method.fields()
    c.model.name = model

    c.train = _train_fields()
    for field, value in method.defaults(dataset).items():
        methods.assign(c, field, value)

    c.checkpoint = _checkpoint_fields()
    c.eval = config_dict.ConfigDict()
    c.eval.cutoffs = (20,) if kind == "pairs" else (10,)
    # expected | id: metrics are expected values over random orders of candidates with equal scores,
    # such as items of equal content; or these are ranked by ascending item id.
    c.eval.ties = "expected"
    c.eval.figure = True  # draw WORKDIR/summary.png
    c.eval.baselines = True  # evaluate content-KNN and closed forms too
    return c.lock()


def _pairs_fields() -> config_dict.ConfigDict:
    c = config_dict.ConfigDict()
    c.reader = config_dict.placeholder(str)  # mmrec | authors; unset: whichever is there
    c.content = "files"  # files | raw (citeulike-a: computed from the published files)
    c.modes = config_dict.placeholder(tuple)  # content modes in order; unset: all, by name
    c.duplicates = "error"  # error | drop: repeated pairs of a user and an item
    c.allow_unused = False  # accept users and items without interactions
    c.missing_modes = False  # rows of zeros or NaN mean that an item lacks the mode
    c.mmap = False  # leave feature files on disk; with encode="active" also while training
    return c


def _sequences_fields() -> config_dict.ConfigDict:
    c = config_dict.ConfigDict()
    c.layout = config_dict.placeholder(str)  # inter | letitgo | beauty | zvuk | amazon_m2
    # temporal | random_cold | leave_one_out; the last two need an order and no clock
    c.protocol = "temporal"
    c.quantile = 0.9  # fraction of the interactions before the boundary of "temporal"
    # Of those, or of all under leave_one_out; unset: 3 of those, 1 (all are kept) of all.
    c.n_core = config_dict.placeholder(int)
    c.val_fraction = 0.1  # users that validate; with random_cold as many are for test
    # Items that random_cold or leave_one_out makes cold; unset: 0.15, or 0 under leave_one_out.
    c.cold_fraction = config_dict.placeholder(float)
    c.mode = config_dict.placeholder(str)  # MODE_feat.npy; unset: the only one; "none"
    c.min_rating = config_dict.placeholder(float)  # keep ratings above it; unset: all
    # drop | keep an item that follows itself; unset: drop, or keep under leave_one_out.
    c.consecutive_duplicates = config_dict.placeholder(str)
    c.max_users = config_dict.placeholder(int)  # drawn at random; unset: all
    # WORKDIR of a finished SEMCo run: its embeddings of the items take the place of their content.
    c.item_content = config_dict.placeholder(str)
    return c


def _train_fields() -> config_dict.ConfigDict:
    c = config_dict.ConfigDict()
    c.epochs = 15
    c.batch_size = 2048
    c.learning_rate = 1e-3
    c.eval_every = 1  # epochs between evaluations on validation
    # Evaluations without a gain after which training ends, and the best state is taken; unset: the
    # last one.
    c.patience = config_dict.placeholder(int)
    return c


def _checkpoint_fields() -> config_dict.ConfigDict:
    c = config_dict.ConfigDict()
    # A checkpoint is parameters, what Adam keeps of them (twice as much), and moving averages.
    c.every_steps = config_dict.placeholder(int)  # unset: once an epoch
    # The newest that are kept while a seed trains; where the last is damaged, the older one serves.
    c.keep = 2
    # Leave the checkpoint of the best epoch on validation in WORKDIR/best_checkpoints/seed_N, also
    # without patience. Costs one more on disk, a write after every epoch that is better than those
    # before, and a validation after the last.
    c.keep_best = False
    return c


def resolve(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """A copy in which what a run left unset has its tuned value, checked before anything is loaded.

    Raises:
        ConfigError: naming the field and what it may be.
    """
    c = config.copy_and_resolve_references()
    method = methods.find(c.model.name)
    if {*c.model.keys()} != {*method.fields().keys(), "name"} or c.data.kind not in method.tasks:
        raise ConfigError(
            "config.model.name: a method is chosen after the colon: "
            f"--config=FILE.py:{c.model.name}"
        )
    if c.data.kind == "sequences":
        for field, value in protocol_defaults(c.data.protocol).items():
            if c.data[field] is None:
                c.data[field] = value
    for field, value in method.tuned(c).items():
        if methods.get(c, field) is None:
            methods.assign(c, field, value)
    missing = [field for field in method.required if methods.get(c, field) is None]
    if missing:
        flags = [methods.flag(field) for field in missing]
        known = {
            name: value
            for name, value in c.model.items()
            if name in ("alpha", "gradient") and value is not None
        }
        given = " with " + ", ".join(f"{k}={v!r}" for k, v in known.items()) if known else ""
        raise ConfigError(
            f"{', '.join(flags)}: unset, and {c.data.name} has no tuned value for "
            f"{c.model.name}{given}; pass {' '.join(f'--{flag}=NUMBER' for flag in flags)}"
        )
    _check(c)
    return c


def _check(c: config_dict.ConfigDict) -> None:
    def need(good: bool, field: str, what: str, value: Any) -> None:
        if not good:
            raise ConfigError(f"config.{field}: {what}, not {value!r}")

    for field, value in flat(c.to_dict()).items():
        is_nan = isinstance(value, float) and math.isnan(value)
        need(not is_nan, field, "a number", value)
    whole = all(type(seed) is int and seed >= 0 for seed in c.seeds)
    need(whole and len(c.seeds) > 0, "seeds", "one or more whole numbers from 0", c.seeds)
    need(len(set(c.seeds)) == len(c.seeds), "seeds", "each seed once", c.seeds)
    choices = ("auto", "jit", "pmap", "shard_map")
    need(c.parallel in choices, "parallel", f"one of {', '.join(choices)}", c.parallel)
    cutoffs = c.eval.cutoffs
    good = len(cutoffs) > 0 and all(type(k) is int and k > 0 for k in cutoffs)
    need(good, "eval.cutoffs", "one or more whole numbers from 1", cutoffs)
    need(c.eval.ties in ("expected", "id"), "eval.ties", "expected or id", c.eval.ties)
    for field in ("epochs", "batch_size", "eval_every"):
        need(c.train[field] >= 1, f"train.{field}", "at least 1", c.train[field])
    every = c.checkpoint.every_steps
    need(every is None or every >= 1, "checkpoint.every_steps", "at least 1", every)
    need(c.checkpoint.keep >= 1, "checkpoint.keep", "at least 1", c.checkpoint.keep)
    rate = c.train.learning_rate
    need(0 < rate < math.inf, "train.learning_rate", "a number above 0", rate)
    patience = c.train.patience
    need(patience is None or patience >= 1, "train.patience", "at least 1", patience)


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a resolved config that change its numbers, by field: {"model.alpha": 2.0}.

    Args:
        config: as JSON holds it.
    """
    return {
        field: value for field, value in flat(config).items() if not field.startswith(UNRELATED)
    }


def plain(config: config_dict.ConfigDict) -> dict[str, Any]:
    """A config as JSON holds it."""
    return json.loads(config.to_json())


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The fields of two identities that differ: ["model.alpha", ...]."""
    return sorted(f for f in ours.keys() | theirs.keys() if ours.get(f) != theirs.get(f))


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested config as one level: {"model.alpha": 2.0, ...}."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        name: value
        for key, branch in tree.items()
        for name, value in flat(branch, f"{prefix}.{key}" if prefix else key).items()
    }


def names(config: config_dict.ConfigDict) -> list[str]:
    """The fields that flags may set: ["config.data.content", ...]."""
    return sorted(f"config.{field}" for field in flat(config.to_dict()))


def unknown_field(name: str, config: config_dict.ConfigDict) -> str:
    """What to say of a flag ``--config.NAME`` that there is not."""
    if name in RENAMED:
        return f"config.{name} is now called config.{RENAMED[name]}"
    known = [field.removeprefix("config.") for field in names(config)]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    leaf = [field for field in known if field.rpartition(".")[2] == name.rpartition(".")[2]]
    best = (close or leaf)[:1]
    hint = f"; did you mean config.{best[0]}?" if best else ""
    return f"config.{name} is unknown{hint}"
