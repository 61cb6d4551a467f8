"""Ahead-of-time compilation of a trained run into an artifact.

`compile_run` belongs to the Python API (docs/python.md). It is imported when it is first used, as in `neuron_sum`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compile.api import compile_run

__all__ = ["compile_run"]

if not TYPE_CHECKING:  # type checkers see the name above, and no others

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from compile.api import compile_run

        return compile_run
