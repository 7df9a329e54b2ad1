"""A minimal BERT, written to be readable and exact. Start with `bert.py`.

Names are imported on first use (PEP 562), so that a command can print its help without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minbert.bert import BertModel, BertOutput, attention
    from minbert.comparison import compare
    from minbert.config import BertConfig
    from minbert.errors import InputError
    from minbert.mlm import BertForMaskedLM, fill, mask_tokens
    from minbert.optim import AdamW
    from minbert.tokenizer import BertTokenizer

_HOME = {
    "BertConfig": "config",
    "BertModel": "bert",
    "BertOutput": "bert",
    "attention": "bert",
    "compare": "comparison",
    "InputError": "errors",
    "BertForMaskedLM": "mlm",
    "fill": "mlm",
    "mask_tokens": "mlm",
    "AdamW": "optim",
    "BertTokenizer": "tokenizer",
}
__all__ = [
    "AdamW",
    "BertConfig",
    "BertForMaskedLM",
    "BertModel",
    "BertOutput",
    "BertTokenizer",
    "InputError",
    "attention",
    "compare",
    "fill",
    "mask_tokens",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
