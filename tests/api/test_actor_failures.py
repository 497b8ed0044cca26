"""What goes wrong with actors: constructors that fail, deaths, restarts, calls tried again; what `get` tells of it."""

import asyncio
import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import skate
from skate.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    OwnerDiedError,
    PendingCallsLimitExceeded,
    RayActorError,
    TaskError,
)

from .rendezvous import Gate, Tally, eventually, gone, lives

pytestmark = pytest.mark.usefixtures("cpu2")


class Glitch(ConnectionError):
    pass


class Base:
    """Counts its lives by a tally, if it gets one."""

    def __init__(self, lives: Tally | None = None, value: int = 0) -> None:
        self.life = lives.add() if lives else 1
        self.value = value

    def add(self, number: int = 1) -> int:
        self.value += number
        return self.value

    def pid(self) -> int:
        return os.getpid()

    def lived(self) -> int:
        return self.life

    def die(self, status: int = 1) -> None:
        os._exit(status)

    def die_until(self, attempt: int, tally: Tally) -> int:
        """End the process at every attempt before this one."""
        if tally.add() < attempt:
            os._exit(1)
        return tally.count

    def raise_until(self, attempt: int, tally: Tally, error: Exception) -> int:
        if tally.add() < attempt:
            raise error
        return tally.count

    def pass_gate(self, gate: Gate, tally: Tally | None = None) -> str:
        if tally:
            tally.add()
        gate.wait()
        return "through"

    def was_reconstructed(self) -> bool:
        return skate.get_runtime_context().was_current_actor_reconstructed

    def actor_id(self) -> str:
        return skate.get_runtime_context().get_actor_id()


Actor = skate.remote(Base)


@skate.remote
def add_from_elsewhere(actor: object) -> int:
    return skate.get(actor.add.remote())


def kill_process(actor: object) -> int:
    """SIGKILL, from outside; returns when it is gone."""
    pid = skate.get(actor.pid.remote())
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: gone(pid))
    return pid


def answer(actor: object) -> int:
    """What `add` gives, once the actor is there again."""

    def try_it() -> list[int]:
        try:
            return [skate.get(actor.add.remote(), timeout=20)]
        except ActorUnavailableError:
            return []

    return eventually(try_it)[0]


class TestConstructor:
    def test_its_exception_shows_in_the_first_get(self) -> None:
        @skate.remote
        class Failing:
            def __init__(self, what: str) -> None:
                raise LookupError(f"no {what} here")

            def hello(self) -> str:
                return "hello"

        failing = Failing.remote("bread")
        refs = [failing.hello.remote() for _ in range(3)]
        for ref in refs:
            with pytest.raises(ActorDiedError, match="LookupError: no bread here") as caught:
                skate.get(ref)
            assert caught.value.actor_init_failed
            assert "__init__" in str(caught.value)
        with pytest.raises(ActorDiedError, match="no bread here"):
            skate.get(failing.hello.remote())

    def test_and_in_every_process(self) -> None:
        @skate.remote
        class Failing:
            def __init__(self) -> None:
                raise LookupError("nothing here")

            def add(self) -> int:
                return 1

        with pytest.raises(ActorDiedError, match="nothing here"):
            skate.get(add_from_elsewhere.remote(Failing.remote()))

    def test_an_exception_is_no_reason_to_restart(self, tally: Tally) -> None:
        @skate.remote(max_restarts=3, max_task_retries=3)
        class Failing:
            def __init__(self) -> None:
                tally.add()
                raise LookupError("nothing here")

            def hello(self) -> str:
                return "hello"

        with pytest.raises(ActorDiedError, match="nothing here"):
            skate.get(Failing.remote().hello.remote())
        assert tally.count == 1

    def test_an_argument_that_failed(self) -> None:
        @skate.remote
        def fail() -> int:
            raise LookupError("early")

        with pytest.raises(ActorDiedError, match="early"):
            skate.get(Actor.remote(None, fail.remote()).add.remote())

    def test_a_crash_in_it(self) -> None:
        @skate.remote
        class Crashing:
            def __init__(self) -> None:
                os._exit(7)

            def hello(self) -> str:
                return "hello"

        with pytest.raises(ActorDiedError):
            skate.get(Crashing.remote().hello.remote())

    def test_a_crash_in_it_is_a_reason_to_restart(self, tally: Tally) -> None:
        @skate.remote(max_restarts=2)
        class Crashing:
            def __init__(self) -> None:
                if tally.add() < 3:
                    os._exit(7)

            def hello(self) -> str:
                return "hello"

        assert skate.get(Crashing.remote().hello.remote()) == "hello"
        assert tally.count == 3

    def test_which_ends_one_day(self, tally: Tally) -> None:
        @skate.remote(max_restarts=2)
        class Crashing:
            def __init__(self) -> None:
                tally.add()
                os._exit(7)

            def hello(self) -> str:
                return "hello"

        with pytest.raises(ActorDiedError):
            skate.get(Crashing.remote().hello.remote())
        assert tally.count == 3

    def test_killed_in_the_middle_of_it(self, gate: Gate, tally: Tally) -> None:
        @skate.remote
        class Slow(Base):
            def __init__(self) -> None:
                tally.add()
                gate.wait()

        slow = Slow.remote()
        ref = slow.pid.remote()
        eventually(lambda: tally.count)
        skate.kill(slow)
        with pytest.raises(ActorDiedError):
            skate.get(ref)

    def test_killed_before_it_was_placed(self) -> None:
        actor = Actor.options(num_cpus=64).remote()
        ref = actor.add.remote()
        skate.kill(actor)
        with pytest.raises(ActorDiedError):
            skate.get(ref, timeout=30)


class TestDeath:
    def test_what_runs_and_what_waits_fails(self, gate: Gate, tally: Tally) -> None:
        actor = Actor.remote()
        pid = skate.get(actor.pid.remote())
        refs = [actor.pass_gate.remote(gate, tally) for _ in range(3)]
        eventually(lambda: tally.count == 1)
        os.kill(pid, signal.SIGKILL)
        for ref in refs:
            with pytest.raises(ActorDiedError):
                skate.get(ref)
        assert tally.count == 1

    def test_so_does_what_is_asked_later(self) -> None:
        actor = Actor.remote()
        kill_process(actor)
        for _ in range(2):
            with pytest.raises(ActorDiedError):
                skate.get(actor.add.remote())

    def test_also_in_other_processes(self) -> None:
        actor = Actor.remote()
        kill_process(actor)
        with pytest.raises(ActorDiedError):
            skate.get(add_from_elsewhere.remote(actor))

    def test_also_with_an_argument_that_comes_later(self, gate: Gate) -> None:
        @skate.remote
        def late() -> int:
            gate.wait()
            return 1

        actor = Actor.remote()
        pid = skate.get(actor.pid.remote())
        waiting = actor.add.remote(late.remote())
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: gone(pid))
        gate.open()
        with pytest.raises(ActorDiedError):
            skate.get(waiting)

    def test_whoever_waits_hears_of_it(self, gate: Gate) -> None:
        @skate.remote
        def wait_for(refs: list) -> str:
            try:
                skate.get(refs)
            except RayActorError as error:
                return type(error).__name__
            return "nothing"

        actor = Actor.remote()
        pid = skate.get(actor.pid.remote())
        ref = actor.pass_gate.remote(gate)
        waiting = wait_for.remote([ref])
        os.kill(pid, signal.SIGKILL)
        assert skate.get(waiting) == "ActorDiedError"
        assert skate.wait([ref], timeout=20) == ([ref], [])

    def test_the_error_says_who_died(self) -> None:
        actor = Actor.options(name="the deceased").remote()
        pid = skate.get(actor.pid.remote())
        with pytest.raises(ActorDiedError) as caught:
            skate.get(actor.die.remote(3))
        said = str(caught.value)
        for part in ("Base", actor._actor_id.hex(), "the deceased", str(pid)):
            assert part in said
        assert caught.value.actor_id == actor._actor_id.hex()
        assert not caught.value.actor_init_failed

    @pytest.mark.differs_from_ray("Ray says that it died, and points to log files")
    def test_the_error_says_how(self) -> None:
        actor = Actor.remote()
        with pytest.raises(ActorDiedError, match="exit status 3"):
            skate.get(actor.die.remote(3))

        for number, name in ((signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV")):
            actor = Actor.remote()
            os.kill(skate.get(actor.pid.remote()), number)
            with pytest.raises(ActorDiedError, match=name):
                skate.get(actor.add.remote())

    @pytest.mark.differs_from_ray("Ray points to log files")
    def test_the_error_has_the_last_lines_of_stderr(self) -> None:
        @skate.remote
        class Talker:
            def last_words(self) -> None:
                print("famous last words", file=sys.stderr, flush=True)
                os._exit(1)

        with pytest.raises(ActorDiedError, match="famous last words"):
            skate.get(Talker.remote().last_words.remote())

    def test_the_error_of_a_later_call_says_the_same(self) -> None:
        actor = Actor.remote()
        with pytest.raises(ActorDiedError):
            skate.get(actor.die.remote(3))
        with pytest.raises(ActorDiedError) as caught:
            skate.get(actor.add.remote())
        assert actor._actor_id.hex() in str(caught.value)

    def test_system_exit_ends_it(self) -> None:
        @skate.remote
        class Leaver(Base):
            def leave(self) -> None:
                sys.exit(4)

        actor = Leaver.remote()
        pid = skate.get(actor.pid.remote())
        with pytest.raises(ActorDiedError):
            skate.get(actor.leave.remote())
        eventually(lambda: gone(pid))

    def test_what_it_answered_stays(self) -> None:
        @skate.remote
        class Maker(Base):
            def make(self, size: int) -> np.ndarray:
                return np.ones(size)

        maker = Maker.remote()
        refs = [maker.make.remote(10), maker.make.remote(1_000_000)]
        skate.wait(refs, num_returns=2)
        kill_process(maker)
        assert [array.sum() for array in skate.get(refs)] == [10, 1_000_000]

    @pytest.mark.differs_from_ray("what is small may have travelled with the ref")
    def test_what_it_put_goes_with_it(self) -> None:
        @skate.remote
        class Owner(Base):
            def own(self) -> list:
                return [skate.put("mine")]

        owner = Owner.remote()
        (ref,) = skate.get(owner.own.remote())
        kill_process(owner)
        with pytest.raises(OwnerDiedError):
            skate.get(ref, timeout=30)

    def test_actors_it_made_go_with_it(self) -> None:
        @skate.remote
        class Parent(Base):
            def child(self) -> object:
                return Actor.remote()

        parent = Parent.remote()
        child = skate.get(parent.child.remote())
        pid = skate.get(child.pid.remote())
        kill_process(parent)
        eventually(lambda: gone(pid))
        with pytest.raises(ActorDiedError):
            skate.get(child.add.remote())

    def test_what_it_started_goes_with_it(self) -> None:
        @skate.remote
        class Starter(Base):
            def start(self) -> int:
                return subprocess.Popen(["sleep", "1000"]).pid

        starter = Starter.remote()
        pid = skate.get(starter.start.remote())
        kill_process(starter)
        eventually(lambda: gone(pid))

    def test_its_arguments_are_let_go(self) -> None:
        # In a list, the actor borrows it; what it borrowed is given back for it.
        class Holder(Base):
            def hold(self, refs: list) -> None:
                self.refs = refs

        other = Actor.remote()
        other_pid = skate.get(other.pid.remote())
        holder = skate.remote(Holder).remote()
        skate.get(holder.hold.remote([other]))
        del other
        assert lives(other_pid)
        kill_process(holder)
        eventually(lambda: gone(other_pid))


class TestKill:
    def test_an_idle_one(self) -> None:
        actor = Actor.remote()
        pid = skate.get(actor.pid.remote())
        skate.kill(actor)
        eventually(lambda: gone(pid))
        with pytest.raises(ActorDiedError, match="kill"):
            skate.get(actor.add.remote())

    def test_a_busy_one(self, gate: Gate, tally: Tally) -> None:
        actor = Actor.remote()
        refs = [actor.pass_gate.remote(gate, tally) for _ in range(3)]
        eventually(lambda: tally.count)
        skate.kill(actor)
        for ref in refs:
            with pytest.raises(ActorDiedError, match="kill"):
                skate.get(ref)

    def test_at_once_after_it_was_made(self) -> None:
        for _ in range(5):
            actor = Actor.remote()
            ref = actor.add.remote()
            skate.kill(actor)
            try:
                assert skate.get(ref, timeout=30) == 1
            except ActorDiedError:
                pass

    def test_twice(self) -> None:
        actor = Actor.remote()
        skate.get(actor.add.remote())
        skate.kill(actor)
        skate.kill(actor)
        with pytest.raises(ActorDiedError):
            skate.get(actor.add.remote())
        skate.kill(actor)

    def test_by_a_task_and_by_another_actor(self) -> None:
        @skate.remote
        def kill(actor: object) -> None:
            skate.kill(actor)

        class Killer:
            def kill(self, actor: object) -> None:
                skate.kill(actor)

        for submit in (kill.remote, skate.remote(Killer).remote().kill.remote):
            actor = Actor.remote()
            pid = skate.get(actor.pid.remote())
            skate.get(submit(actor))
            eventually(lambda pid=pid: gone(pid))

    def test_does_not_restart_it(self, tally: Tally) -> None:
        actor = Actor.options(max_restarts=-1).remote(tally)
        skate.get(actor.add.remote())
        skate.kill(actor)
        with pytest.raises(ActorDiedError):
            skate.get(actor.add.remote())
        assert tally.count == 1

    def test_unless_that_is_asked_for(self, tally: Tally) -> None:
        actor = Actor.options(max_restarts=1, max_task_retries=-1).remote(tally)
        pid = skate.get(actor.pid.remote())
        skate.kill(actor, no_restart=False)
        eventually(lambda: gone(pid))
        assert skate.get(actor.pid.remote()) != pid
        assert tally.count == 2
        skate.kill(actor, no_restart=False)
        eventually(lambda: fails_for_good(actor))
        assert tally.count == 2

    def test_exit_handlers_do_not_run(self, tally: Tally) -> None:
        @skate.remote
        class Tidy(Base):
            def __init__(self) -> None:
                import atexit

                atexit.register(tally.add)

        tidy = Tidy.remote()
        pid = skate.get(tidy.pid.remote())
        skate.kill(tidy)
        eventually(lambda: gone(pid))
        assert tally.count == 0

    @pytest.mark.parametrize("thing", [3, None, "actor"], ids=repr)
    def test_only_actors(self, thing: object) -> None:
        with pytest.raises(ValueError, match="actor"):
            skate.kill(thing)

    def test_no_ref(self) -> None:
        with pytest.raises(ValueError, match="cancel"):
            skate.kill(skate.put(1))

    def test_many_at_once(self) -> None:
        actors = [Actor.remote() for _ in range(8)]
        pids = skate.get([actor.pid.remote() for actor in actors])
        for actor in actors:
            skate.kill(actor)
        eventually(lambda: all(map(gone, pids)))


def fails_for_good(actor: object) -> bool:
    try:
        skate.get(actor.add.remote(), timeout=20)
    except ActorDiedError:
        return True
    except ActorUnavailableError:
        pass
    return False


class TestRestart:
    def test_never_unless_asked(self, tally: Tally) -> None:
        actor = Actor.remote(tally)
        kill_process(actor)
        with pytest.raises(ActorDiedError):
            skate.get(actor.add.remote())
        assert tally.count == 1

    @pytest.mark.parametrize("restarts", [1, 2])
    def test_as_often_as_asked(self, restarts: int, tally: Tally) -> None:
        actor = Actor.options(max_restarts=restarts, max_task_retries=-1).remote(tally)
        for life in range(1, restarts + 2):
            assert skate.get(actor.lived.remote()) == life
            kill_process(actor)
        with pytest.raises(ActorDiedError):
            skate.get(actor.add.remote())
        assert tally.count == restarts + 1

    def test_without_end(self, tally: Tally) -> None:
        actor = Actor.options(max_restarts=-1, max_task_retries=-1).remote(tally)
        for life in range(1, 6):
            assert skate.get(actor.lived.remote()) == life
            kill_process(actor)
        assert skate.get(actor.lived.remote()) == 6

    def test_a_crash_loop_ends_with_the_last_handle(self, tally: Tally) -> None:
        """A constructor that ends its process, again and again, runs no more once nobody holds a handle."""

        @skate.remote(max_restarts=-1)
        class Crashes:
            def __init__(self) -> None:
                tally.add()
                os._exit(0)

        actor = Crashes.options(name="crashes").remote()
        eventually(lambda: tally.count > 2)
        assert "crashes" in skate.util.list_named_actors()
        del actor
        assert "crashes" not in skate.util.list_named_actors()
        begun = tally.count
        eventually(lambda: skate.available_resources().get("CPU") == 2)
        assert skate.get(Actor.remote().add.remote()) == 1
        assert tally.count <= begun + 1

    def test_it_begins_anew_from_its_arguments(self) -> None:
        actor = Actor.options(max_restarts=1, max_task_retries=-1).remote(None, 10)
        assert skate.get([actor.add.remote() for _ in range(5)])[-1] == 15
        kill_process(actor)
        assert skate.get(actor.add.remote()) == 11

    @pytest.mark.differs_from_ray("arguments in the object store may be gone by then, and it warns of that")
    def test_also_from_those_that_nobody_else_holds(self) -> None:
        class Holder(Base):
            def __init__(self, array: np.ndarray, refs: list) -> None:
                self.array, self.refs = array, refs

            def read(self) -> tuple[float, str]:
                return self.array.sum(), skate.get(self.refs[0])

        actor = (
            skate.remote(Holder)
            .options(max_restarts=1, max_task_retries=-1)
            .remote(skate.put(np.ones(1_000_000)), [skate.put("inside")])
        )
        assert skate.get(actor.read.remote()) == (1_000_000, "inside")
        kill_process(actor)
        assert skate.get(actor.read.remote()) == (1_000_000, "inside")

    def test_it_knows(self) -> None:
        actor = Actor.options(max_restarts=1, max_task_retries=-1).remote()
        assert skate.get(actor.was_reconstructed.remote()) is False
        kill_process(actor)
        assert skate.get(actor.was_reconstructed.remote()) is True

    def test_it_keeps_its_id_and_not_its_process(self) -> None:
        actor = Actor.options(max_restarts=1, max_task_retries=-1).remote()
        actor_id = skate.get(actor.actor_id.remote())
        pid = kill_process(actor)
        assert skate.get(actor.actor_id.remote()) == actor_id
        assert skate.get(actor.pid.remote()) != pid

    def test_every_handle_finds_it_again(self) -> None:
        class Caller:
            def __init__(self, actor: object) -> None:
                self.actor = actor

            def call(self) -> int:
                return skate.get(self.actor.add.remote())

        actor = Actor.options(max_restarts=1, max_task_retries=-1).remote()
        caller = skate.remote(Caller).remote(actor)
        assert skate.get([caller.call.remote(), caller.call.remote()]) == [1, 2]
        kill_process(actor)
        assert skate.get(caller.call.remote()) == 1
        assert skate.get(actor.add.remote()) == 2

    def test_after_the_death_of_a_call(self, tally: Tally) -> None:
        actor = Actor.options(max_restarts=1).remote(tally)
        with pytest.raises(RayActorError):
            skate.get(actor.die.remote())
        assert answer(actor) == 1
        assert tally.count == 2

    def test_what_runs_meanwhile_is_unavailable(self, gate: Gate, tally: Tally) -> None:
        actor = Actor.options(max_restarts=1).remote()
        pid = skate.get(actor.pid.remote())
        running = actor.pass_gate.remote(gate, tally)
        eventually(lambda: tally.count)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ActorUnavailableError) as caught:
            skate.get(running)
        assert actor._actor_id.hex() in str(caught.value)
        assert tally.count == 1
        assert answer(actor) == 1

    def test_a_call_made_meanwhile_is_unavailable(self, gate: Gate, tally: Tally) -> None:
        class Slow(Base):
            def __init__(self) -> None:
                super().__init__(tally)
                if self.life > 1:
                    gate.wait()

        actor = skate.remote(Slow).options(max_restarts=1).remote()
        kill_process(actor)
        eventually(lambda: tally.count == 2)
        with pytest.raises(ActorUnavailableError, match="restart"):
            skate.get(actor.add.remote(), timeout=20)
        gate.open()
        assert answer(actor) == 1

    def test_an_exit_is_no_reason(self, tally: Tally) -> None:
        class Leaver(Base):
            def leave(self) -> None:
                skate.actor.exit_actor()

        actor = skate.remote(Leaver).options(max_restarts=-1, max_task_retries=-1).remote(tally)
        with pytest.raises(ActorDiedError):
            skate.get(actor.leave.remote())
        with pytest.raises(ActorDiedError):
            skate.get(actor.add.remote())
        assert tally.count == 1

    def test_none_without_handles(self, tally: Tally) -> None:
        actor = Actor.options(max_restarts=-1).remote(tally)
        pid = skate.get(actor.pid.remote())
        del actor
        eventually(lambda: gone(pid))
        other = Actor.remote()  # time enough for one that would come back
        skate.get(other.add.remote())
        assert tally.count == 1

    def test_a_constructor_that_fails_the_second_time(self, tally: Tally) -> None:
        @skate.remote(max_restarts=5, max_task_retries=-1)
        class Moody(Base):
            def __init__(self) -> None:
                if tally.add() > 1:
                    raise LookupError("never again")

        moody = Moody.remote()
        kill_process(moody)
        with pytest.raises(ActorDiedError, match="never again"):
            skate.get(moody.pid.remote())
        assert tally.count == 2

    def test_its_process_does_not_inherit(self) -> None:
        class Setter(Base):
            def mark(self) -> None:
                os.environ["SKATE_TEST_MARK"] = "set"
                sys.modules["a_mark"] = sys

            def marked(self) -> bool:
                return "SKATE_TEST_MARK" in os.environ or "a_mark" in sys.modules

        actor = skate.remote(Setter).options(max_restarts=1, max_task_retries=-1).remote()
        skate.get(actor.mark.remote())
        assert skate.get(actor.marked.remote())
        kill_process(actor)
        assert not skate.get(actor.marked.remote())


class TestRetries:
    """`max_task_retries` counts tries of one call: after deaths always, after exceptions where that is asked."""

    def test_none_unless_asked(self, tally: Tally) -> None:
        actor = Actor.options(max_restarts=-1).remote()
        with pytest.raises(RayActorError):
            skate.get(actor.die_until.remote(99, tally))
        assert answer(actor) == 1
        assert tally.count == 1

    @pytest.mark.parametrize("retries", [1, 2])
    def test_as_often_as_asked(self, retries: int, tally: Tally) -> None:
        actor = Actor.options(max_restarts=-1, max_task_retries=retries).remote()
        with pytest.raises(RayActorError):
            skate.get(actor.die_until.remote(99, tally))
        assert answer(actor) >= 1
        assert tally.count == retries + 1

    def test_until_it_works(self, tally: Tally) -> None:
        actor = Actor.options(max_restarts=-1, max_task_retries=2).remote()
        assert skate.get(actor.die_until.remote(3, tally)) == 3

    def test_without_end(self, tally: Tally) -> None:
        actor = Actor.options(max_restarts=-1, max_task_retries=-1).remote()
        assert skate.get(actor.die_until.remote(6, tally)) == 6

    def test_not_beyond_the_last_restart(self, tally: Tally) -> None:
        actor = Actor.options(max_restarts=1, max_task_retries=-1).remote()
        with pytest.raises(ActorDiedError):
            skate.get(actor.die_until.remote(99, tally))
        assert tally.count == 2

    def test_said_by_the_method_and_by_the_call(self, tally: Tally) -> None:
        class Stubborn(Base):
            @skate.method(max_task_retries=3)
            def stubborn(self, attempt: int, tally: Tally) -> int:
                return self.die_until(attempt, tally)

        actor = skate.remote(Stubborn).options(max_restarts=-1).remote()
        assert skate.get(actor.stubborn.remote(4, tally)) == 4
        other = Tally(tally.path.with_name("other"))
        assert skate.get(actor.die_until.options(max_task_retries=1).remote(2, other)) == 2

    @pytest.mark.differs_from_ray("what is sent again may come after what was sent later")
    def test_the_order_stays(self, tally: Tally) -> None:
        class Log(Base):
            def note(self, number: int) -> tuple[int, int]:
                if number == 3 and tally.add() == 1:
                    os._exit(1)
                self.value += 1
                return number, self.value

        actor = skate.remote(Log).options(max_restarts=1, max_task_retries=-1).remote()
        noted = skate.get([actor.note.remote(i) for i in range(10)])
        assert [number for number, _ in noted] == list(range(10))
        later = [place for number, place in noted if number >= 3]
        assert later == sorted(later)

    def test_a_call_made_while_it_is_away_waits(self, gate: Gate, tally: Tally) -> None:
        class Slow(Base):
            def __init__(self) -> None:
                super().__init__(tally)
                if self.life > 1:
                    gate.wait()

        actor = skate.remote(Slow).options(max_restarts=1, max_task_retries=1).remote()
        kill_process(actor)
        eventually(lambda: tally.count == 2)
        ref = actor.add.remote()
        with pytest.raises(GetTimeoutError):
            skate.get(ref, timeout=0.05)
        gate.open()
        assert skate.get(ref) == 1

    def test_exceptions_are_not_tried_again(self, tally: Tally) -> None:
        actor = Actor.options(max_restarts=1, max_task_retries=3).remote()
        with pytest.raises(Glitch):
            skate.get(actor.raise_until.remote(99, tally, Glitch()))
        assert tally.count == 1

    def test_unless_asked(self, tally: Tally) -> None:
        class Stubborn(Base):
            @skate.method(max_task_retries=3, retry_exceptions=True)
            def stubborn(self, attempt: int, tally: Tally) -> int:
                return self.raise_until(attempt, tally, Glitch())

        actor = skate.remote(Stubborn).remote()
        assert skate.get(actor.stubborn.remote(4, tally)) == 4

    def test_and_no_more(self, tally: Tally) -> None:
        actor = Actor.remote()
        retried = actor.raise_until.options(max_task_retries=2, retry_exceptions=True)
        with pytest.raises(Glitch) as caught:
            skate.get(retried.remote(99, tally, Glitch("still")))
        assert isinstance(caught.value, TaskError)
        assert tally.count == 3

    def test_of_the_actor_too(self, tally: Tally) -> None:
        actor = Actor.options(max_task_retries=2).remote()
        assert skate.get(actor.raise_until.options(retry_exceptions=True).remote(3, tally, Glitch())) == 3

    @pytest.mark.parametrize("listed", [[Glitch], (KeyError, Glitch), [OSError]], ids=repr)
    def test_those_listed(self, listed: object, tally: Tally) -> None:
        retried = Actor.remote().raise_until.options(max_task_retries=-1, retry_exceptions=listed)
        assert skate.get(retried.remote(5, tally, Glitch())) == 5

    def test_not_those_that_are_not(self, tally: Tally) -> None:
        retried = Actor.remote().raise_until.options(max_task_retries=-1, retry_exceptions=[KeyError])
        with pytest.raises(Glitch):
            skate.get(retried.remote(5, tally, Glitch()))
        assert tally.count == 1

    def test_the_state_stays_after_an_exception(self, tally: Tally) -> None:
        class Stateful(Base):
            def flaky(self) -> int:
                self.value += 1
                if self.value < 3:
                    raise Glitch
                return self.value

        actor = skate.remote(Stateful).remote()
        assert skate.get(actor.flaky.options(max_task_retries=5, retry_exceptions=True).remote()) == 3

    def test_async_methods(self, tally: Tally) -> None:
        class Stubborn:
            @skate.method(max_task_retries=3, retry_exceptions=[Glitch])
            async def stubborn(self) -> int:
                if tally.add() < 3:
                    raise Glitch
                return tally.count

            @skate.method(max_task_retries=-1)
            async def die_until(self, attempt: int, tally: Tally) -> int:
                if tally.add() < attempt:
                    os._exit(1)
                return tally.count

        actor = skate.remote(Stubborn).options(max_restarts=-1).remote()
        assert skate.get(actor.stubborn.remote()) == 3
        assert skate.get(actor.die_until.remote(3, Tally(tally.path.with_name("other")))) == 3


class TestExit:
    def test_from_inside(self, tally: Tally) -> None:
        class Leaver(Base):
            def leave(self) -> None:
                import atexit

                atexit.register(tally.add)
                skate.actor.exit_actor()

        actor = skate.remote(Leaver).remote()
        pid = skate.get(actor.pid.remote())
        left, after = actor.leave.remote(), actor.add.remote()
        for ref in (left, after):
            with pytest.raises(ActorDiedError, match="exit_actor"):
                skate.get(ref)
        eventually(lambda: gone(pid))
        assert tally.count == 1

    def test_not_from_outside(self) -> None:
        with pytest.raises(TypeError, match="actor"):
            skate.actor.exit_actor()

        @skate.remote
        def leave() -> None:
            skate.actor.exit_actor()

        with pytest.raises(TypeError, match="actor"):
            skate.get(leave.remote())

    @pytest.mark.parametrize("kind", ["ordered", "groups", "asyncio"])
    @pytest.mark.parametrize("how", ["last handle", "exit_actor", "terminate", "thread", "sys.exit", "kill"])
    def test_what_runs_at_the_end_of_its_process(self, kind: str, how: str, tmp_path: Path) -> None:
        """In order, whatever ends it and however its calls run: atexit handlers, then its `__del__`, which has the
        runtime; and coroutines clear up. By kill nothing runs."""

        class Mortal:
            def __init__(self, path: Path) -> None:
                self.path, self.me = path, self  # a cycle
                self.ref = skate.put(1)
                atexit.register(self.note, path, "atexit")

            @staticmethod
            def note(path: Path, word: str) -> None:
                with open(path, "a") as file:
                    file.write(word + "\n")

            def end(self, how: str) -> None:
                if how == "exit_actor":
                    skate.actor.exit_actor()
                elif how == "sys.exit":
                    sys.exit()
                elif how == "thread":
                    thread = threading.Thread(target=skate.actor.exit_actor)
                    thread.start()
                    thread.join()

            def ping(self) -> int:
                return os.getpid()

            def __del__(self) -> None:
                self.note(self.path, f"del {skate.get(self.ref)}")

        class Async(Mortal):
            async def stay(self) -> None:
                try:
                    await asyncio.sleep(1000)
                finally:
                    self.note(self.path, "cleared up")

            async def ping(self) -> int:
                self.task = asyncio.ensure_future(self.stay())
                await asyncio.sleep(0)
                return os.getpid()

        options = {"groups": {"concurrency_groups": {"io": 2}}}
        cls = Async if kind == "asyncio" else Mortal
        actor = skate.remote(**options.get(kind, {"max_restarts": -1}))(cls).remote(tmp_path / "said")
        pid = skate.get(actor.ping.remote())
        if how == "last handle":
            del actor
        elif how == "kill":
            skate.kill(actor)
        else:
            with pytest.raises(ActorDiedError):
                skate.get(actor.__ray_terminate__.remote() if how == "terminate" else actor.end.remote(how))
            with pytest.raises(ActorDiedError):
                skate.get(actor.ping.remote())
        eventually(lambda: gone(pid))
        said = (tmp_path / "said").read_text().split("\n") if how != "kill" else []
        clears_up = ["cleared up"] if kind == "asyncio" else []
        assert said == ([*clears_up, "atexit", "del 1", ""] if said else [])

    @pytest.mark.parametrize("options", [{}, {"max_concurrency": 2}, {"asyncio": True}])
    @pytest.mark.parametrize("how", ["constructor", "callbacks"])
    def test_its_instance_goes_wherever_it_ends_itself(self, options: dict, how: str, tmp_path: Path) -> None:
        """In its constructor; in callbacks of its event loop, and more than once."""

        class Mortal:
            def __init__(self, path: Path, how: str) -> None:
                self.path, self.how = path, how
                if how == "constructor":
                    skate.actor.exit_actor()

            def end(self) -> None:
                skate.actor.exit_actor()

            def __del__(self) -> None:
                self.path.write_text(f"deleted {skate.get(skate.put(1))}")

        class Async(Mortal):
            async def end(self) -> None:
                for _ in range(2):
                    asyncio.get_running_loop().call_soon(skate.actor.exit_actor)
                await asyncio.sleep(1000)

        options = dict(options)
        cls = Async if options.pop("asyncio", False) else Mortal
        actor = skate.remote(num_cpus=1, **options)(cls).remote(tmp_path / "said", how)
        with pytest.raises(ActorDiedError):
            skate.get(actor.end.remote())
        eventually(lambda: (tmp_path / "said").exists() and (tmp_path / "said").read_text() == "deleted 1")

    def test_from_a_thread_while_nothing_runs(self, gate: Gate) -> None:
        class Watched(Base):
            def watch(self, gate: Gate) -> int:
                def leave() -> None:
                    gate.wait()
                    skate.actor.exit_actor()

                threading.Thread(target=leave).start()
                return os.getpid()

        for number in (1, 2):
            actor = skate.remote(Watched).options(max_restarts=-1, max_concurrency=number).remote()
            opens = Gate(gate.path.with_name(f"gate {number}"))
            pid = skate.get(actor.watch.remote(opens))
            opens.open()
            eventually(lambda pid=pid: gone(pid))
            with pytest.raises(ActorDiedError, match="exit_actor"):
                skate.get(actor.add.remote())

    def test_what_it_answered_before_stays(self) -> None:
        class Leaver(Base):
            def leave(self) -> None:
                skate.actor.exit_actor()

        actor = skate.remote(Leaver).remote()
        refs = [actor.add.remote() for _ in range(10)]
        actor.leave.remote()
        assert skate.get(refs) == list(range(1, 11))


class TestPendingCalls:
    def test_no_more_than_allowed(self, gate: Gate) -> None:
        actor = Actor.options(max_pending_calls=5).remote()
        skate.get(actor.add.remote())
        waiting = [actor.pass_gate.remote(gate) for _ in range(5)]
        with pytest.raises(PendingCallsLimitExceeded, match=r"max_pending_calls|5"):
            for _ in range(10):
                actor.add.remote()
        gate.open()
        assert skate.get(waiting) == ["through"] * 5
        eventually(lambda: skate.get(actor.add.remote()))

    def test_each_caller_counts_its_own(self, gate: Gate) -> None:
        # A limit of one caller's calls, as in Ray: another may still call.
        actor = Actor.options(max_pending_calls=2, max_concurrency=10).remote()
        waiting = [actor.pass_gate.remote(gate) for _ in range(2)]
        assert skate.get(add_from_elsewhere.remote(actor)) == 1
        gate.open()
        assert skate.get(waiting) == ["through"] * 2

    def test_no_limit_unless_said(self, gate: Gate) -> None:
        actor = Actor.remote()
        refs = [actor.pass_gate.remote(gate), *(actor.add.remote() for _ in range(1_000))]
        gate.open()
        assert skate.get(refs[-1]) == 1_000


class TestAwkwardMoments:
    """SIGKILL when it suits least; what is asked with enough retries is answered all the same."""

    def test_between_its_making_and_its_first_call(self, tally: Tally) -> None:
        actor = Actor.options(max_restarts=-1, max_task_retries=-1).remote(tally)
        eventually(lambda: tally.count)
        pid = skate.get(actor.pid.remote())
        os.kill(pid, signal.SIGKILL)
        assert skate.get(actor.add.remote()) == 1  # asked before anybody can have noticed

    def test_in_the_middle_of_many_calls(self) -> None:
        class Echo(Base):
            def echo(self, number: int) -> int:
                return number

        actor = skate.remote(Echo).options(max_restarts=-1, max_task_retries=-1).remote()
        refs = []
        for start in range(0, 500, 100):
            pid = skate.get(actor.pid.remote())
            refs += [actor.echo.remote(start + i) for i in range(100)]
            os.kill(pid, signal.SIGKILL)
        assert skate.get(refs) == list(range(500))

    @pytest.mark.parametrize("threads", [1, 4])
    def test_in_the_middle_of_large_results(self, threads: int) -> None:
        class Maker(Base):
            def make(self, number: int) -> np.ndarray:
                return np.full(50_000, number)

        always = {"max_restarts": -1, "max_task_retries": -1}
        actor = skate.remote(Maker).options(max_concurrency=threads, **always).remote()
        for round_number in range(8):
            pid = skate.get(actor.pid.remote())
            refs = [actor.make.remote(i) for i in range(20)]
            skate.wait(refs, num_returns=1 + 2 * round_number)
            os.kill(pid, signal.SIGKILL)
            assert [int(array[0]) for array in skate.get(refs)] == list(range(20))

    def test_while_it_waits_for_a_task(self, gate: Gate, tally: Tally) -> None:
        @skate.remote
        def late() -> str:
            tally.add()
            gate.wait()
            return "late"

        class Waiter(Base):
            def wait(self) -> str:
                return skate.get(late.options(num_cpus=0).remote())

        actor = skate.remote(Waiter).options(max_restarts=-1, max_task_retries=-1).remote()
        pid = skate.get(actor.pid.remote())
        ref = actor.wait.remote()
        eventually(lambda: tally.count)
        os.kill(pid, signal.SIGKILL)
        gate.open()
        assert skate.get(ref) == "late"

    def test_again_and_again_in_its_constructor(self, tally: Tally) -> None:
        @skate.remote(max_restarts=-1, max_task_retries=-1)
        class Fragile(Base):
            def __init__(self) -> None:
                super().__init__()
                if tally.add() < 5:
                    os.kill(os.getpid(), signal.SIGKILL)

        assert skate.get(Fragile.remote().add.remote()) == 1
        assert tally.count == 5

    def test_while_threads_and_coroutines_run(self, gate: Gate, tally: Tally) -> None:
        class Coroutines:
            async def work(self, number: int) -> int:
                import asyncio

                tally.add()
                while not gate.is_open:
                    await asyncio.sleep(0.005)
                return number

            def pid(self) -> int:
                return os.getpid()

        class Threads(Base):
            def work(self, number: int) -> int:
                tally.add()
                gate.wait()
                return number

        always = {"max_restarts": -1, "max_task_retries": -1, "max_concurrency": 5}
        for cls in (Coroutines, Threads):
            before = tally.count
            actor = skate.remote(cls).options(**always).remote()
            pid = skate.get(actor.pid.remote())
            refs = [actor.work.remote(i) for i in range(5)]
            eventually(lambda before=before: tally.count == before + 5)
            os.kill(pid, signal.SIGKILL)
            eventually(lambda before=before: tally.count == before + 10)
            gate.open()
            assert skate.get(refs) == list(range(5))
            gate.path.unlink()

    def test_of_several_that_call_one_another(self) -> None:
        class Link(Base):
            def __init__(self, following: object = None) -> None:
                super().__init__()
                self.following = following

            def length(self) -> int:
                return 1 + (skate.get(self.following.length.remote()) if self.following else 0)

        always = skate.remote(Link).options(max_restarts=-1, max_task_retries=-1)
        first = always.remote()
        second = always.remote(first)
        third = always.remote(second)
        assert skate.get(third.length.remote()) == 3
        for pid in skate.get([first.pid.remote(), second.pid.remote()]):
            os.kill(pid, signal.SIGKILL)
        assert skate.get(third.length.remote()) == 3

    def test_stopped_is_not_dead(self) -> None:
        actor = Actor.remote()
        pid = skate.get(actor.pid.remote())
        os.kill(pid, signal.SIGSTOP)
        ref = actor.add.remote()
        with pytest.raises(GetTimeoutError):
            skate.get(ref, timeout=0.1)
        os.kill(pid, signal.SIGCONT)
        assert skate.get(ref) == 1

    def test_killed_while_stopped(self) -> None:
        actor = Actor.remote()
        pid = skate.get(actor.pid.remote())
        os.kill(pid, signal.SIGSTOP)
        ref = actor.add.remote()
        skate.kill(actor)
        with pytest.raises(ActorDiedError):
            skate.get(ref)
        eventually(lambda: gone(pid))

    def test_many_at_once(self) -> None:
        actors = [Actor.options(max_restarts=1, max_task_retries=-1).remote() for _ in range(8)]
        pids = skate.get([actor.pid.remote() for actor in actors])
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        start = time.monotonic()
        assert skate.get([actor.add.remote() for actor in actors]) == [1] * 8
        assert time.monotonic() - start < 20
