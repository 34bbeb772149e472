"""SASRec's dense step in PyTorch, with the published code's mask, positions and classes."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


def stepper(
    initial: Any,
    content: np.ndarray,
    batches: Sequence[tuple[np.ndarray, ...]],
    dropout: float,
    learning_rate: float,
    max_delta_norm: float,
) -> Callable[[], float]:
    """A function that trains one step and returns the loss.

    Args:
        initial: parameters of `jaxcold.models.sequence_encoder.SASRec` with deltas and one head.
        content: f32[items + 1, d], row 0 for no item.
        batches: items and targets, i32[B, length] each, padded on the left with 0.
        dropout: rate.
        learning_rate: of Adam.
        max_delta_norm: bound of the delta's rows after every step.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    def tensor(array: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(array))

    params = {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): tensor(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(initial)
    }
    d, p = content.shape[1], dropout
    blocks = len({name.split(".")[1] for name in params if name.startswith("blocks.")})

    def linear(name: str) -> nn.Linear:
        layer = nn.Linear(d, d)
        layer.weight.data = params[f"{name}.kernel"].T.contiguous()
        layer.bias.data = params[f"{name}.bias"]
        return layer

    def norm(name: str) -> nn.LayerNorm:
        layer = nn.LayerNorm(d, eps=1e-8)
        layer.weight.data, layer.bias.data = params[f"{name}.scale"], params[f"{name}.bias"]
        return layer

    def attention(name: str) -> nn.MultiheadAttention:
        layer = nn.MultiheadAttention(d, 1, dropout=p, batch_first=True)
        layers = [linear(f"{name}.{part}") for part in ("query", "key", "value")]
        layer.in_proj_weight.data = torch.cat([part.weight.data for part in layers])
        layer.in_proj_bias.data = torch.cat([part.bias.data for part in layers])
        out = linear(f"{name}.out")
        layer.out_proj.weight.data, layer.out_proj.bias.data = out.weight.data, out.bias.data
        return layer

    class Block(nn.Module):
        def __init__(self, name: str):
            super().__init__()
            self.norm1, self.norm2 = norm(f"{name}.norm1"), norm(f"{name}.norm2")
            self.attention = attention(name)
            self.forward_part = nn.Sequential(
                linear(f"{name}.first"), nn.Dropout(p), nn.ReLU(), linear(f"{name}.second"),
                nn.Dropout(p),
            )  # fmt: skip

        def forward(self, x: Any, causal: Any, real: Any) -> Any:
            q = self.norm1(x)
            found, _ = self.attention(
                q, x, x, key_padding_mask=real, attn_mask=causal, need_weights=False
            )
            z = self.norm2(q + found)
            return z + self.forward_part(z)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("content", tensor(content))
            self.delta, self.position = (nn.Parameter(params[k]) for k in ("delta", "position"))
            self.blocks = nn.ModuleList(Block(f"blocks.{i}") for i in range(blocks))
            self.norm = norm("norm")

        def forward(self, item: Any) -> Any:
            length = item.shape[1]
            causal = torch.full((length, length), -math.inf).triu(1)
            table = self.content + self.delta
            x = math.sqrt(d) * functional.embedding(item, table) + self.position[:length]
            x = functional.dropout(x, p)
            for block in self.blocks:
                x = block(x, causal, (item > 0).float())
            return self.norm(x) @ table.T

    whole = Whole().train()
    optimizer = torch.optim.Adam(whole.parameters(), lr=learning_rate)
    pairs = []
    for arrays in batches:
        item, target = (tensor(array).long() for array in arrays)
        pairs.append((item, torch.where(target > 0, target, -100)))
    turn = itertools.cycle(pairs)

    def once() -> float:
        item, target = next(turn)
        optimizer.zero_grad()
        loss = functional.cross_entropy(whole(item).flatten(0, 1), target.flatten())
        loss.backward()
        whole.delta.grad[0] = 0
        optimizer.step()
        with torch.no_grad():
            length = whole.delta[1:].norm(dim=1, keepdim=True)
            scale = torch.where(length > max_delta_norm, max_delta_norm / (length + 1e-7), 1.0)
            whole.delta[1:] *= scale
        return loss.item()

    return once
