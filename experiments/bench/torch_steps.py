"""The training steps of SASRec and SEMCo in PyTorch; that of SEMCo needs the package entmax too.

SASRec's has the published code's mask, positions and classes; SEMCo's is written from the paper.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from jaxcold.types import Csr


def to_tensor(array: Any) -> Any:
    """A tensor with a copy of the array."""
    return torch.from_numpy(np.array(array))


def to_tensors(params: Any) -> dict[str, Any]:
    """Tensors by name, such as "blocks.0.query.kernel", of a model's parameters."""
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): to_tensor(x)
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    }


def make_linear(params: dict[str, Any], name: str) -> Any:
    """A linear layer with the parameters of that name; its bias is 0 where they have none."""
    kernel = params[f"{name}.kernel"]
    layer = nn.Linear(*kernel.shape)
    layer.weight.data = kernel.T.contiguous()
    layer.bias.data = params.get(f"{name}.bias", torch.zeros(kernel.shape[1]))
    return layer


def make_norm(params: dict[str, Any], name: str) -> Any:
    """A layer norm with the parameters of that name."""
    layer = nn.LayerNorm(len(params[f"{name}.scale"]), eps=1e-8)
    layer.weight.data, layer.bias.data = params[f"{name}.scale"], params[f"{name}.bias"]
    return layer


def make_attention(params: dict[str, Any], name: str, dropout: float) -> Any:
    """Attention of one head with the parameters of the block of that name."""
    inputs = [make_linear(params, f"{name}.{kind}") for kind in ("query", "key", "value")]
    layer = nn.MultiheadAttention(inputs[0].in_features, 1, dropout=dropout, batch_first=True)
    layer.in_proj_weight.data = torch.cat([linear.weight.data for linear in inputs])
    layer.in_proj_bias.data = torch.cat([linear.bias.data for linear in inputs])
    out = make_linear(params, f"{name}.out")
    layer.out_proj.weight.data, layer.out_proj.bias.data = out.weight.data, out.bias.data
    return layer


class Block(nn.Module):
    """Attention and a feed-forward layer, each on normalized inputs."""

    def __init__(self, params: dict[str, Any], name: str, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = (make_norm(params, f"{name}.norm{i}") for i in (1, 2))
        self.attention = make_attention(params, name, dropout)
        self.feed_forward = nn.Sequential(
            make_linear(params, f"{name}.first"), nn.Dropout(dropout), nn.ReLU(),
            make_linear(params, f"{name}.second"), nn.Dropout(dropout),
        )  # fmt: skip

    def forward(self, x: Any, causal: Any, real: Any) -> Any:
        """Hidden states [B, length, d] of those below."""
        q = self.norm1(x)
        mixture, _ = self.attention(
            q, x, x, key_padding_mask=real, attn_mask=causal, need_weights=False
        )
        z = self.norm2(q + mixture)
        return z + self.feed_forward(z)


class SASRec(nn.Module):
    """SASRec with content, deltas and one head."""

    def __init__(self, params: dict[str, Any], content: np.ndarray, dropout: float):
        super().__init__()
        self.register_buffer("content", to_tensor(content))
        self.delta, self.position = (nn.Parameter(params[k]) for k in ("delta", "position"))
        count = len({name.split(".")[1] for name in params if name.startswith("blocks.")})
        self.blocks = nn.ModuleList(Block(params, f"blocks.{i}", dropout) for i in range(count))
        self.norm = make_norm(params, "norm")
        self.dropout = dropout

    def forward(self, item: Any) -> Any:
        """Logits [B, length, items + 1] of items [B, length]."""
        length, dim = item.shape[1], self.content.shape[1]
        causal = torch.full((length, length), -math.inf).triu(1)
        table = self.content + self.delta
        x = math.sqrt(dim) * functional.embedding(item, table) + self.position[:length]
        x = functional.dropout(x, self.dropout)
        for block in self.blocks:
            x = block(x, causal, (item > 0).float())
        return self.norm(x) @ table.T


class SASRecStep:
    """SASRec's dense step: trains once per call, on the next batch of a cycle.

    Args:
        initial: parameters of `jaxcold.models.sequence_encoder.SASRec` with deltas and one head.
        content: f32[items + 1, d], row 0 for no item.
        batches: items and targets, i32[B, length] each, padded on the left with 0.
        dropout: rate.
        learning_rate: of Adam.
        max_delta_norm: bound of the delta's rows after every step.
    """

    def __init__(
        self,
        initial: Any,
        content: np.ndarray,
        batches: Sequence[tuple[np.ndarray, ...]],
        *,
        dropout: float,
        learning_rate: float,
        max_delta_norm: float,
    ):
        self._module = SASRec(to_tensors(initial), content, dropout).train()
        self._optimizer = torch.optim.Adam(self._module.parameters(), lr=learning_rate)
        self._max_delta_norm = max_delta_norm
        pairs = [tuple(to_tensor(array).long() for array in arrays) for arrays in batches]
        self._batches = itertools.cycle(
            [(item, torch.where(target > 0, target, -100)) for item, target in pairs]
        )

    def __call__(self) -> float:
        """The loss of the batch."""
        item, target = next(self._batches)
        self._optimizer.zero_grad()
        loss = functional.cross_entropy(self._module(item).flatten(0, 1), target.flatten())
        loss.backward()
        delta, bound = self._module.delta, self._max_delta_norm
        delta.grad[0] = 0
        self._optimizer.step()
        with torch.no_grad():
            length = delta[1:].norm(dim=1, keepdim=True)
            delta[1:] *= torch.where(length > bound, bound / (length + 1e-7), 1.0)
        return loss.item()


class SEMCoStep:
    """SEMCo's step: trains once per call, on the next batch of a cycle.

    The package entmax differentiates the mapping.

    Args:
        initial: parameters of the model's one encoder.
        features: f32[items, D], unit rows of the warm items.
        histories: the training items of all users, numbered among the warm ones.
        batches: users and items of the pairs, i32[B] each.
        alpha: of the mapping: 1, 1.5 or 2.
        tau: temperature.
        l2: weight decay of Adam.
        learning_rate: at the first step.
        period: steps of the cosine schedule.
    """

    def __init__(
        self,
        initial: Any,
        features: Any,
        histories: Csr,
        batches: Sequence[tuple[np.ndarray, ...]],
        *,
        alpha: float,
        tau: float,
        l2: float,
        learning_rate: float,
        period: int,
    ):
        import entmax

        self._alpha, self._tau = alpha, tau
        self._activation = {1.5: entmax.entmax15, 2.0: entmax.sparsemax}.get(alpha)
        params = to_tensors(initial)
        first, final = make_linear(params, "modes.0"), make_linear(params, "final")
        norm = nn.BatchNorm1d(first.out_features, track_running_stats=False)
        self._encoder = nn.Sequential(first, norm, nn.ReLU(), final)
        parameters = self._encoder.parameters()
        self._optimizer = torch.optim.Adam(parameters, lr=learning_rate, weight_decay=l2)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, period)
        self._features = to_tensor(features)
        rows = np.repeat(np.arange(histories.rows), histories.counts)
        self._means = torch.sparse_coo_tensor(
            np.stack([rows, histories.indices]),
            to_tensor(1 / histories.counts[rows]).float(),
            (histories.rows, len(self._features)),
            check_invariants=True,
        ).coalesce()
        tensors = [tuple(to_tensor(ids).long() for ids in batch) for batch in batches]
        self._batches = itertools.cycle(tensors)

    def __call__(self) -> float:
        """The loss of the batch."""
        user, item = next(self._batches)
        embedded = functional.normalize(self._encoder(self._features))
        users = functional.normalize(torch.sparse.mm(self._means, embedded)[user])
        z = users @ embedded[item].T / self._tau
        if self._activation is None:
            loss = functional.cross_entropy(z, torch.arange(len(z)))
        else:
            p, alpha = self._activation(z / self._tau, dim=-1), self._alpha
            entropy = (1 - (p**alpha).sum(-1)) / (alpha * (alpha - 1))
            loss = ((p * z).sum(-1) - z.diagonal() + entropy).mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        return loss.item()
