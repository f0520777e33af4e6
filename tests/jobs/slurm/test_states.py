"""The job states: every state has a phase, and every unknown word has a state."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.slurm.states import JobPhase, State, parse_state


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("COMPLETED", State.COMPLETED),
        ("CANCELLED by 1000", State.CANCELLED),
        ("CANCELLED by -2", State.CANCELLED),
        ("OUT_OF_MEMORY", State.OUT_OF_MEMORY),
        ("running", State.RUNNING),
        (" PENDING ", State.PENDING),
        ("HIBERNATING", State.UNKNOWN),
        ("UNKNOWN", State.UNKNOWN),
        ("", State.UNKNOWN),
    ],
)
def test_parse_state(text: str, state: State) -> None:
    assert parse_state(text) is state


@given(st.text(max_size=12))
def test_parses_any_word(text: str) -> None:
    assert parse_state(text) in State


@pytest.mark.parametrize("state", State)
def test_every_state_has_one_phase(state: State) -> None:
    assert parse_state(state.value) is state
    assert not (state.is_pending and state.is_finished)
    assert state.phase in JobPhase


def test_unknown_phase_and_success() -> None:
    assert [state for state in State if state.phase is JobPhase.UNKNOWN] == [State.UNKNOWN]
    assert [state for state in State if state.is_success] == [State.COMPLETED]


def test_states_that_end_an_attempt() -> None:
    assert {state for state in State if state.is_finished} == {
        State.COMPLETED,
        State.BOOT_FAIL,
        State.CANCELLED,
        State.DEADLINE,
        State.FAILED,
        State.NODE_FAIL,
        State.OUT_OF_MEMORY,
        State.PREEMPTED,
        State.REVOKED,
        State.TIMEOUT,
    }
    assert State.REQUEUED.is_pending


def test_states_with_allocated_nodes_are_running() -> None:
    """Such a job is charged; one that waits holds no nodes."""
    assert {state for state in State if state.phase is JobPhase.RUNNING} == {
        State.RUNNING,
        State.CONFIGURING,
        State.POWER_UP_NODE,
        State.COMPLETING,
        State.STAGE_OUT,
        State.RESIZING,
        State.SIGNALING,
        State.STOPPED,
        State.SUSPENDED,
        State.UPDATE_DB,
    }
