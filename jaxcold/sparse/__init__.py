r"""The entmax family: probabilities with exact zeros, and the losses that go with them.

The maths. For alpha > 0, Tsallis' entropy of a distribution is

    H(p) = (1 - sum p^alpha) / (alpha (alpha - 1)),    Shannon's at alpha = 1,

and entmax is the distribution that maximises ``p.z + H(p)``:

    p = max((alpha - 1) z - eta, 0) ^ (1 / (alpha - 1)),    eta such that sum p = 1.

alpha = 1 is softmax, 1.5 entmax15, 2 sparsemax; from above 1 on, more alpha, more zeros. One number
per row, eta, is all there is to find. With ``w = p^(2 - alpha)`` on the support and 0 off it, the
Jacobian is ``J = diag(w) - w w' / sum w``. The Fenchel-Young loss against a target t is
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
| `entmax` | (0, 4], number or array | in z and in an array alpha, any order |
| `sparsemax`, `entmax15` | 2, 1.5 | in z, any order |
| `log_entmax`, `threshold`, `entmax_sigmoid` | as `entmax` | as `entmax` |
| `support_size` | as `entmax` | none: it counts |
| `normmax`, `normmax_loss` | order above 1, number or array | in z and in an array order |
| `budget` | (sparsemax with sum ``budget``, bounds) | in z, the budget and the bounds |
| `sparse_simplex` | (sparsemax of the k largest) | in z |
| `fenchel_young_loss`, `entmax_loss` | as `entmax` | in z, tau, weights, an array alpha |
| `sparsemax_loss`, `entmax15_loss` | 2, 1.5 | in z, tau and weights |
| `entmax_sigmoid_loss` | as `entmax` | in z, tau, weights, an array alpha |
| `entmax_attention` | as `entmax`, one per head | in all operands and alpha |
| `linear_entmax_loss`, `linear_softmax_loss` | in [1, 2] | in h, W, bias, tau, weights |
| `linear_entmax_sum` | in [1, 2] | the same: their sum, cheaper to differentiate |
| `sharded_entmax_sum` | in [1, 2] | in h, W, tau: that sum, the items sharded over devices |

The linear losses take h and W and never hold the logits ``h @ W.T``; they have reverse mode alone,
and a mask of their own. All others take any ``axis`` (one, several or None for all) and ``where``,
bfloat16 and float16 (computed in float32), float64 under x64. Everything works under jit, vmap,
scan, remat, shard_map, `jax.export` with a symbolic batch, `jax.disable_jit` and strict dtype
promotion; each function is one compiled call, also outside jit. Rows sharded over devices stay
where they are: there is no collective. Where an entry just enters the support the activations have
a kink for alpha >= 2 (at alpha = 2 a step in the Jacobian; above it the slope there is infinite):
derivatives are those of the support as computed. For alpha < 2 the first derivative is continuous,
and the second has steps from 1.5 on. Below alpha = 1 nothing is zero and everything is smooth.

What is invalid is never a plausible number. A parameter out of range (alpha, tau, a budget) raises
ValueError where its value is known and gives NaN, in the gradient too, where it is traced. NaN or
+inf makes its own row NaN, no other, in the result and in its gradient.

Corner cases. -inf entries get probability 0. A row masked whole by ``where`` gives zeros and no
gradient. A row of -inf that is not masked raises outside jit and gives zeros inside. The losses
ignore rows with a negative label, a distribution of zeros, or a target that ``where`` excludes; a
label beyond the classes gives NaN; see `fenchel_young_loss`, whose rule all losses share.

Which method. ``"auto"`` is ``"newton"``: a few passes over the rows (two to seven in most cases),
no sort, done in blocks that stay in the cache on a CPU. ``"sort"`` is the textbook algorithm for
alpha 1.5 and 2, worth it only with a small ``k`` on accelerators with a fast top-k; XLA's sort on
a CPU is far slower than Newton. ``"bisect"`` halves a bracket and is there to check the others. All
give the same result to rounding, and rows sum to 1 within a few units in the last place. No time on
a GPU or TPU has been measured. `experiments.bench.entmax` and `experiments.bench.linear_entmax`
measure on a CPU.

For users of the PyTorch package entmax:

| there | here |
|---|---|
| ``sparsemax(X, dim, k)``, ``entmax15(X, dim, k)`` | ``sparsemax(z, axis, k=k)``, ``entmax15`` |
| ``entmax_bisect(X, alpha, dim, n_iter)`` | ``entmax(z, alpha, axis)``; no count of iterations |
| ``sparsemax_bisect``, ``ensure_sum_one`` | ``sparsemax``; rows always sum to 1 |
| alpha as a tensor with 1 at ``dim`` | alpha as an array with 1 at ``axis`` |
| ``normmax_bisect(X, alpha)``, ``budget_bisect(X, budget)`` | ``normmax``, ``budget`` |
| ``sparsemax_loss(X, target, k)``, ``entmax15_loss`` | the same names; ``tau``, ``where`` too |
| ``entmax_bisect_loss(X, target, alpha, n_iter)`` | ``entmax_loss(z, target, alpha)`` |
| ``SparsemaxLoss(ignore_index=-100, reduction="mean")`` | negative labels; ``.mean()`` yourself |
| ``SparsemaxLoss(weight=...)`` (by class) | ``weights=class_weights[labels]`` |
| ``nn.Module`` classes ``Sparsemax(dim)``, ... | `functools.partial` of the functions |
| rows of -inf give NaN | rows of -inf raise, or give zeros under jit |

Mean over the rows that count: ``loss.sum() / (labels >= 0).sum()``. In Optax
``optax.losses.sparsemax_loss(z, label)`` is the binary loss, here
``entmax_sigmoid_loss(z, label, 2.0)``; ``optax.losses.multiclass_sparsemax_loss`` is our
`sparsemax_loss`, and ``optax.projections.projection_simplex(x, s)`` is ``sparsemax(x, scale=s)``.

Attention with entmax in the place of softmax, in a Flax module:
``nnx.MultiHeadAttention(..., attention_fn=functools.partial(entmax_attention, alpha=1.5))``, or
with the arguments of `jax.nn.dot_product_attention`:

>>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
>>> learned = jnp.array([1.2, 2.0])  # one alpha per head
>>> sparse.entmax_attention(query, key, value, alpha=learned, is_causal=True, block=4).shape
(1, 6, 2, 4)

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
from jaxcold.sparse.attention import entmax_attention
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
    "entmax_attention",
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
