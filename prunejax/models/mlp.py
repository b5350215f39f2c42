"""Multi-layer perceptron; its default is the 300-100 network that Merkle et al. (2021) prune."""

import flax.linen as nn
import jax

from prunejax.models import layers


class MLP(nn.Module):
    """Dense layers with ReLU between them, on flattened images of any shape."""

    num_classes: int
    widths: tuple[int, ...] = (300, 100)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = layers.flatten(x)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)
