"""AutoAttack, and its counterpart for L0: cascades of complementary attacks."""

import functools

from prunejax import checks
from prunejax.attacks.apgd import APGD
from prunejax.attacks.apgd_l1 import APGDL1
from prunejax.attacks.cascade import Cascade
from prunejax.attacks.fab import FAB
from prunejax.attacks.fmn import FMN
from prunejax.attacks.pgd import PGD
from prunejax.attacks.sigma_zero import SigmaZero
from prunejax.attacks.sparse_rs import SparseRS
from prunejax.attacks.square import Square

VERSIONS = ("standard", "plus", "rand")


def autoattack(
    *, norm: str = "linf", version: str = "standard", individual: bool = False
) -> Cascade:
    """AutoAttack of Croce & Hein (2020), "Reliable evaluation of adversarial robustness with an
    ensemble of diverse parameter-free attacks"; in L1 that of Croce & Hein (2021), "Mind the box".

        standard   APGD-CE, APGD-T (9 targets), FAB-T (9 targets), Square (5,000 queries); in L1
                   APGD-CE with 5 restarts and APGD-T with 5 targets
        plus       APGD-CE, APGD-DLR, FAB, Square, 5 tries each but Square; APGD-T, FAB-T. The
                   first try of FAB begins at the image, as a member of its own. FAB looks at the
                   9 likeliest of the other classes; the authors' at all, however many there are
        rand       APGD-CE and APGD-DLR, for networks made by `expectation`

    In L1 every APGD has larger budgets first. The authors' code, which warns that "plus" is made
    for Linf and L2, gives them to "standard" alone.

    Args:
      norm: "linf", "l2" or "l1".
      version: one of `VERSIONS`.
      individual: as in `Cascade`.

    Raises:
      ValueError: another norm or version.
    """
    if norm not in ("linf", "l2", "l1"):
        raise ValueError(
            f"norm is {norm!r}; AutoAttack knows 'linf', 'l2' and 'l1', for 'l0' there is "
            "'l0_ensemble'."
        )
    if version not in VERSIONS:
        raise ValueError(f"version is {version!r}; it must be one of {', '.join(VERSIONS)}.")
    sparse = functools.partial(APGDL1, larger_budgets=True)
    apgd = sparse if norm == "l1" else functools.partial(APGD, norm=norm)
    targeted = {"apgd_t": apgd(loss="dlr", targets=9), "fab_t": FAB(norm=norm, targets=9)}
    square = {"square": Square(norm=norm)}
    if version == "standard":
        members = {"apgd_ce": apgd()} | targeted | square
        if norm == "l1":
            members["apgd_ce"] = apgd(restarts=5)
            members["apgd_t"] = apgd(loss="dlr", targets=5)
    elif version == "plus":
        members = {
            "apgd_ce": apgd(restarts=5),
            "apgd_dlr": apgd(loss="dlr", restarts=5),
            "fab": FAB(norm=norm),
            "fab_restarts": FAB(norm=norm, restarts=4, random_start=True),
        }
        members |= square | targeted
    else:
        members = {"apgd_ce": apgd(), "apgd_dlr": apgd(loss="dlr")}
    return Cascade(norm=norm, members=tuple(members.items()), individual=individual)


def l0_ensemble(
    *, norm: str = "l0", steps: int = 1000, queries: int = 10_000, individual: bool = False
) -> Cascade:
    """The strongest attacks that change few features, worst case for each example.

    sigma-zero, FMN, PGD and Sparse-RS in `norm`.

    Args:
      norm: "l0" or "l0_pixels".
      steps: of the gradient attacks; PGD gets a tenth, with 10 restarts.
      queries: of Sparse-RS.
      individual: as in `Cascade`.

    Raises:
      ValueError: another norm, or steps or queries that are no integers of at least 1.
    """
    if norm not in ("l0", "l0_pixels"):
        raise ValueError(f"norm is {norm!r}; the L0 ensemble counts in 'l0' or 'l0_pixels'.")
    checks.integer("queries", queries, least=1)  # Sparse-RS would call them steps
    members = {
        "sigma_zero": SigmaZero(norm=norm, steps=steps),
        "fmn": FMN(norm=norm, steps=steps),
        "pgd": PGD(norm=norm, steps=max(steps // 10, 1), restarts=10),
        "sparse_rs": SparseRS(norm=norm, steps=queries),
    }
    return Cascade(norm=norm, members=tuple(members.items()), individual=individual)
