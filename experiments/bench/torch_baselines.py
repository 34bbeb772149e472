"""The training steps of the cold-start baselines in plain PyTorch, from the same parameters.

Each loss is written as the formulas of its file in `jaxcold.models` read, with tables gathered by
indexing, `torch.optim.Adam` and autograd.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from experiments.bench.torch_steps import to_tensor, to_tensors

Tensors = Mapping[str, Any]


def _linear(p: Tensors, name: str, x: Any) -> Any:
    y = x @ p[f"{name}.kernel"]
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def _norm(p: Tensors, name: str, x: Any) -> Any:
    """Batch norm that updates running statistics, as a module in training does."""
    width = x.shape[1]
    return functional.batch_norm(
        x, torch.zeros(width), torch.ones(width), p[f"{name}.scale"], p[f"{name}.bias"], True
    )


def _bpr(better: Any, worse: Any) -> Any:
    return -torch.log(1e-5 + torch.sigmoid(better - worse)).mean()


def _dots(x: Any, y: Any) -> Any:
    return (x * y).sum(1)


def clcrec(p: Tensors, c: Tensors, batch: Tensors, options: Mapping[str, float]) -> Any:
    """The loss of `jaxcold.models.clcrec`."""
    hidden = functional.leaky_relu(_linear(p, "first", c["warm_content"]), 0.01)
    features = _linear(p, "second", hidden)
    ids = p["item"][c["warm"]][batch["slots"]]
    shown = features[batch["slots"]]
    user = p["user"][batch["user"]]
    unit = functional.normalize(features, dim=1)[batch["slots"]]
    cosine = torch.bmm(unit, functional.normalize(ids[:, 0], dim=1)[:, :, None])[:, :, 0]
    rows = torch.where(batch["draws"][:, :, None] > 0, shown, ids)
    taste = torch.bmm(rows, user[:, :, None])[:, :, 0]
    target = torch.zeros(len(user), dtype=torch.long)
    losses = [functional.cross_entropy(z / options["tau"], target) for z in (cosine, taste)]
    norms = (user.norm(dim=1).mean() + ids.norm(dim=2).mean()) / 2
    lam = options["lam"]
    return lam * losses[0] + (1 - lam) * losses[1] + options["l2"] * norms


def heater(p: Tensors, c: Tensors, batch: Tensors, options: Mapping[str, float]) -> Any:
    """The loss of `jaxcold.models.heater`."""
    user = _linear(p, "user", c["user"][batch["user"]])
    items = torch.cat([batch["positive"], batch["negative"]])
    known, content = c["item"][items], c["content"][items]
    trunk = torch.tanh(_linear(p, "second", torch.tanh(_linear(p, "first", content))))
    gates = torch.tanh(_linear(p, "gate", content))
    made = sum(
        gates[:, k, None] * torch.tanh(_linear(p, f"experts.{k}", trunk))
        for k in range(gates.shape[1])
    )
    mixed = _linear(p, "item", (1 - options["mixing"]) * known + options["mixing"] * made)
    target = torch.cat([torch.ones(len(user)), torch.zeros(len(user))])
    error = functional.mse_loss(_dots(torch.cat([user, user]), mixed), target)
    return error + options["alpha"] * (made - known).square().sum()


def aldi(p: Tensors, c: Tensors, batch: Tensors, options: Mapping[str, float]) -> Any:
    """The loss of `jaxcold.models.aldi`."""
    teacher = c["user"][batch["user"]]
    better, worse = c["item"][batch["positive"]], c["item"][batch["negative"]]

    def tower(side: str, x: Any) -> Any:
        hidden = torch.tanh(_norm(p, f"{side}.norm", _linear(p, f"{side}.first", x)))
        return _linear(p, f"{side}.second", hidden)

    def identity(rows: Any, others: Any) -> Any:
        return _dots(rows, rows) - rows @ others.mean(0)

    def cross_entropy(logit: Any, target: Any) -> Any:
        return functional.binary_cross_entropy_with_logits(logit, target)

    user = tower("user", teacher)
    positive, negative = (tower("item", c["content"][batch[k]]) for k in ("positive", "negative"))
    s_better, s_worse = _dots(user, positive), _dots(user, negative)
    t_better, t_worse = _dots(teacher, better), _dots(teacher, worse)
    rating = ((t_better - s_better).abs() + (t_worse - s_worse).abs()).mean()
    ranking = cross_entropy(s_better - s_worse, torch.sigmoid(t_better - t_worse))
    alike = cross_entropy(identity(positive, negative), torch.sigmoid(identity(better, worse)))
    return (
        _bpr(s_better, s_worse)
        + options["gamma"] * rating
        + options["alpha"] * ranking
        + options["beta"] * alike
    )


def gorec(p: Tensors, c: Tensors, batch: Tensors, options: Mapping[str, float]) -> Any:
    """The loss of `jaxcold.models.gorec`; noise and dropout are PyTorch's."""
    item = c["item"][batch["positive"]]
    content = functional.normalize(c["content"][batch["positive"]], dim=1)

    def half(name: str, x: Any, y: Any) -> Any:
        hidden = _linear(p, f"{name}.first", torch.cat([x, y], 1))
        return torch.tanh(_norm(p, f"{name}.norm", hidden))

    def sampled(mean: Any, spread: Any) -> Any:
        return mean + torch.randn_like(mean) * torch.exp(spread / 2)

    hidden = half("encoder", content, item)
    mean = _linear(p, "encoder.mean", hidden)
    latent = sampled(mean, _linear(p, "encoder.logvar", hidden))
    prior = sampled(*(_linear(p, f"encoder.prior_{k}", content) for k in ("mean", "logvar")))
    shown = functional.dropout(content, options["dropout"])
    made = _linear(p, "decoder.third", _linear(p, "decoder.second", half("decoder", shown, latent)))
    uniformity = torch.pdist(functional.normalize(mean, dim=1)).square().mul(-2).exp().mean().log()
    q = torch.softmax(prior, 1)
    divergence = (q * (q.log() - (torch.softmax(latent, 1) + 1e-10).log())).mean()
    return (
        functional.mse_loss(made, item)
        + options["uniformity_weight"] * uniformity
        + options["divergence_weight"] * divergence
    )


class FreedomLoss:
    """The loss of `jaxcold.models.freedom`; both graphs are sparse matrices, made once."""

    def __init__(self, c: Tensors, edges: tuple[np.ndarray, np.ndarray], users: int):
        user, item = map(to_tensor, edges)
        items = len(c["neighbours"])
        degree = [torch.bincount(x.long(), minlength=n) for x, n in ((user, users), (item, items))]
        weight = (degree[0][user.long()] * degree[1][item.long()]).float().rsqrt()
        there = torch.stack([user, item + users])
        both, size = torch.cat([there, there.flip(0)], 1), users + items
        self.clicks = torch.sparse_coo_tensor(
            both, torch.cat([weight, weight]), (size, size), check_invariants=True
        ).coalesce()
        near = c["neighbours"]
        row = torch.arange(items).repeat_interleave(near.shape[1])
        self.similar = torch.sparse_coo_tensor(
            torch.stack([row, near.flatten()]),
            c["neighbour_weight"].repeat(items),
            (items, items),
            check_invariants=True,
        ).coalesce()
        self.users = users

    def __call__(self, p: Tensors, c: Tensors, batch: Tensors, options: Mapping[str, float]) -> Any:
        """The loss of a batch."""
        del c
        layer = torch.cat([p["user"], p["item"]])
        total = layer
        for _ in range(2):
            layer = torch.sparse.mm(self.clicks, layer)
            total = total + layer
        user, item = (total / 3).split([self.users, len(p["item"])])
        item = item + torch.sparse.mm(self.similar, p["item"])
        user = user[batch["user"]]

        def ranking(better: Any, worse: Any) -> Any:
            return -functional.logsigmoid(_dots(user, better) - _dots(user, worse)).mean()

        loss = ranking(item[batch["positive"]], item[batch["negative"]])
        for name in (n.partition(".")[2] for n in p if n.startswith("features.")):
            rows = (p[f"features.{name}"][batch[k]] for k in ("positive", "negative"))
            loss = loss + options["lam"] * ranking(
                *(_linear(p, f"projection.{name}", x) for x in rows)
            )
        return loss


LOSSES: Mapping[str, Callable[..., Any]] = {
    "clcrec": clcrec,
    "heater": heater,
    "aldi": aldi,
    "gorec": gorec,
}


class Step:
    """Trains one step of one loss per call, on the next batch of a cycle.

    Args:
        loss: (parameters, constants, batch, options) -> loss.
        initial: parameters of the group.
        constants: arrays by name.
        batches: arrays by name.
        options: of the loss.
        learning_rate: of Adam.
        l2: weight decay of Adam.
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        initial: Any,
        constants: Mapping[str, Any],
        batches: Sequence[Mapping[str, Any]],
        options: Mapping[str, float],
        *,
        learning_rate: float,
        l2: float,
    ):
        self._loss, self._constants, self._options = loss, to_torch(constants), options
        self._params = {name: x.requires_grad_() for name, x in to_tensors(initial).items()}
        self._optimizer = torch.optim.Adam(
            [*self._params.values()], lr=learning_rate, weight_decay=l2
        )
        self._batches = itertools.cycle([to_torch(batch) for batch in batches])

    def __call__(self) -> float:
        """The loss of the batch."""
        loss = self._loss(self._params, self._constants, next(self._batches), self._options)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.item()


class GARStep:
    """GAR's step: the heads, then the generator, as `jaxcold.models.gar` has it.

    Args:
        initial: parameters of both groups.
        constants: arrays by name.
        batches: arrays by name.
        options: alpha, beta and dropout.
        learning_rate: of both Adams.
        l2: weight decay of both.
    """

    def __init__(
        self,
        initial: Any,
        constants: Mapping[str, Any],
        batches: Sequence[Mapping[str, Any]],
        options: Mapping[str, float],
        *,
        learning_rate: float,
        l2: float,
    ):
        self._constants, self._options = to_torch(constants), options
        self._params = {
            group: {name: x.requires_grad_() for name, x in to_tensors(tree).items()}
            for group, tree in initial.items()
        }
        self._optimizers = {
            group: torch.optim.Adam([*params.values()], lr=learning_rate, weight_decay=l2)
            for group, params in self._params.items()
        }
        self._batches = itertools.cycle([to_torch(batch) for batch in batches])

    def __call__(self) -> float:
        """The sum of both losses of the batch."""
        c, batch = self._constants, next(self._batches)
        heads, generator = self._params["heads"], self._params["generator"]
        real, other = c["item"][batch["positive"]], c["item"][batch["negative"]]
        alpha, beta = self._options["alpha"], self._options["beta"]

        def generated() -> Any:
            content = c["content"][batch["positive"]]
            hidden = torch.tanh(_norm(generator, "norm", _linear(generator, "first", content)))
            return _linear(
                generator, "second", functional.dropout(hidden, self._options["dropout"])
            )

        user = _linear(heads, "user", c["user"][batch["user"]])
        known, fake, worse = (
            _dots(user, _linear(heads, "item", rows))
            for rows in (real, generated().detach(), other)
        )
        first = (1 - beta) * _bpr(known, fake) + beta * _bpr(known, worse)
        before = {name: value.detach().clone() for name, value in heads.items()}
        self._update("heads", first)
        made = generated()
        score = _dots(user.detach(), _linear(before, "item", made))
        second = (1 - alpha) * _bpr(score, known.detach()) + alpha * functional.mse_loss(made, real)
        self._update("generator", second)
        return first.item() + second.item()

    def _update(self, group: str, loss: Any) -> None:
        self._optimizers[group].zero_grad()
        loss.backward()
        self._optimizers[group].step()


def to_torch(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of the arrays; whole numbers as PyTorch's indices."""
    tensors = {name: to_tensor(array) for name, array in arrays.items()}
    return {
        n: t if t.is_floating_point() or t.dtype == torch.bool else t.long()
        for n, t in tensors.items()
    }
