"""`runtime_env={"env_vars": …}`: the variables that tasks and actors find in their environment.

Who starts something hands its own on. See test_env_vars_at_start, too.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import skate


def having(**variables: str) -> dict[str, Any]:
    return {"runtime_env": {"env_vars": variables}}


@skate.remote(num_cpus=0.1)
def read(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


@skate.remote(num_cpus=0.1)
class Reader:
    def read(self, *names: str) -> list[str | None]:
        return [os.environ.get(name) for name in names]

    def run(self, function: Any) -> Any:
        return function()

    def start(self, child: str, options: dict[str, Any], *names: str) -> Any:
        return started(child, options, names)


@skate.remote(num_cpus=0.1)
def start(child: str, options: dict[str, Any], *names: str) -> Any:
    return started(child, options, names)


@skate.remote(num_cpus=0.1)
def run(function: Any) -> Any:
    return function()


def started(child: str, options: dict[str, Any], names: tuple[str, ...]) -> Any:
    call = read.options(**options) if child == "task" else Reader.options(**options).remote().read
    return skate.get(call.remote(*names), timeout=30)


@pytest.mark.usefixtures("cpu2")
class TestInheritance:
    @pytest.mark.parametrize("parent", ["task", "actor"])
    @pytest.mark.parametrize("child", ["task", "actor"])
    def test_of_whoever_starts_it_with_its_own_merged_over_them(self, parent: str, child: str) -> None:
        mine = having(A="parent", B="parent")
        call = start.options(**mine) if parent == "task" else Reader.options(**mine).remote().start
        plain = call.remote(child, {}, "A", "B", "C")
        merged = call.remote(child, having(B="child", C="child"), "A", "B", "C")
        nothing = call.remote(child, {"runtime_env": {}}, "A", "B", "C")
        assert skate.get([plain, merged, nothing], timeout=40) == [
            ["parent", "parent", None],
            ["parent", "child", "child"],
            ["parent", "parent", None],
        ]

    def test_down_to_grandchildren(self) -> None:
        def outer() -> Any:
            return skate.get(start.options(**having(B="2")).remote("actor", having(C="3"), "A", "B", "C"))

        assert skate.get(run.options(**having(A="1")).remote(outer), timeout=40) == ["1", "2", "3"]

    def test_the_driver_and_other_tasks_have_nothing_of_it(self) -> None:
        assert skate.get(read.options(**having(A="1")).remote("A"), timeout=20) == ["1"]
        assert skate.get(read.remote("A")) == [None]
        assert "A" not in os.environ

    def test_the_context_tells(self) -> None:
        seen = run.options(**having(A="1")).remote(lambda: skate.get_runtime_context().runtime_env)
        assert skate.get(seen, timeout=20) == {"env_vars": {"A": "1"}}
        assert skate.get_runtime_context().get_runtime_env_string() == "{}"


def test_what_a_dict_said_when_it_was_given_counts(cpu2) -> None:
    variables = {"A": "then"}
    before = read.options(runtime_env={"env_vars": variables})
    variables["A"] = "later"
    assert skate.get(before.remote("A"), timeout=20) == ["then"]


@pytest.mark.usefixtures("cpu2")
class TestReferences:
    """${NAME} is what the worker would have under that name without this variable, or what was said before."""

    def test_to_what_the_node_has(self) -> None:
        (plain,) = skate.get(read.remote("PATH"))
        more = having(PATH="/opt/x:${PATH}")
        assert skate.get(read.options(**more).remote("PATH"), timeout=20) == [f"/opt/x:{plain}"]
        assert skate.get(Reader.options(**more).remote().read.remote("PATH"), timeout=20) == [
            f"/opt/x:{plain}"
        ]

    def test_inherited_ones_are_not_expanded_twice(self) -> None:
        (plain,) = skate.get(read.remote("PATH"))
        nested = start.options(**having(PATH="/opt/x:${PATH}")).remote("task", having(B="b"), "PATH", "B")
        assert skate.get(nested, timeout=30) == [f"/opt/x:{plain}", "b"]

    def test_to_one_before_it_and_to_nothing(self) -> None:
        call = read.options(
            **having(FIRST="1", SECOND="${FIRST}2", NONE="<${SURELY_NOT_SET}>", PLAIN="$FIRST {a}")
        )
        found = skate.get(call.remote("SECOND", "NONE", "PLAIN"), timeout=20)
        assert found == ["12", "<>", "$FIRST {a}"]


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("A=1", TypeError),
        (["A"], TypeError),
        ({1: "a"}, TypeError),
        ({"A": 1}, TypeError),
        ({"A": None}, TypeError),
        ({"A": b"x"}, TypeError),
        ({"A=B": "x"}, ValueError),
        ({"": "x"}, ValueError),
        ({"A\0": "x"}, ValueError),
        ({"A": "x\0y"}, ValueError),
        ({"A": "\ud800"}, ValueError),
        ({"A": "x" * (1 << 17)}, ValueError),
    ],
)
@pytest.mark.parametrize("remote", [read, Reader])
def test_what_no_process_can_have_is_refused_where_it_is_said(remote: Any, value: Any, error: type) -> None:
    with pytest.raises(error, match="env_vars in runtime_env"):
        remote.options(runtime_env={"env_vars": value})
    with pytest.raises(error, match="env_vars in runtime_env"):
        skate.init(runtime_env={"env_vars": value})


def test_more_than_a_request_carries_is_refused_at_the_call(cpu2) -> None:
    many = having(**{f"A{number}": "x" * 1000 for number in range(70)})
    with pytest.raises(ValueError, match="65536 at most"):
        read.options(**many).remote("A1")
