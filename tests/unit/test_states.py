"""The table of states: each can be reached and left, and no command of other threads finds a hole in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.vcpu.states import BEING_BORN, BUSY, COMMANDS, NO_THREAD, STATES, TRANSITIONS, Command, State

OF_OTHERS = (Command.PAUSE, Command.RESUME, Command.UNPLUG, Command.WAKE)
# While STARTING the inbox keeps what is posted; nothing is taken from it before the vCPU is created.
TAKES_COMMANDS = [state for state in STATES.values() if state not in NO_THREAD and state not in BEING_BORN]


def reachable(start: State) -> set[State]:
    """Return every state that some sequence of commands leads to."""
    found, new = {start}, {start}
    while new:
        new = {after for (before, _), after in TRANSITIONS.items() if before in new} - found
        found |= new
    return found


def follow(state: State, *commands: Command) -> State:
    """Return where the commands lead."""
    for command in commands:
        state = TRANSITIONS[state, command]
    return state


def test_every_state_can_be_reached() -> None:
    assert reachable(State.REALIZED) == set(STATES.values())


@pytest.mark.parametrize("state", STATES.values())
def test_every_state_can_be_left_for_the_end_and_for_a_run(state: State) -> None:
    assert {State.UNPLUGGED, State.RUNNING} <= reachable(state) | {state}


@pytest.mark.parametrize("command", OF_OTHERS)
@pytest.mark.parametrize("state", TAKES_COMMANDS)
def test_commands_of_other_threads_are_defined_wherever_they_can_arrive(state: State, command: Command) -> None:
    assert (state, command) in TRANSITIONS


@given(st.lists(st.sampled_from(OF_OTHERS)), st.sampled_from(TAKES_COMMANDS))
def test_no_sequence_of_them_ends_in_a_hole(commands: list[Command], state: State) -> None:
    assert follow(state, *commands) in TAKES_COMMANDS


@pytest.mark.parametrize("command", OF_OTHERS)
@pytest.mark.parametrize("state", TAKES_COMMANDS)
def test_a_command_given_twice_does_what_it_does_once(state: State, command: Command) -> None:
    assert follow(state, command, command) == follow(state, command)


@pytest.mark.parametrize("state", [State.RUNNING, State.HALTED])
def test_resume_takes_a_pause_back(state: State) -> None:
    assert follow(state, Command.PAUSE, Command.RESUME) == state


@pytest.mark.parametrize("state", [State.PAUSED, State.PAUSED_HALTED])
def test_pause_takes_a_resume_back(state: State) -> None:
    assert follow(state, Command.RESUME, Command.PAUSE) == state


def test_a_halted_vcpu_runs_only_when_it_is_woken() -> None:
    without_wake = [command for command in OF_OTHERS if command is not Command.WAKE]
    for state in (State.HALTED, State.PAUSED_HALTED):
        assert State.RUNNING not in {follow(state, command) for command in without_wake}
        assert State.PAUSED not in {follow(state, command) for command in without_wake}
    assert follow(State.HALTED, Command.WAKE) is State.RUNNING
    assert follow(State.PAUSED_HALTED, Command.WAKE, Command.RESUME) is State.RUNNING


@pytest.mark.parametrize("state", TAKES_COMMANDS)
def test_what_is_unplugged_stays_so(state: State) -> None:
    leaving = follow(state, Command.UNPLUG)
    assert leaving is State.LEAVING
    assert {follow(leaving, command) for command in OF_OTHERS} == {State.LEAVING}
    assert follow(leaving, Command.GONE) is State.UNPLUGGED


def test_a_life_starts_only_where_there_is_no_thread() -> None:
    assert {state for state, command in TRANSITIONS if command is Command.START} == NO_THREAD
    assert {state for (state, command), _ in TRANSITIONS.items() if command is Command.GONE} == {State.LEAVING}
    assert follow(State.STARTING, Command.FAILED) in NO_THREAD
    assert follow(State.STARTING, Command.CREATED) is State.PAUSED


def test_a_vcpu_without_a_thread_takes_nothing_but_a_start() -> None:
    assert {command for state, command in TRANSITIONS if state in NO_THREAD} == {Command.START}


def test_names_for_people_are_distinct_words() -> None:
    for words in (list(map(str, STATES.values())), list(map(str, COMMANDS.values()))):
        assert len(set(words)) == len(words)
        assert all(word and word == word.lower() and "_" not in word for word in words)


def test_busy_states_have_a_thread() -> None:
    assert not BUSY & NO_THREAD
    assert State.RUNNING in BUSY
