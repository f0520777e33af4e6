"""The outcome of the runs: status, results, tables and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.exports.data_frame import load_results

__all__ = ["load_results"]


if not TYPE_CHECKING:  # for a type checker this package has no other names

    def __getattr__(name: str) -> Any:
        """`load_results`, loaded when it is first used: the commands need none of it."""
        if name in __all__:
            from jobs.exports.data_frame import load_results

            return load_results
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
