"""Why a module cannot be captured: the user's source line, and what can be done."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

__all__ = ["explain", "forward_line"]

_ELSEWHERE = "or quantize the part of the model that can be traced, as a module of its own"
_ONE_BATCH_SIZE = (
    "the program cannot be captured: it was exported for one batch size only\n"
    "  what to do: export it again with a batch that may vary, torch.export.export(model, "
    "(x,), dynamic_shapes=({0: torch.export.Dim('batch')},)), from an x of two samples or more"
)
_PACKAGES = {str(Path(torch.__file__).parent), *map(sysconfig.get_path, ("purelib", "stdlib"))}


def explain(model: nn.Module, inputs: Sequence[Tensor], error: Exception) -> str:
    """Return one message for what ``torch.export`` raised: where, what, and the remedy."""
    text = str(error)
    lines = [line.strip(" -") for line in text.splitlines() if line.strip()]
    what = lines[0] if lines else type(error).__name__
    where = _user_line(text, error)
    if "specialized" in text or "Constraints violated" in text:
        if isinstance(model, GraphModule):
            return _ONE_BATCH_SIZE
        where = _line_that_fixes_the_batch(model, inputs)
        what = "its computation fits one batch size only"
        remedy = "use x.shape[0], flatten or -1 instead of a number where the batch is meant"
    elif "data-dependent" in text.lower() or "GuardOnDataDependent" in text:
        remedy = f"control flow depends on a tensor's values; use torch.where, {_ELSEWHERE}"
    else:
        remedy = f"rewrite that line with PyTorch operators only, {_ELSEWHERE}"
    where = where or forward_line(model)
    return f"{type(model).__name__} cannot be captured{where}: {what}\n  what to do: {remedy}"


def forward_line(model: nn.Module) -> str:
    """Return `` at file:line (forward)`` of the module's own forward."""
    code = getattr(type(model).forward, "__code__", None)
    return f" at {code.co_filename}:{code.co_firstlineno} (forward)" if code else ""


def _user_line(text: str, error: Exception) -> str:
    """The innermost of the user's frames that the message quotes or the error went through."""
    quoted = re.findall(r'File "([^"]+)", line (\d+), in [^\n]+\n\s*([^\n]*)', text)
    ours = [f for f in quoted if _is_users(f[0])] or _frames(error.__traceback__)
    return f" at {ours[-1][0]}:{ours[-1][1]} ({ours[-1][2].strip()})" if ours else ""


def _frames(traceback: TracebackType | None) -> list[tuple[str, str, str]]:
    """The user's frames below the one that caught the error: those above called us."""
    frames = []
    traceback = traceback.tb_next if traceback is not None else None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if _is_users(code.co_filename):
            frames.append((code.co_filename, str(traceback.tb_lineno), code.co_name))
        traceback = traceback.tb_next
    return frames


def _is_users(file: str) -> bool:
    return not file.startswith("<") and not any(file.startswith(f"{p}/") for p in _PACKAGES)


@torch.no_grad()
def _line_that_fixes_the_batch(model: nn.Module, inputs: Sequence[Tensor]) -> str:
    """Run one more sample than the example has: often the line itself fails."""
    try:
        model(*(torch.cat([x, x[:1]]) for x in inputs))
    except Exception as error:
        return _user_line("", error)
    return ""
