"""What a criterion looks at beside the weights.

evidence = Evidence(loss=loss, batches=((images, labels),))
mask = pruning.prune(params, 0.9, pruning.Pruner("snip"), evidence=evidence)
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prunejax import trees

Params = Any
Batch = Any


class Evidence(NamedTuple):
    """Data, objective and network that a criterion may use; each field is optional.

    Attributes:
      key: for criteria that draw at random.
      loss: `(params, batch) -> scalar`, the objective, hashable as functions are; it may be
        adversarial, and then it is the adversarial gradient that scores.
      batches: pytrees of examples, along the first axis; what they give is averaged over all the
        examples, so the loss of a batch is to be the mean of theirs.
      grads: the gradient of the objective where it is known already, of params' structure; used
        where there is no `loss`.
      network: `(variables, images) -> logits` in evaluation mode, hashable, such as a `Network`.
      variables: the network's other variables, as in `{"batch_stats": ...}`; where None, `network`
        takes the parameters alone, unless it is a `Network` or a `Shrunk`.
      input_shape: of one input, without batch axis.
      norms: path of a weight -> path of the scale of the normalisation that follows it.
      scores: learned scores, of params' structure.
      paths: the weights to be scored, all of them where None; a pruner fills it in.
      mask: what of the weights is still there, of params' structure; all of it where None. A pruner
        fills it in; the parameters are under it already.
      allowed: the weights that a criterion of all at once (GraSP) looks at; `paths` where None.
    """

    key: jax.Array | None = None
    loss: Callable[[Params, Batch], jax.Array] | None = None
    batches: tuple[Batch, ...] = ()
    grads: Params | None = None
    network: Callable[[Any, jax.Array], jax.Array] | None = None
    variables: Any = None
    input_shape: tuple[int, ...] | None = None
    norms: Mapping[str, str] | None = None
    scores: Params | None = None
    paths: tuple[str, ...] | None = None
    mask: Params | None = None
    allowed: tuple[str, ...] | None = None

    def weights(self, params: Params) -> tuple[str, ...]:
        """The paths to be scored."""
        return trees.prunable(params) if self.paths is None else self.paths

    def keyed(self, key: jax.Array | None = None) -> "Evidence":
        """The evidence with this key; with its own where that is None, and else a constant."""
        if key is None:
            key = jax.random.key(0) if self.key is None else self.key
        return self._replace(key=key)

    def variables_of(self, params: Params) -> dict[str, Any]:
        """All the variables of `apply_fn`: these parameters and the others."""
        return {**(self.variables or {}), "params": params}

    def like(self, field: str, params: Params) -> Any:
        """The field `grads` or `scores`, once it is known to have the structure of the parameters.

        Raises:
          ValueError: it has other leaves, or one that does not broadcast against its weight.
        """
        tree = getattr(self, field)
        trees.require_like(f"evidence.{field}", tree, params)
        return tree

    @property
    def apply_fn(self) -> Callable[[Any, jax.Array], jax.Array]:
        """The network as a function of `variables_of(params)` and images, hashable."""
        # Networks of this library run in training mode too, and take variables in both.
        takes_variables = self.variables is not None or hasattr(self.network, "train")
        return self.network if takes_variables else OfParams(self.network)


@dataclasses.dataclass(frozen=True)
class OfParams:
    """A function of parameters and images as one of variables and images; hashed by value.

    Attributes:
      function: `(params, images) -> logits`, hashable.
    """

    function: Callable[[Params, jax.Array], jax.Array]

    def __call__(self, variables: Any, images: jax.Array) -> jax.Array:
        return self.function(variables["params"], images)


@dataclasses.dataclass(frozen=True)
class Criterion:
    """What makes a weight or a unit worth keeping. Calling it scores the weights; higher is kept.

    A unit's score is `finish(aggregate(score of its weights))`. The two steps matter where signs
    cancel: to first order, removing a unit changes the loss by the *sum* of g w over its weights,
    so the square belongs behind the sum, not before it.

    Attributes:
      name: its name in configs.
      score: `(params, evidence) -> scores`, a tree of params' structure whose leaves broadcast
        against the weights.
      needs: fields of `Evidence` that must be there; "gradient" stands for `loss` and `batches`,
        or `grads`.
      aggregate: how the scores of weights become that of a unit unless the pruner says otherwise,
        a key of `AGGREGATES`.
      finish: applied to each score after that.
      remedy: where what it needs comes from, a sentence for the error.
    """

    name: str
    score: Callable[[Params, Evidence], Params]
    needs: tuple[str, ...] = ()
    aggregate: str = "mean"
    finish: Callable[[jax.Array], jax.Array] = lambda scores: scores
    remedy: str = ""

    def __call__(self, params: Params, evidence: Evidence | None = None) -> Params:
        evidence = Evidence() if evidence is None else evidence
        self.check(evidence)
        return jax.tree.map(self.finish, self.score(params, evidence))

    def check(self, evidence: Evidence) -> None:
        """Raises a ValueError that names the criterion and the evidence that it lacks."""
        of_data = {"gradient", "batches"}.intersection(self.needs)
        if of_data and not all(map(examples_in, evidence.batches)):
            raise ValueError(
                f"evidence.batches holds a batch without examples; criterion {self.name!r} needs "
                "some in each."
            )
        missing = [need for need in self.needs if not _is_met(need, evidence)]
        if missing:
            fields = [f for need in missing for f in _FIELDS.get(need, (need,))]
            fields = [f for f in dict.fromkeys(fields) if not _is_met(f, evidence)]
            listed = ", ".join(f"{field}=..." for field in fields)
            raise ValueError(
                f"criterion {self.name!r} needs {' and '.join(fields)}; "
                f"pass evidence=Evidence({listed}). {self.remedy}".rstrip()
            )


def examples_in(batch: Batch) -> int:
    """How many examples a batch holds; 1 where its arrays have no axis of examples."""
    return min((len(leaf) for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf)), default=1)


def widened(x: jax.Array) -> jax.Array:
    """At least float32: squares and products of half-precision weights vanish below 1e-8."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


_FIELDS = {"gradient": ("loss", "batches")}


def _is_met(need: str, evidence: Evidence) -> bool:
    if need == "gradient":
        return evidence.grads is not None or all(_is_met(f, evidence) for f in _FIELDS[need])
    value = getattr(evidence, need)
    return bool(len(value)) if need == "batches" else value is not None
