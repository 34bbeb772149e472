r"""The entmax family: probabilities with exact zeros, and the losses that go with them.

The maths. For alpha >= 1, Tsallis' entropy of a distribution is

    H(p) = (1 - sum p^alpha) / (alpha (alpha - 1)),    Shannon's at alpha = 1,

and entmax is the distribution that maximises ``p.z + H(p)``:

    p = max((alpha - 1) z - eta, 0) ^ (1 / (alpha - 1)),    eta such that sum p = 1.

alpha = 1 is softmax, 1.5 entmax15, 2 sparsemax; more alpha, more zeros. One number per row, eta,
is all there is to find. With ``w = p^(2 - alpha)`` on the support and 0 off it, the Jacobian is
``J = diag(w) - w w' / sum w``. The Fenchel-Young loss against a target t is
``L = (p - t).z + H(p) - H(t)``, with gradient p - t; it is the cross-entropy at alpha = 1.

>>> import jax, jax.numpy as jnp
>>> from jaxcold import sparse
>>> z = jnp.array([1.0, 0.8, 0.1, -2.0])
>>> [round(float(x), 3) for x in sparse.sparsemax(z)]
[0.6, 0.4, 0.0, 0.0]
>>> int(sparse.support_size(z, alpha=1.5))
3
>>> [round(float(x), 3) for x in jax.grad(sparse.sparsemax_loss)(z, 0)]  # p - onehot
[-0.4, 0.4, 0.0, 0.0]

alpha may be learned, one per attention head say: an array with 1 at the axis of the classes.

>>> heads = jnp.array([[1.0], [1.5], [2.0]])
>>> attention = sparse.entmax(jnp.stack([z, z, z]), heads)
>>> [int(n) for n in (attention > 0).sum(-1)]
[4, 3, 2]

| function | alpha | derivatives |
|---|---|---|
| `entmax` | any >= 1, number or array | in z and in an array alpha, any order |
| `sparsemax`, `entmax15` | 2, 1.5 | in z, any order |
| `threshold` | as `entmax` | as `entmax` |
| `support_size` | as `entmax` | none: it counts |
| `normmax` | order above 1, number or array | in z and in an array order |
| `budget` | (sparsemax with sum ``budget``) | in z and in the budget |
| `fenchel_young_loss`, `entmax_loss` | any >= 1, number or array | in z, tau, an array alpha |
| `sparsemax_loss`, `entmax15_loss` | 2, 1.5 | in z and tau |
| `linear_entmax_loss`, `linear_softmax_loss` | in [1, 2] | in h, W, tau; h W' is never held whole |
| `linear_entmax_sum` | in [1, 2] | in h and W: their sum, cheaper to differentiate |
| `sharded_entmax_sum` | in [1, 2] | in h and W: that sum, the items split over devices |

All take any ``axis`` and ``where`` (the linear losses have their own mask), bfloat16 and float16
(computed in float32), float64 under x64, and work under jit, vmap, scan, remat and shard_map, in
forward and reverse mode. Where an entry just enters the support the maps have a kink for
alpha >= 2 (at alpha = 2 a step in the Jacobian; above it the slope there is infinite): derivatives
are those of the support as computed. For alpha < 2 the first derivative is continuous, and the
second has steps from 1.5 on.

Corner cases. -inf entries get probability 0. A row masked whole by ``where`` gives zeros and no
gradient. A row of -inf that is not masked raises outside jit and gives zeros inside. NaN or +inf
makes its own row NaN, no other. The losses ignore rows with a negative label, a label that
``where`` excludes, or weight 0; see `fenchel_young_loss`.

Which method. ``"auto"`` is ``"newton"``: a few passes over the rows (two to seven in most cases),
no sort, done in blocks that stay in the cache on a CPU. ``"sort"`` is the textbook algorithm for
alpha 1.5 and 2, worth it only with a small ``k`` on accelerators with a fast top-k; XLA's sort on
a CPU is far slower than Newton. ``"bisect"`` halves a bracket and is there to check the others.
``"pallas"`` (alpha 1.5 and 2; and in the linear losses) is a kernel for GPU and TPU that holds a
row on chip through the search. The kernels lower for both platforms and agree with the rest in the
interpreter on a CPU, but no time on a GPU or TPU has been measured, so ``"auto"`` does not choose
them. All give the same result to rounding, and rows sum to 1 within a few units in the last place.
`experiments.bench.entmax` and `experiments.bench.linear_entmax` measure them.

A loss in a training step, with the temperature of the published SEMCo models (their gradient is
``gradient="autodiff"``):

>>> scores = jnp.array([[0.9, 0.1], [0.2, 0.7]])
>>> loss = sparse.fenchel_young_loss(scores / 2, jnp.arange(2), 1.5, tau=2.0, gradient="autodiff")
>>> loss.shape
(2,)
"""

from jaxcold.sparse.activations import (
    entmax,
    entmax15,
    entmax_sigmoid,
    log_entmax,
    sparsemax,
    support_size,
    threshold,
)
from jaxcold.sparse.linear import (
    linear_entmax_loss,
    linear_entmax_sum,
    linear_softmax_loss,
    sharded_entmax_sum,
)
from jaxcold.sparse.losses import (
    entmax15_loss,
    entmax_loss,
    entmax_sigmoid_loss,
    fenchel_young_loss,
    sparsemax_loss,
)
from jaxcold.sparse.normmax import normmax, normmax_loss
from jaxcold.sparse.projections import budget, sparse_simplex

__all__ = [
    "budget",
    "entmax",
    "entmax15",
    "entmax15_loss",
    "entmax_loss",
    "entmax_sigmoid",
    "entmax_sigmoid_loss",
    "fenchel_young_loss",
    "linear_entmax_loss",
    "linear_entmax_sum",
    "linear_softmax_loss",
    "log_entmax",
    "normmax",
    "normmax_loss",
    "sharded_entmax_sum",
    "sparse_simplex",
    "sparsemax",
    "sparsemax_loss",
    "support_size",
    "threshold",
]
