"""The tables of the attacks beside their peers say what was measured."""

import pathlib

from experiments.benchmarks import attack_tables, timing

RESULTS = pathlib.Path(attack_tables.__file__).parent / "results"


def report(**rows):
    """Of invented measurements: by attack (eps, ours, peer), each (left of 1,000, median)."""

    def row(attack, library, eps, left, median):
        return {
            "attack": attack,
            "library": library,
            "norm": "l2",
            "eps": eps,
            "examples": 1000,
            "robust": left,
            "success": 1 - left / 1000,
            "median_distance": median,
            "mean_distance_of_found": median,
            "seconds": 4.0 if library == "prunejax" else 6.0,
            "peak_memory_mib": 100.0,
        }

    return {
        "data": "invented",
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"cores": 2, "processor": "Some", "python": "3.11", "backend": "cpu"},
        "versions": {"jax": "1.0"},
        "compile_seconds": 1.0,
        "measurements": [
            row(attack, library, eps, *values)
            for attack, (eps, *both) in rows.items()
            for library, values in zip(("prunejax", "peer"), both, strict=False)
        ],
    }


def cells(page):
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_what_is_weaker_than_a_peer_stands_out():
    page = attack_tables.markdown(
        [
            report(
                as_strong=(0.5, (103, 9.0), (100, 1.0)),
                weaker=(0.5, (104, 9.0), (100, 1.0)),
                as_near=(None, (0, 1.02), (0, 1.0)),
                farther=(None, (0, 1.021), (0, 1.0)),
                alone=(0.5, (104, 9.0)),
            )
        ]
    )
    assert cells(page) == [
        ["`as_strong`", "l2", "0.5", "prunejax", "103", "89.7", "", "", "4.0", "250", "", "100"],
        ["", "", "", "peer", "100", "90.0", "", "", "6.0", "167", "1.50", "100"],
        ["`weaker`", "l2", "0.5", "prunejax", "**104**", "89.6", "", "", "4.0", "250", "", "100"],
        ["", "", "", "peer", "100", "90.0", "", "", "6.0", "167", "1.50", "100"],
        ["`as_near`", "l2", "", "prunejax", "0", "100.0", "1.02", "1.02", "4.0", "250", "", "100"],
        ["", "", "", "peer", "0", "100.0", "1", "1", "6.0", "167", "1.50", "100"],
        [
            "`farther`", "l2", "", "prunejax", "0", "100.0", "**1.021**", "1.021", "4.0", "250",
            "", "100",
        ],
        ["", "", "", "peer", "0", "100.0", "1", "1", "6.0", "167", "1.50", "100"],
        ["`alone`", "l2", "0.5", "prunejax", "104", "89.6", "", "", "4.0", "250", "", "100"],
    ]  # fmt: skip
    assert "## invented\n\n2026-01-02, 2 cores of a machine with Some, Python 3.11" in page


def test_an_accelerator_is_named():
    accelerated = report(alone=(0.5, (104, 9.0)))
    accelerated["machine"] |= {"backend": "gpu", "device": "Some GPU", "devices": 1}
    page = attack_tables.markdown([accelerated])
    assert "2026-01-02, 1 Some GPU, 2 cores of a machine with Some, Python 3.11" in page


def test_what_is_compiled_within_something_else_is_counted_once():
    assert timing.covered([(5, 6), (0, 4), (1, 2), (3, 4.5)]) == 5.5
    assert timing.covered([]) == 0


def test_the_committed_page_is_that_of_the_committed_runs():
    page = attack_tables.markdown(attack_tables.reports(RESULTS))
    assert (RESULTS / "attacks.md").read_text() == page
