"""A network evaluated anew only where a small window of its images has changed.

For searches whose queries change one window, at a place that is the same for the whole batch:

    changes = incremental.windowed(classifier, images, (3, 3))
    kept = changes.start(images)  # a full pass
    logits, fresh = changes.look(kept, corner, patch)  # a query
    kept = changes.keep(kept, corner, fresh, better(logits))

all of it under `jax.jit`, the last two lines in a loop that carries `kept`: its arrays are then
changed in place. Logits agree with those of a full pass but for rounding, which adds up from
`keep` to `keep` in dense layers on all pixels and in means over them: start anew every hundred
queries or so. Below 32 bits such layers are computed entirely instead.

Wrap `look` and `start` in `prunejax.canonical.canonical` for fast convolutions.
"""

from prunejax.incremental.changes import Changes, windowed

__all__ = ["Changes", "windowed"]
