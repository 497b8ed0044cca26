"""Rounds of who has still to speak about a death: they end with the last answer, whatever dies meanwhile."""

from __future__ import annotations

from skate.core.references import AskSettled, References
from skate.core.settling import DEAD_REMEMBERED, AskToSpeak, Settling, TellSettled
from skate.ids import NodeId, ProcessId, manager_of, process_id

HERE, THERE, ELSEWHERE = NodeId(b"here"), NodeId(b"ther"), NodeId(b"else")
A, B, C, DEAD = (process_id(HERE, number) for number in range(1, 5))


def asked(settling: Settling) -> dict[ProcessId, int]:
    effects = settling.take_effects()
    assert all(type(effect) is AskToSpeak for effect in effects), effects
    return {effect.to: effect.number for effect in effects}


def test_who_asks_hears_when_all_have_spoken() -> None:
    settling = Settling()
    settling.process_died(DEAD, [A, B], [THERE])
    assert settling.known_to(DEAD) == [manager_of(THERE)]
    settling.asked(A, DEAD, [A, B], [manager_of(THERE)])
    numbers = asked(settling)
    assert set(numbers) == {A, B, manager_of(THERE)}
    settling.asked(B, DEAD, [A, B], [manager_of(THERE)])
    assert not settling.take_effects(), "the round that runs is for both"
    for who, number in numbers.items():
        settling.check()
        settling.spoken(who, number)
    assert settling.take_effects() == [TellSettled(A, DEAD, None), TellSettled(B, DEAD, None)]
    assert not settling.rounds


def test_it_begins_anew_where_one_dies_that_has_not_spoken() -> None:
    """Also with those that have spoken, and with the nodes that this one knew: it may have handed on what it had."""
    settling = Settling()
    settling.process_died(DEAD, [A, B, C], [])
    settling.asked(A, DEAD, [A, B, C], [])
    before = asked(settling)
    settling.spoken(A, before[A])
    settling.process_died(B, [A, C], [ELSEWHERE])
    again = asked(settling)
    assert set(again) == {A, C, manager_of(ELSEWHERE)}
    settling.spoken(C, before[C])
    assert not settling.take_effects(), "that was about the first death alone"
    for who, number in again.items():
        settling.spoken(who, number)
    assert settling.take_effects() == [TellSettled(A, DEAD, None)]


def test_who_has_spoken_may_die() -> None:
    settling = Settling()
    settling.asked(A, DEAD, [A, B], [])
    numbers = asked(settling)
    settling.spoken(B, numbers[B])
    settling.process_died(B, [A], [])
    assert not settling.take_effects()
    settling.spoken(A, numbers[A])
    assert settling.take_effects() == [TellSettled(A, DEAD, None)]


def test_nothing_is_asked_for_the_dead() -> None:
    settling = Settling()
    settling.asked(A, DEAD, [A, B], [])
    settling.process_died(A, [B], [])
    assert not settling.rounds
    settling.asked(manager_of(THERE), DEAD, [B], [], number=7)
    settling.node_died(THERE)
    assert not settling.rounds


def test_a_node_that_dies_has_spoken() -> None:
    settling = Settling()
    settling.asked(A, THERE, [A], [manager_of(ELSEWHERE)])
    settling.spoken(A, asked(settling)[A])
    settling.node_died(ELSEWHERE)
    assert settling.take_effects() == [TellSettled(A, THERE, None)]


def test_a_manager_is_answered_by_its_number_and_has_a_round_of_its_own() -> None:
    """Two managers that ask each other about a node do not wait for each other."""
    settling = Settling()
    settling.asked(A, ELSEWHERE, [A], [manager_of(THERE)])
    settling.take_effects()
    settling.asked(manager_of(THERE), ELSEWHERE, [A], [], number=7)
    settling.spoken(A, asked(settling)[A])
    assert settling.take_effects() == [TellSettled(manager_of(THERE), ELSEWHERE, 7)]
    settling.asked(manager_of(THERE), ELSEWHERE, [], [], number=8)
    assert settling.take_effects() == [TellSettled(manager_of(THERE), ELSEWHERE, 8)], "nobody is here"


def test_heirs_of_heirs_that_have_died_since_are_asked_as_well() -> None:
    settling = Settling()
    settling.process_died(C, [A, B], [ELSEWHERE])
    settling.process_died(DEAD, [A, B], [])
    settling.process_died(B, [A], [THERE])
    assert settling.known_to(DEAD) == [manager_of(THERE)]
    for number in range(DEAD_REMEMBERED):
        settling.process_died(process_id(HERE, 100 + number), [A], [])
    assert settling.known_to(DEAD) is None, "then all nodes are asked"
    assert len(settling._acquaintances) == DEAD_REMEMBERED


def test_a_node_that_died_before_the_question_is_not_asked() -> None:
    settling = Settling()
    settling.process_died(DEAD, [A], [THERE, ELSEWHERE])
    settling.node_died(THERE)
    assert settling.known_to(DEAD) == [manager_of(ELSEWHERE)]


def test_nothing_is_kept_for_the_heirs_of_other_nodes_processes() -> None:
    """Nor where such a process was known to be dead before its node was."""
    owner = References(A, None)
    entry = owner.create(bytes(A) + bytes(12))
    gone = process_id(THERE, 1)
    owner.on_process_died(gone)
    owner.on_process_died(THERE)
    owner.keep_for_heirs(gone, [entry])
    assert entry.pins == 0
    owner.on_process_died(DEAD)
    owner.keep_for_heirs(DEAD, [entry])
    assert entry.pins == 1
    assert AskSettled(DEAD) in owner.take_effects()
    owner.on_settled(DEAD)
    assert entry.pins == 0
