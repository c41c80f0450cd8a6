"""What a child is told at its start."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class ChildSettings:
    """Crosses to the child as JSON."""

    modules: Sequence[str] = ()
    """Imported before the first task."""
    main_file: str | None = None
    """Run as `__mp_main__` before the first task and aliased to `__main__`."""
    log_level: str = "INFO"
    """Level of the root logger."""
    log_format: str = "%(asctime)s %(levelname)-7s [%(process)d] %(name)s: %(message)s"
    """As in the standard library's logging."""
