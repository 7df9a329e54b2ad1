"""One shared BERT, one head per task: the multitask fine-tuning system built on `minbert`.

"The paper", in all its files, is "Jack of All Trades, Master of Some: Improving BERT for Multitask Learning"
(Stanford CS224N).

Names are imported on first use (PEP 562), so that a command's help never waits for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multitask.data.tasks import Task
    from multitask.ensemble_model import load
    from multitask.model import MultitaskBert

_HOME = {"MultitaskBert": "model", "Task": "data.tasks", "load": "ensemble_model"}
__all__ = ["MultitaskBert", "Task", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
