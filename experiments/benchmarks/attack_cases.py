"""Which attacks are compared: each of ours, and the same of other libraries with equal settings.

Steps, restarts and queries are equal on both sides, and mostly fewer than the defaults, so that a
row for 200 images takes about a minute on two cores. PGD is set to the peers' loss, the
cross-entropy, and its peer in L1 to a random start; DDN and FMN step on the margin here and on the
cross-entropy or the logits' difference elsewhere, as is each library's default.

Not the same algorithm elsewhere, or none from PyPI: PGD in L0, Sparse-RS, and the L0 ensembles, one
with its budget in features and one in pixels. JSMA and one-pixel are in torchattacks only; JSMA is
targeted by nature, so there both head for the class that is likeliest after the label (torchattacks
by itself takes the label plus one), and torchattacks goes on until that very class is predicted.
DDN, FMN and sigma-zero make 10 forward passes more than elsewhere, back to the boundary.
Carlini-Wagner of torchattacks has one c and no search for it, so it is left out. EAD is the elastic
net's attack, beside which PDPGD has no other L1 peer of its kind.
"""

from collections.abc import Mapping
from typing import NamedTuple

from experiments.benchmarks import peer_attacks as peer
from prunejax import attacks


class Case(NamedTuple):
    """One of our attacks, its budget (None: minimum norm), and the same attack elsewhere."""

    attack: attacks.Attack | attacks.Cascade
    eps: float | None
    peers: Mapping[str, peer.Peer]


def cases(eps: Mapping[str, float]) -> dict[str, Case]:
    """All comparisons, by name, at these budgets in "linf", "l2", "l1" and "l0_pixels"."""
    return _fixed_budget(eps) | _minimum_norm() | _sparse(eps["l0_pixels"])


def _fixed_budget(eps: Mapping[str, float]) -> dict[str, Case]:
    linf, l2, l1 = eps["linf"], eps["l2"], eps["l1"]
    share = 2.5 / 40  # a step of PGD, of eps
    pgd = {"steps": 40, "loss": "cross_entropy"}
    momentum = attacks.PGD(
        steps=10, loss="cross_entropy", momentum=1.0, relative_step=0.1, random_start=False
    )
    return {
        "fgsm": Case(
            attacks.FGSM(),
            linf,
            {
                "foolbox": peer.foolbox("LinfFastGradientAttack"),
                "torchattacks": peer.torchattacks("FGSM", eps=True),
            },
        ),
        "fgsm_l2": Case(
            attacks.FGSM(norm="l2"), l2, {"foolbox": peer.foolbox("L2FastGradientAttack")}
        ),
        "pgd_momentum": Case(
            momentum,
            linf,
            {
                "foolbox": peer.foolbox(
                    "LinfMomentumIterativeFastGradientMethod",
                    steps=10,
                    momentum=1.0,
                    rel_stepsize=0.1,
                ),
                "torchattacks": peer.torchattacks(
                    "MIFGSM", eps=True, steps=10, alpha=0.1 * linf, decay=1.0
                ),
            },
        ),
        "pgd": Case(
            attacks.PGD(**pgd),
            linf,
            {
                "foolbox": peer.foolbox("LinfPGD", steps=40, rel_stepsize=share),
                "torchattacks": peer.torchattacks("PGD", eps=True, steps=40, alpha=share * linf),
            },
        ),
        "pgd_l2": Case(
            attacks.PGD(norm="l2", **pgd),
            l2,
            {
                "foolbox": peer.foolbox("L2PGD", steps=40, rel_stepsize=share),
                "torchattacks": peer.torchattacks("PGDL2", eps=True, steps=40, alpha=share * l2),
            },
        ),
        "pgd_l1": Case(
            attacks.PGD(norm="l1", **pgd),
            l1,
            {"foolbox": peer.foolbox("SparseL1DescentAttack", steps=40, random_start=True)},
        ),
        "apgd_ce": Case(attacks.APGD(), linf, {"pyautoattack": peer.apgd("linf", "ce")}),
        "apgd_ce_l2": Case(attacks.APGD(norm="l2"), l2, {"pyautoattack": peer.apgd("l2", "ce")}),
        "apgd_ce_l1": Case(
            attacks.APGDL1(larger_budgets=True),
            l1,
            {"pyautoattack": peer.apgd("l1", "ce", larger_budgets=True)},
        ),
        "apgd_dlr": Case(
            attacks.APGD(loss="dlr"), linf, {"pyautoattack": peer.apgd("linf", "dlr")}
        ),
        "apgd_dlr_l2": Case(
            attacks.APGD(norm="l2", loss="dlr"), l2, {"pyautoattack": peer.apgd("l2", "dlr")}
        ),
        "apgd_dlr_l1": Case(
            attacks.APGDL1(loss="dlr", larger_budgets=True),
            l1,
            {"pyautoattack": peer.apgd("l1", "dlr", larger_budgets=True)},
        ),
        "apgd_t": Case(
            attacks.APGD(loss="dlr", targets=9), linf, {"pyautoattack": peer.apgd_t("linf", 9)}
        ),
        "apgd_t_l2": Case(
            attacks.APGD(norm="l2", loss="dlr", targets=9),
            l2,
            {"pyautoattack": peer.apgd_t("l2", 9)},
        ),
        "apgd_t_l1": Case(  # 5 targets as in AutoAttack
            attacks.APGDL1(loss="dlr", targets=5, larger_budgets=True),
            l1,
            {"pyautoattack": peer.apgd_t("l1", 5, larger_budgets=True)},
        ),
        "square": Case(attacks.Square(), linf, {"pyautoattack": peer.square("linf", 5000)}),
        "square_l2": Case(
            attacks.Square(norm="l2", steps=1000), l2, {"pyautoattack": peer.square("l2", 1000)}
        ),
        "square_l1": Case(
            attacks.Square(norm="l1", steps=1000), l1, {"pyautoattack": peer.square("l1", 1000)}
        ),
        "autoattack": Case(attacks.autoattack(), linf, {"pyautoattack": peer.autoattack("linf")}),
        "autoattack_plus": Case(
            attacks.autoattack(version="plus"),
            linf,
            {"pyautoattack": peer.autoattack("linf", "plus")},
        ),
        "autoattack_rand": Case(
            attacks.autoattack(version="rand"),
            linf,
            {"pyautoattack": peer.autoattack("linf", "rand")},
        ),
        "autoattack_l2": Case(
            attacks.autoattack(norm="l2"), l2, {"pyautoattack": peer.autoattack("l2")}
        ),
        "autoattack_l1": Case(
            attacks.autoattack(norm="l1"), l1, {"pyautoattack": peer.autoattack("l1")}
        ),
    }


def _minimum_norm() -> dict[str, Case]:
    jumps = {"steps": 32, "initial_gradient_eval_steps": 40}  # 154 queries an estimate on average
    return {
        "deepfool": Case(
            attacks.DeepFool(), None, {"foolbox": peer.foolbox("L2DeepFoolAttack", steps=50)}
        ),
        "deepfool_linf": Case(
            attacks.DeepFool(norm="linf"),
            None,
            {"foolbox": peer.foolbox("LinfDeepFoolAttack", steps=50)},
        ),
        "carlini_wagner": Case(
            attacks.CarliniWagner(steps=9 * 300, rounds=9, learning_rate=0.05),
            None,
            {
                "adv-lib": peer.adv_lib(
                    "carlini_wagner_l2",
                    max_iterations=300,
                    binary_search_steps=9,
                    learning_rate=0.05,
                ),
                "foolbox": peer.foolbox(
                    "L2CarliniWagnerAttack", steps=300, binary_search_steps=9, stepsize=0.05
                ),
            },
        ),
        "ddn": Case(
            attacks.DDN(steps=100),
            None,
            {
                "adv-lib": peer.adv_lib("ddn", steps=100, levels=None),
                "foolbox": peer.foolbox("DDNAttack", steps=100),
            },
        ),
        "pdpgd": Case(
            attacks.PDPGD(steps=500),
            None,
            {
                "adv-lib": peer.adv_lib("pdpgd", norm=1, num_steps=500),
                "foolbox": peer.foolbox(  # of another kind, and nine times 200 steps
                    "EADAttack", steps=200, binary_search_steps=9, decision_rule="L1"
                ),
            },
        ),
        "fmn_linf": _fmn("linf", float("inf"), 100, stepsize=10.0),
        "fmn_l2": _fmn("l2", 2, 100),
        "fmn_l1": _fmn("l1", 1, 100),
        "fab": Case(attacks.FAB(), None, {"pyautoattack": peer.fab("linf")}),
        "fab_t": Case(attacks.FAB(targets=9), None, {"pyautoattack": peer.fab_t("linf")}),
        "fab_t_l2": Case(
            attacks.FAB(norm="l2", targets=9), None, {"pyautoattack": peer.fab_t("l2")}
        ),
        "fab_t_l1": Case(
            attacks.FAB(norm="l1", targets=9), None, {"pyautoattack": peer.fab_t("l1")}
        ),
        "brendel_bethge_linf": _brendel_bethge("linf"),
        "brendel_bethge_l2": _brendel_bethge("l2"),
        "brendel_bethge_l1": _brendel_bethge("l1"),
        "hopskipjump": Case(
            attacks.HopSkipJump(steps=32, queries=154),
            None,
            {"foolbox": peer.foolbox("HopSkipJumpAttack", starts=True, constraint="l2", **jumps)},
        ),
        "hopskipjump_linf": Case(
            attacks.HopSkipJump(norm="linf", steps=32, queries=154),
            None,
            {"foolbox": peer.foolbox("HopSkipJumpAttack", starts=True, constraint="linf", **jumps)},
        ),
    }


def _sparse(pixels: float) -> dict[str, Case]:
    few = max(1, int(pixels))
    return {
        "fmn_l0": _fmn("l0", 0, 1000),
        "sigma_zero": Case(
            attacks.SigmaZero(), None, {"adv-lib": peer.adv_lib("sigma_zero", num_steps=1000)}
        ),
        "brendel_bethge_l0": _brendel_bethge("l0"),
        "jsma": Case(attacks.JSMA(steps=20), None, {"torchattacks": peer.jsma(20)}),
        "pgd_l0_pixels": Case(attacks.PGD(norm="l0_pixels", steps=100, restarts=5), pixels, {}),
        "sparse_rs": Case(attacks.SparseRS(steps=1000), pixels, {}),
        "l0_ensemble": Case(attacks.l0_ensemble(queries=1000), pixels, {}),
        "l0_ensemble_pixels": Case(attacks.l0_ensemble(norm="l0_pixels", queries=1000), pixels, {}),
        "one_pixel": Case(
            attacks.OnePixel(pixels=few, steps=30, population=90),
            pixels,
            {"torchattacks": peer.torchattacks("OnePixel", pixels=few, steps=30, popsize=90)},
        ),
    }


def _fmn(norm: str, order: float, steps: int, stepsize: float = 1.0) -> Case:
    """Ours has a step size of its own by default."""
    name = {"linf": "LInf", "l2": "L2", "l1": "L1", "l0": "L0"}[norm]
    return Case(
        attacks.FMN(norm=norm, steps=steps),
        None,
        {
            "adv-lib": peer.adv_lib("fmn", norm=order, steps=steps, α_init=stepsize),
            "foolbox": peer.foolbox(f"{name}FMNAttack", steps=steps, max_stepsize=stepsize),
        },
    )


def _brendel_bethge(norm: str) -> Case:
    return Case(
        attacks.BrendelBethge(norm=norm, steps=200),
        None,
        {"foolbox": peer.brendel_bethge(norm, steps=200)},
    )
