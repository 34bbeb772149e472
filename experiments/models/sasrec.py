"""SASRec, on ids alone or with content; the defaults are those of "Let It Go? Not Quite"."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from experiments.method import Method
from experiments.models import semco
from jaxcold.estimators.sasrec import SASRec
from jaxcold.models import sasrec
from jaxcold.types import Model

# The paper's values, and those where they differ by data set.
DEFAULTS = {
    "max_length": 64,
    "loss": "full",
    "dim": 128,
    "max_delta_norm": 0.5,
    "blocks": 2,
    "dropout": 0.3,
    "average": 0.0,
    "train.epochs": 100,  # at most
    "train.patience": 5,
}
TUNED: Mapping[str, Mapping[str, Any]] = {
    "zvuk": {"max_length": 128},
    "amazon-m2": {"dim": 64},
    "ml-100k": {"dim": 64},
}
# The values of eSASRec's benchmark for this protocol, but for dropout and average, chosen on
# validation of Beauty (0.2 and none there), and dim (256 in its files), which is kept small.
LEAVE_ONE_OUT = {
    "max_length": 50,
    "loss": "sampled",
    "dim": 64,
    "blocks": 1,
    "dropout": 0.5,
    "average": 0.999,
    "train.epochs": 200,
    "train.patience": 50,
}


def fields() -> config_dict.ConfigDict:
    """config.model of SASRec on ids."""
    c = config_dict.ConfigDict()
    c.item_table = "random"  # random | content | frozen | delta
    # Of a row of the delta; a row of content has norm 1. Unset: tuned, as the fields below.
    c.max_delta_norm = config_dict.placeholder(float)
    c.max_length = config_dict.placeholder(int)  # items of a history that are read
    c.loss = config_dict.placeholder(str)  # full | sampled | gbce
    c.alpha = 1.0  # of the loss: 1 softmax, 1.5 entmax15, 2 sparsemax
    c.tau = 1.0  # its temperature
    c.negatives = 256  # items drawn per step for sampled and gbce
    c.calibration = 0.75  # t of gbce
    c.dim = config_dict.placeholder(int)
    c.layers = "sasrec"  # sasrec | ligr: gated, of the normalised input, with SwiGLU
    c.blocks = config_dict.placeholder(int)
    c.heads = 1
    c.dropout = config_dict.placeholder(float)
    # Decay per step of the moving average of parameters that is served; 0: the last parameters.
    c.average = config_dict.placeholder(float)
    c.windows = "last"  # last | all windows of a user are trained on
    c.compute = "float32"  # float32 | bfloat16: operands of the products in training
    c.reduce = "always"  # always | never: standardise, PCA, unit rows
    c.reference = False  # the published code's padding mask, positions and padding item
    return c


def title(model: Mapping[str, Any]) -> str:
    """ "SASRec + delta 0.5"."""
    name = "eSASRec" if model.get("layers") == "ligr" else "SASRec"  # older runs lack the field
    name += {
        "content": " + content",
        "frozen": ", frozen content",
        "delta": f" + delta {model['max_delta_norm']:g}",
    }.get(model["item_table"], "")  # an unknown item_table is refused where the model is built
    alpha = model["alpha"]
    return name if alpha == 1 else f"{name}, alpha={alpha:g}"


def tuned(config: config_dict.ConfigDict) -> dict[str, Any]:
    """The paper's values for the data set, or the benchmark's for leave-one-out."""
    is_benchmark = config.data.protocol == "leave_one_out"
    own = LEAVE_ONE_OUT if is_benchmark else TUNED.get(config.data.name, {})
    return {"train.learning_rate": 1e-3, **DEFAULTS, **own}


def search_space(config: config_dict.ConfigDict) -> dict[str, Sequence[Any]]:
    """Our ranges."""
    space: dict[str, Sequence[Any]] = {
        "dropout": (0.1, 0.2, 0.3, 0.4, 0.5),
        "train.learning_rate": (3e-4, 1e-3, 3e-3),
    }
    if config.model.item_table == "delta":
        space["max_delta_norm"] = (0.1, 0.3, 0.5, 0.7, 0.9)
    return space


def build(config: config_dict.ConfigDict, dataset: Any, devices: Any) -> Model:
    """The model of a resolved config."""
    return sasrec.build(dataset, **semco.options(config), devices=devices)


def save(
    config: config_dict.ConfigDict,
    dataset: Any,
    model: Model,
    params: Any,
    model_state: Any,
    folder: pathlib.Path,
) -> None:
    """Saves the estimator; the published code's defects are for comparison, not for serving."""
    if not config.model.reference:
        options = config.model.to_dict()
        options.pop("name")
        SASRec.from_training(dataset, sasrec.served(params, model_state), options).save(folder)


def with_values(**values: Any) -> Method:
    """SASRec with other defaults of config.model."""

    def variant() -> config_dict.ConfigDict:
        c = fields()
        c.update(values)
        return c

    return METHOD._replace(fields=variant)


METHOD = Method(
    tasks=("sequences",),
    title=title,
    fields=fields,
    build=build,
    defaults=lambda dataset: {
        "train.batch_size": 128,
        "train.epochs": config_dict.placeholder(int),  # tuned, as those below
        "train.learning_rate": config_dict.placeholder(float),
        "train.patience": config_dict.placeholder(int),
    },
    tuned=tuned,
    search_space=search_space,
    save=save,
)
