"""Sparsity as a function of the step.

A schedule lists the steps at which the mask changes and the sparsity from each on. It is computed
on the host in double precision, so that a count like `round(0.9 * 11_164_352)` is exact.

Steps are updates of the optimiser, the first of them number 0. A training of n updates has no step
n: the last change of a schedule has to be at n - 1 or before.
"""

from collections.abc import Callable, Sequence

from prunejax import checks, names

Schedule = Sequence[tuple[int, float]]


def one_shot(sparsity: float, step: int = 0) -> Schedule:
    """Everything at once, at `step`: s_t = sparsity for t >= step, as in SNIP (Lee et al. 2019).

    Raises:
      ValueError: a sparsity outside [0, 1), or a step below 0.
    """
    checks.integer("step", step, least=0)
    checks.number("sparsity", sparsity, within="[0, 1)")
    return [(step, sparsity)]


def cubic(
    sparsity: float, *, begin: int = 0, end: int, frequency: int = 100, initial: float = 0.0
) -> Schedule:
    """Gradual pruning, fast at first: s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (t_1 - t_0))^3.

    Zhu & Gupta (2018), equation 1. The mask changes at `begin`, then every `frequency` steps, and
    last at `end`, where the sparsity is `sparsity` exactly.

    Args:
      sparsity: final sparsity s_f in [0, 1).
      begin: first step t_0.
      end: last step t_1.
      frequency: steps between two changes.
      initial: sparsity s_i at `begin`.

    Raises:
      ValueError: a sparsity outside [0, 1) or below `initial`, an end before the begin, a
        frequency below 1.
    """
    checks.number("sparsity", sparsity, within="[0, 1)")
    checks.number("initial", initial, within="[0, 1)")
    if initial > sparsity:
        raise ValueError(
            f"initial is {initial}; masks are nested, so at most {sparsity} is possible."
        )
    steps = [*_steps(begin, end, frequency)]

    def at(step: int) -> float:
        left = 1 - (step - begin) / (end - begin)
        return sparsity + (initial - sparsity) * left**3

    return [(step, at(step)) for step in steps] + [(end, sparsity)]


def constant_rate(sparsity: float, *, begin: int = 0, end: int, frequency: int = 100) -> Schedule:
    """The same share p of what is left goes each time: s_i = 1 - (1 - p)^i.

    p = 1 - (1 - sparsity)^(1/k) for k changes, the last of them at `end`. Lottery tickets are found
    so, with p = 0.2 (Frankle & Carbin 2019), and SynFlow prunes so, with k = 100 (Tanaka
    et al. 2020).

    Args:
      sparsity: final sparsity in [0, 1).
      begin: step of the first change.
      end: step of the last one.
      frequency: steps between two changes.

    Raises:
      ValueError: as for `cubic`.
    """
    checks.number("sparsity", sparsity, within="[0, 1)")
    steps = [*_steps(begin, end, frequency), end]
    shares = [i / len(steps) for i in range(1, len(steps))]
    sparsities = [1 - (1 - sparsity) ** share for share in shares]
    return list(zip(steps, [*sparsities, sparsity], strict=True))


def iterative(
    rates: Sequence[float] = (1, 2, 4, 8, 16, 32, 64), *, begin: int = 0, frequency: int
) -> Schedule:
    """Compression by the rates c one after another, to the sparsities 1 - 1 / c.

    Merkle et al. (2021) prune so, with retraining in between.

    Args:
      rates: c, at least 1 and increasing.
      begin: step of the first change.
      frequency: steps between two changes.

    Raises:
      ValueError: rates below 1 or not increasing, a begin below 0 or a frequency below 1.
    """
    rates = list(rates)
    if not rates or rates != sorted(set(rates)) or not 1 <= rates[0] <= rates[-1] < float("inf"):
        raise ValueError(f"rates is {rates}; it needs numbers of at least 1, increasing.")
    _steps(begin, begin, frequency)
    return [(begin + i * frequency, 1 - 1 / rate) for i, rate in enumerate(rates)]


def alternating(
    sparsity: float, *, begin: int = 0, end: int, sparse: int, dense: int | None = None
) -> Schedule:
    """AC/DC: sparse and dense phases in turn, sparse for good from `end` on.

    Peste et al. (2021). The network is dense until `begin`, then `sparse` steps at
    `sparsity`, then `dense` steps without mask, and so on. Weights come back, from zero, so it
    needs `pruning.optimizer(..., nested=False)`.

    Args:
      sparsity: of the sparse phases, in [0, 1).
      begin: step of the first sparse phase.
      end: first step of the last one.
      sparse: steps of a sparse phase.
      dense: steps of a dense phase; as many by default.

    Raises:
      ValueError: a sparsity outside [0, 1), an end before the begin, a phase below 1 step.
    """
    checks.number("sparsity", sparsity, within="[0, 1)")
    dense = sparse if dense is None else dense
    checks.integer("sparse", sparse, least=1)
    checks.integer("dense", dense, least=1)
    changes = []
    for step in _steps(begin, end, sparse + dense):
        changes += [(step, sparsity), (step + sparse, 0.0)]
    changes = [change for change in changes if change[0] < end]
    if not changes or changes[-1][1] != sparsity:
        changes.append((end, sparsity))
    return changes


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "one_shot": one_shot,
    "cubic": cubic,
    "constant_rate": constant_rate,
    "iterative": iterative,
    "alternating": alternating,
}


def schedule(name: str, **options) -> Schedule:
    """The schedule called `name`, a key of `SCHEDULES`, with these options.

    Raises:
      ValueError: an unknown name or option, or a value out of range.
    """
    return names.build("schedule", name, SCHEDULES, options)


def _steps(begin: int, end: int, frequency: int) -> range:
    """Those of the changes before the last one."""
    for name, step, least in (("begin", begin, 0), ("end", end, 0), ("frequency", frequency, 1)):
        checks.integer(name, step, least=least)
    if begin > end:
        raise ValueError(f"begin is {begin} and end is {end}; 0 <= begin <= end is needed.")
    return range(begin, end, frequency)
