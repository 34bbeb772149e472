"""Every legal field of a configuration, with its default and what it means.

A file in this folder starts from `get_config`, sets what its data set needs, and returns it; flags
such as ``--config.model.alpha=1.5`` override single fields. `resolve` fills what follows from
others.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

MODELS = ("semco", "semco_offline", "semco_online")

# What follows the colon for a sequential data set, and its config.model.item_table.
SEQUENTIAL = {
    "sasrec": "random",
    "sasrec_content": "content",
    "sasrec_frozen": "frozen",
    "sasrec_delta": "delta",
    "content_knn": None,
}

# Fields of config.model that a data set's tables fill where a run leaves them unset.
TUNABLE = ("tau", "l2", "teacher_tau", "lam", "omega", "positives", "ema", "warmup_epochs")

# The maps that the papers name, by alpha.
ALPHA = {"softmax": 1.0, "entmax15": 1.5, "sparsemax": 2.0}

Tuned = Mapping[str, Mapping[str, tuple[float, float]]]
Distilled = Mapping[str, Mapping[str, float]]


class StoppedError(BaseException):
    """The process was asked to end; the same command goes on from where it stopped.

    As with KeyboardInterrupt, nothing that handles errors handles it.
    """


class ConfigError(ValueError):
    """A configuration that cannot run; the message is one line that names the field."""


def get_config(
    model: str,
    *,
    dataset: str,
    about: str,
    tuned: Tuned,
    offline: Distilled,
    online: Distilled,
    distilled_gradient: str = "autodiff",
) -> config_dict.ConfigDict:
    """The defaults.

    Args:
        model: what follows the colon in ``--config=FILE.py:MODEL``.
        dataset: its name, also of its folder and ``.inter`` file.
        about: the header of the config file, shown when its data are absent.
        tuned: gradient -> name of the map -> (tau, l2), used where a run sets neither; for
            semco_offline these are the teacher's.
        offline: name of the map -> values of `TUNABLE` fields for semco_offline.
        online: the same for semco_online, with train.epochs as "epochs".
        distilled_gradient: that `offline` and `online` belong to.

    Raises:
        ConfigError: for an unknown model, listing the known ones.
    """
    if model not in MODELS:
        raise ConfigError(f"model {model!r} is unknown; choose one of: {', '.join(MODELS)}")
    c = _common(about, dataset)
    c.data.reader = config_dict.placeholder(str)  # mmrec | authors; unset: whichever is there
    c.data.content = "files"  # files | raw (citeulike-a: computed from the published files)
    c.data.modes = config_dict.placeholder(tuple)  # content modes in order; unset: all, by name
    c.data.duplicates = "error"  # error | drop: repeated pairs of a user and an item
    c.data.allow_unused = False  # accept users and items without interactions
    c.data.missing_modes = False  # rows of zeros or NaN mean that an item lacks the mode
    c.data.mmap = False  # leave feature files on disk; with encode="active" also while training

    c.model = config_dict.ConfigDict()
    c.model.name = model
    c.model.alpha = 2.0  # 1 softmax, 1.5 entmax15, 2 sparsemax, or anything between
    c.model.tau = config_dict.placeholder(float)  # temperature; unset: tuned for alpha
    c.model.l2 = config_dict.placeholder(float)  # coupled weight decay; unset: tuned for alpha
    c.model.gradient = "autodiff"  # autodiff (the authors') | fenchel_young (exact), for alpha > 1
    c.model.hidden = 192
    c.model.out = 64
    c.model.attention_layers = 1  # 1 as the authors' code, 2 as the paper's text
    if model == "semco":
        c.model.encode = "all"  # all | active: which warm items a step encodes
    c.model.batch_norm = "catalogue"  # catalogue | batch: statistics used after training
    c.model.user_vector = "mean"  # mean | leave_one_out
    c.model.compute = "float32"  # float32 | bfloat16: operands of the products in training
    if model != "semco":  # hidden, out and tau above are the student's; l2 is the teacher's
        c.model.teacher_hidden = 384
        c.model.teacher_out = 384
        c.model.teacher_tau = config_dict.placeholder(float)  # unset: tuned
        c.model.teacher_epochs = config_dict.placeholder(int)  # unset: train.epochs, 15 at most
        c.model.lam = config_dict.placeholder(float)  # weight of the student's contrastive loss
        c.model.omega = config_dict.placeholder(float)  # temperature of the distillation
        c.model.positives = config_dict.placeholder(int)  # items per user in its sub-batches
    if model == "semco_offline":
        # WORKDIR of a finished run of model "semco" with these teacher sizes; unset: train one.
        c.model.teacher = config_dict.placeholder(str)
    if model == "semco_online":
        c.model.ema = config_dict.placeholder(float)  # momentum of the student's view
        c.model.warmup_epochs = config_dict.placeholder(int)  # of the student's learning rate
    base = {
        gradient: {name: {"tau": tau, "l2": l2} for name, (tau, l2) in values.items()}
        for gradient, values in tuned.items()
    }
    teachers = base.get(distilled_gradient, {})
    c.model.tuned = config_dict.ConfigDict(
        {
            "semco": base,
            "semco_offline": {distilled_gradient: _students(offline, teachers)},
            "semco_online": {distilled_gradient: {k: dict(v) for k, v in online.items()}},
        }[model]
    )

    # Of semco_offline: the student's, after the teacher's. Of semco_online unset: tuned.
    c.train.epochs = config_dict.placeholder(int) if model == "semco_online" else 15
    c.train.batch_size = 2048
    c.train.learning_rate = 1e-3  # decays to 0 by a cosine over all steps
    return c.lock()


def get_sequence_config(model: str, *, dataset: str, about: str) -> config_dict.ConfigDict:
    """The defaults of a sequential data set: the values of "Let It Go? Not Quite".

    Args:
        model: what follows the colon in ``--config=FILE.py:MODEL``.
        dataset: its name, also of its folder.
        about: the header of the config file, shown when its data are absent.

    Raises:
        ConfigError: for an unknown model, listing the known ones.
    """
    if model not in SEQUENTIAL:
        raise ConfigError(f"model {model!r} is unknown; choose one of: {', '.join(SEQUENTIAL)}")
    c = _common(about, dataset)
    c.data.layout = config_dict.placeholder(str)  # inter | letitgo | beauty | zvuk | amazon_m2
    c.data.protocol = "temporal"  # temporal | random_cold: logs with an order but without a clock
    c.data.quantile = 0.9  # share of the interactions before the boundary of "temporal"
    c.data.n_core = 3  # of those
    c.data.val_fraction = 0.1  # users that validate; with random_cold as many are for test
    c.data.cold_fraction = 0.15  # items that random_cold makes cold
    c.data.mode = config_dict.placeholder(str)  # MODE_feat.npy; unset: the only one; "none"
    c.data.min_rating = config_dict.placeholder(float)  # keep ratings above it; unset: all
    c.data.consecutive_duplicates = "drop"  # drop | keep an item that follows itself
    c.data.max_users = config_dict.placeholder(int)  # drawn at random; unset: all
    # WORKDIR of a finished SEMCo run: its embeddings of the items take the place of their content.
    c.data.item_content = config_dict.placeholder(str)

    c.model = config_dict.ConfigDict()
    c.model.name = "content_knn" if model == "content_knn" else "sasrec"
    c.model.max_length = 64  # items that the model looks back
    if model != "content_knn":
        c.model.item_table = SEQUENTIAL[model]  # random | content | frozen | delta
        c.model.max_delta_norm = 0.5  # of a row of the delta; a row of content has norm 1
        c.model.loss = "full"  # full | sampled | gbce
        c.model.alpha = 1.0  # of the loss: 1 softmax, 1.5 entmax15, 2 sparsemax
        c.model.tau = 1.0  # its temperature
        c.model.negatives = 256  # items drawn per step for sampled and gbce
        c.model.calibration = 0.75  # t of gbce
        c.model.dim = 128
        c.model.blocks = 2
        c.model.heads = 1
        c.model.dropout = 0.3
        c.model.windows = "last"  # last | all windows of a user are learnt from
        c.model.compute = "float32"  # float32 | bfloat16: operands of the products in training
        c.model.reduce = "always"  # always | never: standardise, PCA, unit rows
        c.model.reference = False  # the published code's padding mask, positions and padding item

    c.train.epochs = 100
    c.train.batch_size = 128
    c.train.learning_rate = 1e-3
    c.train.patience = 5
    c.eval.cutoffs = (10,)
    return c.lock()


def _common(about: str, dataset: str) -> config_dict.ConfigDict:
    """What every config has."""
    c = config_dict.ConfigDict()
    c.about = about
    c.seeds = (0, 1, 2, 3, 4)  # one training run each; results are their mean and deviation
    # auto | jit | pmap | shard_map: the step on one device (jit), or on all; auto: by their number,
    # those that a CPU simulates not counted.
    c.parallel = "auto"
    c.shard_items = False  # split tables with a row per item over the devices, along items

    c.data = config_dict.ConfigDict()
    c.data.name = dataset
    c.data.root = config_dict.placeholder(str)  # unset: $JAXCOLD_DATA/NAME, then the user's cache
    c.data.split_file = config_dict.placeholder(str)  # .npz of a split; unset: one from split_seed
    c.data.split_seed = 42
    c.data.published = ""  # where the files can be had

    c.train = config_dict.ConfigDict()
    c.train.eval_every = 1  # epochs between evaluations on validation
    # Evaluations without a gain after which training ends, and the best state is taken; unset: the
    # last one.
    c.train.patience = config_dict.placeholder(int)

    c.checkpoint = config_dict.ConfigDict()
    # A checkpoint is parameters, what Adam keeps of them (twice as much), and moving averages.
    c.checkpoint.every_steps = config_dict.placeholder(int)  # unset: once an epoch
    # The newest that stay while a seed trains; where the last is damaged, the one before serves.
    c.checkpoint.keep = 2
    # Leave the checkpoint of the best epoch on validation in WORKDIR/best_checkpoints/seed_N, also
    # without patience. Costs one more on disk, a write after every epoch that is better than those
    # before, and a validation after the last.
    c.checkpoint.keep_best = False

    c.eval = config_dict.ConfigDict()
    c.eval.cutoffs = (20,)
    c.eval.figure = True  # draw WORKDIR/summary.png
    return c


def _students(
    offline: Distilled, teachers: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Map -> field -> value: the student's, and the base model's for the teacher."""
    return {
        name: {"l2": teachers[name]["l2"], "teacher_tau": teachers[name]["tau"], **values}
        for name, values in offline.items()
    }


def map_of(config: config_dict.ConfigDict) -> tuple[str, str]:
    """Gradient and map as the tables name them; the map of an alpha without a name is ""."""
    alpha = config.model.alpha
    # Softmax has one gradient: its exact one, which is also the authors'.
    gradient = config.model.gradient if alpha > 1 else "autodiff"
    return gradient, {value: name for name, value in ALPHA.items()}.get(alpha, "")


def tuned(config: config_dict.ConfigDict) -> Mapping[str, float]:
    """Field to value from the config's table for its map and gradient; empty if it has none."""
    gradient, name = map_of(config)
    return dict(config.model.tuned.get(gradient, {}).get(name, {}).items())


def resolve(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """A copy in which what a run left unset has its tuned value, checked before anything is loaded.

    Raises:
        ConfigError: naming the field and what it may be.
    """
    c = config.copy_and_resolve_references()
    if c.model.name not in MODELS:
        _check(c)
        return c
    gradient, _ = map_of(c)
    table, values = c.model.tuned.get(gradient, {}), tuned(c)
    if c.train.epochs is None and "epochs" in values:
        c.train.epochs = values["epochs"]
    missing = [] if c.train.epochs is not None else ["train.epochs"]
    for field in TUNABLE:
        if field in c.model and c.model[field] is None:
            if field in values:
                c.model[field] = values[field]
            else:
                missing.append(f"model.{field}")
    if missing:
        known = ", ".join(sorted(table)) or "none"
        raise ConfigError(
            f"{', '.join(f'config.{field}' for field in missing)}: unset, and {c.data.name} has no "
            f"tuned value for alpha={c.model.alpha:g} with gradient={gradient!r} (tuned: {known}); "
            f"pass {' '.join(f'--config.{field}=NUMBER' for field in missing)}"
        )
    if "teacher_epochs" in c.model and c.model.teacher_epochs is None:
        c.model.teacher_epochs = min(15, c.train.epochs)
    _check(c)
    return c


def _check(c: config_dict.ConfigDict) -> None:
    def need(good: bool, field: str, what: str, value: Any) -> None:
        if not good:
            raise ConfigError(f"config.{field}: {what}, not {value!r}")

    whole = all(type(seed) is int and seed >= 0 for seed in c.seeds)
    need(whole and len(c.seeds) > 0, "seeds", "one or more whole numbers from 0", c.seeds)
    need(len(set(c.seeds)) == len(c.seeds), "seeds", "each seed once", c.seeds)
    forms = ("auto", "jit", "pmap", "shard_map")
    need(c.parallel in forms, "parallel", f"one of {', '.join(forms)}", c.parallel)
    cutoffs = c.eval.cutoffs
    good = len(cutoffs) > 0 and all(type(k) is int and k > 0 for k in cutoffs)
    need(good, "eval.cutoffs", "one or more whole numbers from 1", cutoffs)
    for field in ("epochs", "batch_size", "eval_every"):
        need(c.train[field] >= 1, f"train.{field}", "at least 1", c.train[field])
    every = c.checkpoint.every_steps
    need(every is None or every >= 1, "checkpoint.every_steps", "at least 1", every)
    need(c.checkpoint.keep >= 1, "checkpoint.keep", "at least 1", c.checkpoint.keep)
    need(c.train.learning_rate > 0, "train.learning_rate", "above 0", c.train.learning_rate)
    patience = c.train.patience
    need(patience is None or patience >= 1, "train.patience", "at least 1", patience)
    if "l2" in c.model:
        need(c.model.l2 >= 0, "model.l2", "at least 0", c.model.l2)
    if "teacher_epochs" in c.model:
        need(
            c.model.teacher_epochs >= 1,
            "model.teacher_epochs",
            "at least 1",
            c.model.teacher_epochs,
        )
    if "warmup_epochs" in c.model:
        need(c.model.warmup_epochs >= 0, "model.warmup_epochs", "at least 0", c.model.warmup_epochs)


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
