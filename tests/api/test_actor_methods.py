"""Which attributes of a class are methods of its actors: all that can be called on an instance."""

import functools
from typing import Any

import pytest
import skate

pytestmark = pytest.mark.usefixtures("cpu2")


def actor_of(cls: type, *args: Any, **kwargs: Any) -> Any:
    return skate.remote(cls).options(num_cpus=0).remote(*args, **kwargs)


class TestHiddenByAttributes:
    """The class's method is called, whatever `self` has under its name."""

    @pytest.mark.parametrize("options", [{}, {"max_concurrency": 2}], ids=["one at a time", "threads"])
    def test_a_number(self, options: dict) -> None:
        class Counter:
            def __init__(self) -> None:
                self.value = 0  # type: ignore[method-assign]

            def increase(self) -> None:
                self.value += 1  # type: ignore[operator]

            def value(self) -> int:
                return self.value  # type: ignore[return-value]

        counter = skate.remote(Counter).options(num_cpus=0, **options).remote()
        skate.get(counter.increase.remote())
        assert skate.get(counter.value.remote()) == 1

    def test_of_an_asyncio_actor(self) -> None:
        class Counter:
            def __init__(self) -> None:
                self.value = lambda: "not this"  # type: ignore[method-assign]

            async def value(self) -> str:
                return "this"

        assert skate.get(actor_of(Counter).value.remote()) == "this"

    def test_static_and_class_methods(self) -> None:
        class Both:
            def __init__(self) -> None:
                self.static = self.of_class = 3  # type: ignore[method-assign]

            @staticmethod
            def static(x: int) -> int:
                return x

            @classmethod
            def of_class(cls, x: int) -> tuple[str, int]:
                return cls.__name__, x

        actor = actor_of(Both)
        assert skate.get([actor.static.remote(1), actor.of_class.remote(2)]) == [1, ("Both", 2)]


class TestInherited:
    """Methods of built-in base classes are methods, those of operators, too."""

    def test_a_set(self) -> None:
        class Words(set):
            pass

        words = actor_of(Words, ["not"])
        words.add.remote("to")
        words.update.remote(["be"])
        assert skate.get(words.copy.remote()) == {"not", "to", "be"}
        assert skate.get([words.__len__.remote(), words.__contains__.remote("be")]) == [3, True]

    def test_a_dict(self) -> None:
        class Counts(dict):
            def total(self) -> int:
                return sum(self.values())

        counts = actor_of(Counts, a=1, b=2)
        counts.update.remote({"c": 4})
        counts.__setitem__.remote("d", 8)
        assert skate.get([counts.total.remote(), counts.get.remote("a"), counts.pop.remote("d")]) == [
            15,
            1,
            8,
        ]
        assert skate.get(counts.fromkeys.remote("xy", 3)) == {"x": 3, "y": 3}

    def test_a_list_whose_signatures_are_known(self) -> None:
        class Items(list):
            def append(self, item: object) -> None:
                super().append(("mine", item))

        items = actor_of(Items, [1])
        items.append.remote(2)
        assert skate.get([items.index.remote(1), items.__getitem__.remote(1)]) == [0, ("mine", 2)]
        with pytest.raises(TypeError, match=r"Items\.append"):
            items.append.remote(1, 2)

    def test_one_that_is_made_by_new(self) -> None:
        class Point(tuple):
            def __new__(cls, x: int, y: int) -> "Point":
                return super().__new__(cls, (x, y))

        class Names(frozenset):
            pass

        point, names = actor_of(Point, 3, y=4), actor_of(Names, ["a"])
        assert skate.get([point.index.remote(4), names.union.remote("b")]) == [1, {"a", "b"}]
        with pytest.raises(TypeError, match="Point"):
            actor_of(Point, 3)

    def test_of_functools(self) -> None:
        class Odd:
            def add(self, a: int, b: int) -> int:
                return a + b

            increase = functools.partialmethod(add, 1)
            size = len

            @property
            def none(self) -> None:
                raise AssertionError("it is no method")

        odd = actor_of(Odd)
        calls = [odd.increase.remote(2), odd.size.remote("abc")]
        assert skate.get(calls) == [3, 3]
        assert not hasattr(odd, "none")


def test_dir_names_each_method_once() -> None:
    class Actor:
        def m(self) -> int:
            return 1

        def n(self) -> int:
            return 2

    actor = actor_of(Actor)
    assert skate.get([actor.m.remote(), actor.n.remote()]) == [1, 2]
    assert [name for name in dir(actor) if not name.startswith("_")] == ["m", "n"]
