"""The state vocabulary: every member has a phase, every outside word has a member."""

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
def test_no_word_crashes(text: str) -> None:
    assert parse_state(text) in State


@pytest.mark.parametrize("state", State)
def test_every_state_reads_back_and_is_in_one_phase(state: State) -> None:
    assert parse_state(state.value) is state
    assert not (state.is_pending and state.is_finished)
    assert state.phase in JobPhase


def test_only_unknown_is_in_no_phase_and_only_completed_is_success() -> None:
    assert [state for state in State if state.phase is JobPhase.UNKNOWN] == [State.UNKNOWN]
    assert [state for state in State if state.is_success] == [State.COMPLETED]


def test_the_end_of_an_attempt_is_told_from_the_end_of_a_record() -> None:
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
