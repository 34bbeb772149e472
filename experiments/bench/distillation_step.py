"""What distillation adds to a step: ``python -m experiments.bench.distillation_step``.

A step of SEMCo-Online sparsemax that trains teacher and student, and one after the teacher has
stopped, over a step of the base model at the teacher's size (hidden and output width 384), at the
size of Amazon Clothing by default, with the values published for it. Every round of one run calls
each of them once; times are medians.
"""

from typing import Any

import numpy as np
from absl import app, flags, logging

from experiments.bench import semco_step
from experiments.bench.semco_step import EPOCHS, RATE, Mapping, Sizes, make_stepper
from experiments.bench.timing import median_times
from jaxcold.data.pairs.dataset import Dataset
from jaxcold.models import distillation
from jaxcold.types import Model

GOAL = 2.2
TEACHER = Mapping(2.0, 14.0, 1e-4)  # Clothing's, of the online sparsemax


def online(dataset: Dataset, sizes: Sizes, teacher: int, **options: Any) -> Model:
    """SEMCo-Online sparsemax with the values published for Clothing, and further options."""
    return distillation.build(
        dataset,
        online=True,
        epochs=EPOCHS,
        learning_rate=RATE,
        l2=TEACHER.l2,
        warmup_epochs=1,
        batch_size=sizes.batch,
        alpha=TEACHER.alpha,
        tau=16.0,
        teacher_tau=TEACHER.tau,
        lam=5.0,
        omega=6.0,
        positives=10,
        ema=0.9,
        teacher_epochs=EPOCHS,
        gradient="autodiff",
        hidden=sizes.hidden,
        out=sizes.out,
        teacher_hidden=teacher,
        teacher_out=teacher,
        **options,
    )


def measure(sizes: Sizes, teacher: int, repeats: int) -> dict[str, float]:
    """Median seconds of a step: "base", "online", and "online, teacher stopped".

    Args:
        sizes: of the data and the student.
        teacher: both widths of the teacher.
        repeats: runs of each.
    """
    dataset = semco_step.generate(sizes)
    base = semco_step.build(dataset, sizes._replace(hidden=teacher, out=teacher), TEACHER)
    batches = list(base.batches(np.random.default_rng(0)))
    steps = {"base": make_stepper(base, batches)}
    model = online(dataset, sizes, teacher)
    steps["online"] = make_stepper(model, batches)
    trained = {semco_step.SEED: model.init(semco_step.SEED)[0]["teacher"]}
    stopped = online(dataset, sizes, teacher, teachers=trained)
    steps["online, teacher stopped"] = make_stepper(stopped, batches)
    return median_times(steps, repeats)


def main(_: list[str]) -> None:
    """Measures and prints."""
    values = flags.FLAGS
    logging.set_verbosity(logging.WARNING)  # not a line for each kind of device that is absent
    sizes = semco_step.sizes_of_flags(Sizes())
    times = measure(sizes, values.teacher, values.repeats)
    print("step                          ms   over base")
    for name, seconds in times.items():
        print(f"{name:24s}{seconds * 1e3:8.1f}{seconds / times['base']:12.2f}")
    print(f"goal: online at most {GOAL} x base")


if __name__ == "__main__":
    semco_step.define_sizes(Sizes())
    flags.DEFINE_integer("teacher", 384, "hidden and output width of the teacher", lower_bound=1)
    flags.DEFINE_integer("repeats", 11, "runs of each measurement", lower_bound=1)
    app.run(main)
