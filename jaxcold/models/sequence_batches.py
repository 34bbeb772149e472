"""Batches of training windows for sequential models, the counterpart of `pair_batches`."""

from collections.abc import Iterator

import numpy as np

from jaxcold import parallel
from jaxcold.data.pairs.batches import check_batch_size, prefetch, relative_weights
from jaxcold.data.sequences import batches as packing
from jaxcold.data.sequences.batches import Tokens
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.data.sequences.split import window_rows, windows
from jaxcold.types import Csr, DataError


class SequenceBatches:
    """Epochs of training windows as tokens."""

    def __init__(
        self,
        dataset: SequenceDataset,
        max_length: int,
        which: str,
        batch_size: int,
        reference: bool,
        devices: parallel.Devices,
    ):
        # Of positions in `train.indices`, so that items and weights follow from them.
        train = dataset.train
        entries = Csr(train.indptr, np.arange(len(train.indices), dtype=np.int32))
        self._windows = windows(entries, max_length, which)
        self._items, self._weights = train.indices, dataset.weights
        if self._weights is not None:
            self._weights = relative_weights(self._weights)
        lengths = self._windows.counts - 1
        if not len(lengths):
            raise DataError(
                f"{dataset.name}: no training user has two items; there is nothing to learn"
            )
        self._users = dataset.user_ids[window_rows(dataset.train, max_length, which)]
        self._item_ids = dataset.item_ids
        check_batch_size(batch_size, self._windows.rows)
        self._batch_size, self._reference, self._devices = batch_size, reference, devices
        self._capacity = packing.capacity_for(lengths, -(-batch_size // devices.n))
        self.steps = -(-self._windows.rows // batch_size)
        self.targets = int(lengths.sum())

    def epoch(self, rng: np.random.Generator) -> Iterator[Tokens]:
        """Batches of shuffled windows."""
        order = rng.permutation(self._windows.rows)
        devices = self._devices

        def batches() -> Iterator[Tokens]:
            for start in range(0, len(order), self._batch_size):
                rows = self._windows.take(order[start : start + self._batch_size])
                inputs, targets = packing.inputs_and_targets(rows)
                inputs = inputs._replace(indices=self._items[inputs.indices])
                if self._reference:
                    tokens = packing.pad_shards(inputs, targets, devices.n)
                else:
                    tokens = packing.pack_shards(inputs, targets, self._capacity, devices.n)
                tokens = self._look_up(tokens)
                yield tokens if devices.mesh is None else devices.put(tokens, sharded=True)

        return prefetch(batches())

    def _look_up(self, tokens: Tokens) -> Tokens:
        """Tokens whose targets, given as positions from 1, are items; and their weights."""
        position = tokens.target - 1
        weight = None
        if self._weights is not None:
            weight = np.where(position >= 0, self._weights[position], 0).astype(np.float32)
        target = np.where(position >= 0, self._items[position] + 1, 0).astype(np.int32)
        return tokens._replace(target=target, weight=weight)

    def examples(self, rng: np.random.Generator, number: int) -> dict[str, np.ndarray]:
        """Users of a batch's windows, and the last target of each."""
        size = self._batch_size
        taken = rng.permutation(self._windows.rows)[number * size : (number + 1) * size]
        last = self._items[self._windows.indices[self._windows.indptr[taken + 1] - 1]]
        return {"user": self._users[taken], "item": self._item_ids[last]}
