"""Multi-layer perceptron; its default is the 300-100 network that Merkle et al. (2021) prune."""

from collections.abc import Mapping

import flax.linen as nn
import jax

from prunejax.models import layers, resizing


class MLP(nn.Module):
    """Dense layers with ReLU between them, on flattened images of any shape."""

    num_classes: int
    widths: tuple[int, ...] = (300, 100)

    @nn.nowrap
    def resized(self, shapes: Mapping[str, tuple[int, ...]]) -> "MLP":
        """The same network with the widths of smaller parameters, given their shapes by path.

        Raises:
          ValueError: a kernel is missing.
        """
        hidden = [f"Dense_{i}" for i in range(len(self.widths))]
        return self.clone(widths=resizing.outputs(shapes, hidden))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = layers.flatten(x)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)
