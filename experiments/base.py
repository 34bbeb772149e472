"""Every legal field of a configuration, with its default and what it means.

A file in this folder starts from `get_config`, sets what its data set needs, and returns it; flags
such as ``--config.model.alpha=1.5`` override single fields. `resolve` fills what follows from
others.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

MODELS = ("semco",)

# The maps that the papers name, by alpha.
ALPHA = {"softmax": 1.0, "entmax15": 1.5, "sparsemax": 2.0}

Tuned = Mapping[str, Mapping[str, tuple[float, float]]]


class ConfigError(ValueError):
    """A configuration that cannot run; the message is one line that names the field."""


def get_config(model: str, *, dataset: str, about: str, tuned: Tuned) -> config_dict.ConfigDict:
    """The defaults.

    Args:
        model: what follows the colon in ``--config=FILE.py:MODEL``.
        dataset: its name, also of its folder and ``.inter`` file.
        about: the header of the config file, shown when its data are absent.
        tuned: gradient -> name of the map -> (tau, l2), used where a run sets neither.

    Raises:
        ConfigError: for an unknown model, listing the known ones.
    """
    if model not in MODELS:
        raise ConfigError(f"model {model!r} is unknown; choose one of: {', '.join(MODELS)}")
    c = config_dict.ConfigDict()
    c.about = about
    c.seeds = (0, 1, 2, 3, 4)  # one training run each; results are their mean and deviation

    c.data = config_dict.ConfigDict()
    c.data.name = dataset
    c.data.root = config_dict.placeholder(str)  # unset: $JAXCOLD_DATA/NAME, then the user's cache
    c.data.reader = config_dict.placeholder(str)  # mmrec | authors; unset: whichever is there
    c.data.content = "files"  # files | raw (citeulike-a: computed from the published files)
    c.data.modes = config_dict.placeholder(tuple)  # content modes in order; unset: all, by name
    c.data.split_file = config_dict.placeholder(str)  # .npz of a split; unset: one from split_seed
    c.data.split_seed = 42
    c.data.duplicates = "error"  # error | drop: repeated pairs of a user and an item
    c.data.allow_unused = False  # accept users and items without interactions
    c.data.missing_modes = False  # rows of zeros or NaN mean that an item lacks the mode
    c.data.mmap = False  # leave feature files on disk; with encode="active" also while training
    c.data.published = ""  # where the files can be had

    c.model = config_dict.ConfigDict()
    c.model.name = model
    c.model.alpha = 2.0  # 1 softmax, 1.5 entmax15, 2 sparsemax, or anything between
    c.model.tau = config_dict.placeholder(float)  # temperature; unset: tuned for alpha
    c.model.l2 = config_dict.placeholder(float)  # coupled weight decay; unset: tuned for alpha
    c.model.gradient = "autodiff"  # autodiff (the authors') | fenchel_young (exact), for alpha > 1
    c.model.hidden = 192
    c.model.out = 64
    c.model.attention_layers = 1  # 1 as the authors' code, 2 as the paper's text
    c.model.encode = "all"  # all | active: which warm items a step encodes
    c.model.batch_norm = "catalogue"  # catalogue | batch: statistics used after training
    c.model.user_vector = "mean"  # mean | leave_one_out
    c.model.tuned = config_dict.ConfigDict(
        {
            gradient: {name: {"tau": tau, "l2": l2} for name, (tau, l2) in values.items()}
            for gradient, values in tuned.items()
        }
    )

    c.train = config_dict.ConfigDict()
    c.train.epochs = 15
    c.train.batch_size = 2048
    c.train.learning_rate = 1e-3  # decays to 0 by a cosine over all steps
    c.train.eval_every = 1  # epochs between evaluations on cold validation

    c.eval = config_dict.ConfigDict()
    c.eval.cutoffs = (20,)
    c.eval.figure = True  # draw WORKDIR/summary.png
    return c.lock()


def resolve(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """A copy in which tau and l2 are numbers, checked before anything is loaded.

    Raises:
        ConfigError: naming the field and what it may be.
    """
    c = config.copy_and_resolve_references()
    _check(c)
    names = {alpha: name for name, alpha in ALPHA.items()}
    # Softmax has one gradient: its exact one, which is also the authors'.
    gradient = c.model.gradient if c.model.alpha > 1 else "autodiff"
    values = c.model.tuned.get(gradient, {}).get(names.get(c.model.alpha, ""), {})
    for field in ("tau", "l2"):
        if c.model[field] is None:
            if field not in values:
                known = ", ".join(sorted(c.model.tuned.get(gradient, {}))) or "none"
                raise ConfigError(
                    f"config.model.{field} is unset and {c.data.name} has no tuned value for "
                    f"alpha={c.model.alpha:g} with gradient={gradient!r} (tuned: {known}); "
                    f"pass --config.model.{field}=NUMBER"
                )
            c.model[field] = values[field]
    return c


def _check(c: config_dict.ConfigDict) -> None:
    def need(good: bool, field: str, what: str, value: Any) -> None:
        if not good:
            raise ConfigError(f"config.{field}: {what}, not {value!r}")

    whole = all(type(seed) is int and seed >= 0 for seed in c.seeds)
    need(whole and len(c.seeds) > 0, "seeds", "one or more whole numbers from 0", c.seeds)
    need(len(set(c.seeds)) == len(c.seeds), "seeds", "each seed once", c.seeds)
    cutoffs = c.eval.cutoffs
    good = len(cutoffs) > 0 and all(type(k) is int and k > 0 for k in cutoffs)
    need(good, "eval.cutoffs", "one or more whole numbers from 1", cutoffs)
    for field in ("epochs", "batch_size", "eval_every"):
        need(c.train[field] >= 1, f"train.{field}", "at least 1", c.train[field])
    need(c.train.learning_rate > 0, "train.learning_rate", "above 0", c.train.learning_rate)
    need(c.model.l2 is None or c.model.l2 >= 0, "model.l2", "at least 0", c.model.l2)


def names(config: config_dict.ConfigDict, prefix: str = "config") -> list[str]:
    """The fields that flags may set: ["config.data.content", ...]."""
    found: list[str] = []
    for key, value in config.items():
        name = f"{prefix}.{key}"
        if isinstance(value, config_dict.ConfigDict):
            found += names(value, name)
        else:
            found.append(name)
    return sorted(found)
