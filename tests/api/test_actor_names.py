"""Named actors: found by name in their namespace, made once by whoever comes first, free again after their death."""

import atexit
import os
import signal
import threading
import uuid

import psutil
import pytest
import skate
from skate.exceptions import RayActorError

from .rendezvous import Gate, Tally, eventually, gone

pytestmark = pytest.mark.usefixtures("cpu2")


@skate.remote
class Counter:
    def __init__(self, value: int = 0, tally: Tally | None = None) -> None:
        self.value = value
        if tally:
            tally.add()

    def increment(self) -> int:
        self.value += 1
        return self.value

    def pid(self) -> int:
        return os.getpid()

    def name(self) -> str:
        return skate.get_runtime_context().get_actor_name()

    def namespace(self) -> str:
        return skate.get_runtime_context().namespace


@skate.remote
def increment_by_name(name: str, namespace: str | None = None) -> int:
    return skate.get(skate.get_actor(name, namespace=namespace).increment.remote())


@pytest.fixture
def name() -> str:
    """Of its own for each test."""
    return f"counter-{uuid.uuid4().hex[:8]}"


@skate.remote
class SlowToEnd:
    def end_when(self, gate: Gate) -> int:
        atexit.register(gate.wait)
        return os.getpid()

    def leave(self) -> None:
        skate.actor.exit_actor()


@skate.remote
class Maker:
    """Owns what it makes for others."""

    def make(self, name: str) -> object:
        return Counter.options(name=name).remote()


def is_free(name: str, namespace: str | None = None) -> bool:
    try:
        skate.get_actor(name, namespace=namespace)
    except ValueError:
        return True
    return False


class TestName:
    def test_is_found(self, name: str) -> None:
        counter = Counter.options(name=name).remote()
        skate.get(counter.increment.remote())
        again = skate.get_actor(name)
        assert again == counter
        assert skate.get(again.increment.remote()) == 2

    def test_in_tasks_and_in_actors(self, name: str) -> None:
        @skate.remote
        class Finder:
            def find(self) -> int:
                return skate.get(skate.get_actor(name).increment.remote())

        counter, finder = Counter.options(name=name).remote(), Finder.remote()
        assert skate.get(increment_by_name.remote(name)) == 1
        assert skate.get(finder.find.remote()) == 2
        assert skate.get(counter.increment.remote()) == 3

    def test_of_one_that_a_task_made(self, name: str) -> None:
        @skate.remote
        def make() -> object:
            return Counter.options(name=name).remote(5)

        counter = skate.get(make.remote())
        assert skate.get(skate.get_actor(name).increment.remote()) == 6
        assert skate.get(counter.name.remote()) == name

    def test_as_soon_as_it_is_asked_for(self, name: str, gate: Gate) -> None:
        @skate.remote
        class Slow:
            def __init__(self) -> None:
                gate.wait()

            def through(self) -> str:
                return "through"

        slow = Slow.options(name=name).remote()
        ref = skate.get_actor(name).through.remote()
        gate.open()
        assert skate.get([ref, slow.through.remote()]) == ["through"] * 2

    def test_it_knows_its_own(self, name: str) -> None:
        counter, nameless = Counter.options(name=name).remote(), Counter.remote()
        assert skate.get(counter.name.remote()) == name
        assert not skate.get(nameless.name.remote())

    def test_taken_raises_at_once(self, name: str) -> None:
        counter = Counter.options(name=name).remote()
        with pytest.raises(ValueError, match=f"{name}") as caught:
            Counter.options(name=name).remote()
        assert isinstance(caught.value, skate.exceptions.ActorAlreadyExistsError)
        assert skate.get(counter.increment.remote()) == 1

    def test_taken_also_in_a_task(self, name: str) -> None:
        @skate.remote
        def make() -> None:
            Counter.options(name=name).remote()

        counter = Counter.options(name=name).remote()
        skate.get(counter.increment.remote())
        with pytest.raises(ValueError, match=name):
            skate.get(make.remote())

    def test_free_again_after_the_last_handle(self, name: str) -> None:
        counter = Counter.options(name=name).remote()
        pid = skate.get(counter.pid.remote())
        del counter
        eventually(lambda: gone(pid))
        eventually(lambda: is_free(name))
        again = Counter.options(name=name).remote(10)
        assert skate.get(again.increment.remote()) == 11

    def test_free_again_after_kill(self, name: str) -> None:
        counter = Counter.options(name=name).remote()
        skate.get(counter.increment.remote())
        skate.kill(counter)
        eventually(lambda: is_free(name))
        again = Counter.options(name=name).remote()
        assert skate.get(again.increment.remote()) == 1
        with pytest.raises(RayActorError):
            skate.get(counter.increment.remote())

    @pytest.mark.differs_from_ray("the name is taken as long as there are handles")
    def test_free_again_after_a_crash(self, name: str) -> None:
        counter = Counter.options(name=name).remote()
        os.kill(skate.get(counter.pid.remote()), 9)
        eventually(lambda: is_free(name))

    @pytest.mark.differs_from_ray("the name is taken as long as there are handles")
    def test_free_again_after_a_constructor_that_failed(self, name: str) -> None:
        @skate.remote
        class Failing:
            def __init__(self) -> None:
                raise LookupError("never there")

            def hello(self) -> None: ...

        failing = Failing.options(name=name).remote()
        with pytest.raises(RayActorError):
            skate.get(failing.hello.remote())
        eventually(lambda: is_free(name))

    def test_kept_over_a_restart(self, name: str) -> None:
        counter = Counter.options(name=name, max_restarts=1, max_task_retries=-1).remote()
        pid = skate.get(counter.pid.remote())
        os.kill(pid, 9)
        eventually(lambda: gone(pid))
        assert skate.get(skate.get_actor(name).pid.remote()) != pid

    def test_unknown_raises(self, name: str) -> None:
        with pytest.raises(ValueError, match=name):
            skate.get_actor(name)

    @pytest.mark.parametrize("wrong", ["", None], ids=repr)
    def test_an_empty_one_raises(self, wrong: object) -> None:
        with pytest.raises(ValueError):
            skate.get_actor(wrong)

    def test_one_that_is_no_text(self) -> None:
        with pytest.raises(TypeError, match="name"):
            Counter.options(name=3).remote()

    def test_any_text(self) -> None:
        for name in ("with space", "ünïcödé 漢字", "a/b/../c", "x" * 500):
            counter = Counter.options(name=name).remote()
            assert skate.get_actor(name) == counter

    def test_a_handle_by_name_does_not_keep_it(self, name: str) -> None:
        # As in Ray: who finds an actor by name has no say in how long it lives.
        counter = Counter.options(name=name).remote()
        found = skate.get_actor(name)
        pid = skate.get(found.pid.remote())
        del counter
        eventually(lambda: gone(pid))
        with pytest.raises(RayActorError):
            skate.get(found.increment.remote())

    def test_classes_may_differ(self, name: str) -> None:
        @skate.remote
        class Other:
            def hello(self) -> str:
                return "hello"

        counter = Counter.options(name=name).remote()
        other = Other.options(name=f"{name}-other").remote()
        assert skate.get(skate.get_actor(f"{name}-other").hello.remote()) == "hello"
        with pytest.raises(AttributeError, match="hello"):
            skate.get_actor(name).hello  # noqa: B018
        del counter, other


class TestNamespace:
    def test_one_name_in_two(self, name: str) -> None:
        here = Counter.options(name=name).remote(10)
        there = Counter.options(name=name, namespace="there").remote(20)
        assert skate.get_actor(name) == here != there
        assert skate.get_actor(name, namespace="there") == there
        assert skate.get(increment_by_name.remote(name, "there")) == 21

    def test_another_is_not_seen(self, name: str) -> None:
        there = Counter.options(name=name, namespace="there").remote()
        with pytest.raises(ValueError, match=name):
            skate.get_actor(name)
        with pytest.raises(ValueError, match=name):
            skate.get_actor(name, namespace="elsewhere")
        del there

    def test_taken_in_it(self, name: str) -> None:
        there = Counter.options(name=name, namespace="there").remote()
        with pytest.raises(ValueError, match="there"):
            Counter.options(name=name, namespace="there").remote()
        del there

    def test_an_actor_stays_in_that_of_the_driver(self, name: str) -> None:
        there = Counter.options(name=name, namespace="there").remote()
        assert skate.get(there.namespace.remote()) == skate.get_runtime_context().namespace

    def test_a_wrong_one(self, name: str) -> None:
        for make in (
            lambda wrong: Counter.options(name=name, namespace=wrong).remote(),
            lambda wrong: skate.get_actor(name, namespace=wrong),
        ):
            with pytest.raises(TypeError):
                make(3)
            with pytest.raises(ValueError):
                make("")


class TestBoundToEnd:
    """An actor that nobody holds, or that has said that it leaves, has no name any more, long before its process has
    ended, and whoever made it: nobody gets a handle of it by that name, and others may take it."""

    @pytest.mark.parametrize("made_here", [True, False])
    def test_is_not_found(self, name: str, made_here: bool) -> None:
        maker = None if made_here else Maker.remote()
        for _ in range(5):
            counter = (
                Counter.options(name=name).remote() if maker is None else skate.get(maker.make.remote(name))
            )
            assert skate.get(skate.get_actor(name).increment.remote()) == 1
            del counter
            assert is_free(name)

    @pytest.mark.parametrize("made_here", [True, False])
    def test_its_name_can_be_taken(self, name: str, made_here: bool) -> None:
        maker = None if made_here else Maker.remote()
        for _ in range(5):
            counter = (
                Counter.options(name=name).remote() if maker is None else skate.get(maker.make.remote(name))
            )
            del counter
            counter = Counter.options(name=name, get_if_exists=True).remote(10)
            assert skate.get(counter.increment.remote()) == 11
            del counter

    @pytest.mark.parametrize("leaves", [True, False])
    def test_its_end_does_not_disturb_the_new_owner(self, name: str, leaves: bool, gate: Gate) -> None:
        first = SlowToEnd.options(name=name).remote()
        pid = skate.get(first.end_when.remote(gate))
        if leaves:
            first.leave.remote()
            eventually(lambda: is_free(name))
        else:
            del first
        second = Counter.options(name=name).remote(5)
        assert skate.get(second.increment.remote()) == 6
        assert not gone(pid)
        gate.open()
        eventually(lambda: gone(pid))
        assert skate.get(skate.get_actor(name).increment.remote()) == 7

    def test_a_handle_that_is_on_its_way_keeps_the_name(self, name: str) -> None:
        """Somebody else has it, or will: the maker knows."""
        holder = Counter.remote()
        counter = Counter.options(name=name).remote()
        skate.get(
            holder.__ray_call__.remote(lambda self, counter: setattr(self, "counter", counter), counter)
        )
        del counter
        assert skate.get(skate.get_actor(name).increment.remote()) == 1
        skate.get(holder.__ray_call__.remote(lambda self: delattr(self, "counter")))
        eventually(lambda: is_free(name))

    def test_whose_maker_cannot_say(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is stopped, say: then the name counts, after a while; nobody waits for ever."""
        monkeypatch.setattr("skate.runtime.actors.ANSWER_SECONDS", 0.2)
        maker = Maker.remote()
        pid = skate.get(maker.__ray_call__.remote(lambda self: os.getpid()))
        counter = skate.get(maker.make.remote(name))
        skate.get(
            maker.__ray_call__.remote(lambda self: None)
        )  # and what gave the handle away has let go of it
        os.kill(pid, signal.SIGSTOP)
        try:
            assert skate.get(skate.get_actor(name).increment.remote()) == 1
            with pytest.raises(ValueError):
                Counter.options(name=name).remote()
        finally:
            os.kill(pid, signal.SIGCONT)
        monkeypatch.undo()  # from here on it answers, however busy the machine is
        del counter
        assert is_free(name)

    def test_what_its_maker_said_to_an_earlier_question_does_not_count(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first one was given up while the maker stood still: it is answered when the maker goes on, and then the
        last handle has gone."""
        maker = Maker.remote()
        pid = skate.get(maker.__ray_call__.remote(lambda self: os.getpid()))
        counter = skate.get(maker.make.remote(name))
        skate.get(maker.__ray_call__.remote(lambda self: None))
        os.kill(pid, signal.SIGSTOP)
        goes_on = threading.Timer(0.5, os.kill, (pid, signal.SIGCONT))
        try:
            with monkeypatch.context() as patch:
                patch.setattr("skate.runtime.actors.ANSWER_SECONDS", 0.1)
                assert skate.get_actor(name) == counter
            del counter
            goes_on.start()
            assert is_free(name)
        finally:
            os.kill(pid, signal.SIGCONT)
            goes_on.cancel()

    def test_whose_making_was_interrupted(self, name: str) -> None:
        """Nobody got a handle of it, and nobody ever will: a detached one would have the name for ever."""

        def interrupt(*_: object) -> None:
            raise InterruptedError

        (node,) = (each for each in psutil.Process().children() if "skate.node" in " ".join(each.cmdline()))
        before = signal.signal(signal.SIGUSR1, interrupt)
        node.suspend()
        try:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with pytest.raises(InterruptedError):
                Counter.options(name=name, lifetime="detached").remote()
        finally:
            node.resume()
            signal.signal(signal.SIGUSR1, before)
        assert is_free(name)
        assert skate.get(Counter.options(name=name).remote().increment.remote()) == 1


class TestGetIfExists:
    def test_is_made_once(self, name: str, tally: Tally) -> None:
        shared = Counter.options(name=name, get_if_exists=True)
        first, second = shared.remote(5, tally), shared.remote(50, tally)
        assert first == second
        assert skate.get([first.increment.remote(), second.increment.remote()]) == [6, 7]
        assert tally.count == 1

    def test_by_many_at_once(self, name: str, tally: Tally) -> None:
        @skate.remote(num_cpus=0.25)
        def get_or_make(parties: Tally) -> tuple[object, int]:
            parties.meet(4)
            counter = Counter.options(name=name, get_if_exists=True).remote(0, tally)
            return counter, skate.get(counter.increment.remote())

        parties = Tally(tally.path.with_name("parties"))
        made = skate.get([get_or_make.remote(parties) for _ in range(4)])
        assert len({counter for counter, _ in made}) == 1
        assert sorted(value for _, value in made) == [1, 2, 3, 4]
        assert tally.count == 1

    def test_by_threads_at_once(self, name: str, tally: Tally) -> None:
        from concurrent.futures import ThreadPoolExecutor

        shared = Counter.options(name=name, get_if_exists=True)
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda _: shared.remote(0, tally), range(16)))
        assert len(set(made)) == 1
        assert skate.get(made[0].increment.remote()) == 1
        assert tally.count == 1

    def test_again_after_its_death(self, name: str, tally: Tally) -> None:
        shared = Counter.options(name=name, get_if_exists=True)
        first = shared.remote(0, tally)
        skate.get(first.increment.remote())
        skate.kill(first)
        eventually(lambda: is_free(name))
        assert skate.get(shared.remote(0, tally).increment.remote()) == 1
        assert tally.count == 2

    def test_needs_a_name(self) -> None:
        with pytest.raises(ValueError, match="name"):
            Counter.options(get_if_exists=True).remote()


class TestList:
    def test_those_of_this_namespace(self, name: str) -> None:
        named = [Counter.options(name=f"{name}-{i}").remote() for i in range(3)]
        there = Counter.options(name=f"{name}-there", namespace="there").remote()
        nameless = Counter.remote()
        listed = skate.util.list_named_actors()
        assert {entry for entry in listed if entry.startswith(name)} == {f"{name}-{i}" for i in range(3)}
        everywhere = skate.util.list_named_actors(all_namespaces=True)
        assert {"name": f"{name}-there", "namespace": "there"} in everywhere
        assert {"name": f"{name}-0", "namespace": skate.get_runtime_context().namespace} in everywhere
        del named, there, nameless

    def test_none_that_is_dead(self, name: str) -> None:
        counter = Counter.options(name=name).remote()
        assert name in skate.util.list_named_actors()
        skate.kill(counter)
        eventually(lambda: name not in skate.util.list_named_actors())

    def test_in_a_task(self, name: str) -> None:
        counter = Counter.options(name=name).remote()
        assert name in skate.get(skate.remote(lambda: skate.util.list_named_actors()).remote())
        del counter


class TestDetached:
    def test_lives_on_without_handles_until_killed(self, name: str) -> None:
        Counter.options(name=name, lifetime="detached").remote(5)
        pid = skate.get(skate.get_actor(name).pid.remote())
        other = Counter.remote()  # one that ends meanwhile, as this one must not
        other_pid = skate.get(other.pid.remote())
        del other
        eventually(lambda: gone(other_pid))
        counter = skate.get_actor(name)
        assert skate.get([counter.increment.remote(), counter.pid.remote()]) == [6, pid]
        skate.kill(counter)
        eventually(lambda: gone(pid))
        eventually(lambda: is_free(name))

    def test_made_in_a_task_whose_worker_ends(self, name: str) -> None:
        @skate.remote(max_calls=1)
        def make() -> int:
            counter = Counter.options(name=name, lifetime="detached").remote(5)
            skate.get(counter.increment.remote())
            return os.getpid()

        worker = skate.get(make.remote())
        eventually(lambda: gone(worker))
        counter = skate.get_actor(name)
        assert skate.get(counter.increment.remote()) == 7
        skate.kill(counter)

    def test_non_detached_is_as_if_nothing_was_said(self, name: str) -> None:
        counter = Counter.options(name=name, lifetime="non_detached").remote()
        pid = skate.get(counter.pid.remote())
        del counter
        eventually(lambda: gone(pid))
