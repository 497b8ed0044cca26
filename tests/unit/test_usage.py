"""The report of resources reads as the one on the page."""

from __future__ import annotations

from skate.core.group_names import of_bundle
from skate.core.usage import describe_resources

ONE = 10_000
G = "ab" * 16


def test_as_on_the_page() -> None:
    group = of_bundle(G, 0, {"CPU": ONE, "GPU": ONE})
    report = describe_resources(
        {"CPU": 2 * ONE, "GPU": 2 * ONE, "memory": int(3.46 * 2**30) * ONE, "node:127.0.0.1": ONE} | group,
        {
            "CPU": ONE,
            "GPU": ONE,
            "memory": int(3.46 * 2**30) * ONE,
            "node:127.0.0.1": ONE,
            f"GPU_group_{G}": ONE,
        },
        [],
        [([{"CPU": 1.0}, {"GPU": 2.0}], "PACK", True)],
    )
    assert report.splitlines()[2:] == [
        "Usage:",
        " 1.0/2.0 CPU (1.0 used of 1.0 reserved in placement groups)",
        " 0.0/2.0 GPU (0.0 used of 1.0 reserved in placement groups)",
        " 0B/3.46GiB memory",
        "",
        "Demands:",
        " {'CPU': 1.0} * 1, {'GPU': 2.0} * 1 (PACK): 1+ pending placement groups",
    ]


def test_nothing_waits() -> None:
    assert describe_resources({"CPU": 2 * ONE}, {}, [], []).splitlines()[-4:] == [
        " 2.0/2.0 CPU",
        "",
        "Demands:",
        " (no resource demands)",
    ]


def test_what_waits() -> None:
    report = describe_resources(
        {},
        {},
        [
            ({"CPU": 1.0}, 2, True),
            ({"CPU": 1.0}, 3, True),
            ({"x": 9.0}, 1, False),
            ({f"CPU_group_{G}": 1.0, f"bundle_group_{G}": 0.001}, 2, True),
        ],
        [([{"CPU": 1.0}] * 2, "SPREAD", False)] * 3,
    )
    assert report.splitlines()[-4:] == [
        " {'CPU': 1.0}: 5+ pending tasks/actors",
        " {'x': 9.0}: 1+ pending tasks/actors (no node is large enough)",
        " {'CPU in group abababab': 1.0}: 2+ pending tasks/actors",
        " {'CPU': 1.0} * 2 (SPREAD): 3+ pending placement groups (the cluster is too small)",
    ]
