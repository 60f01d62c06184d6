"""The tables and records of ``--effort``: stages and blocks that were kept, dropped or stopped."""

from __future__ import annotations

from typing import Any

import pytest

from bitsmith.cli.output import Output
from bitsmith.cli.rungs import (
    blocks_table,
    equalization_table,
    equalized_records,
    rungs_table,
    stage_records,
)

RUNGS: list[dict[str, Any]] = [
    {"name": "ranges and rounding", "distance": 0.5, "agreement": 90.0, "seconds": 1, "kept": True},
    {"name": "block reconstruction", "distance": 0.25, "seconds": 2.0, "kept": True},
    {
        "name": "distillation",
        "distance": 0.75,
        "agreement": 80.0,
        "seconds": 3.0,
        "kept": False,
        "stopped": "the loss is nan",
    },
]
BLOCKS: list[dict[str, Any]] = [
    {
        "segment": "conv1 .. relu1",
        "layers": ["conv1", "conv2"],
        "start": ["float biases"],
        "before": 0.5,
        "after": 0.125,
        "kept": True,
        "reason": "",
    },
    {
        "segment": "fc",
        "layers": ["fc"],
        "start": [],
        "before": None,
        "after": None,
        "kept": False,
        "reason": "nothing in it trains",
    },
]

PAIRS: list[dict[str, Any]] = [
    {
        "layer": "expand",
        "next": "depthwise",
        "outcome": "equalized",
        "reason": "relu instead of the clamp of expand",
        "before": 12.0,
        "after": 1.5,
        "absorbed": 3,
    },
    {
        "layer": "project",
        "next": "",
        "outcome": "skipped",
        "reason": "add (add) lets no factor pass",
        "before": 0.0,
        "after": 0.0,
        "absorbed": 0,
    },
]


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output("quantize", None)
    rungs_table(output, RUNGS, 85.0)
    blocks_table(output, BLOCKS)
    lines = capsys.readouterr().out.splitlines()

    def cells(start: str) -> str:
        return " ".join(next(line for line in lines if line.startswith(start)).split())

    assert cells("ranges") == "ranges and rounding 0.5 90.00 % 1.0 yes"
    assert cells("block rec") == "block reconstruction 0.25 - 2.0 yes"
    assert cells("distil") == (
        "distillation 0.75 80.00 % 3.0 no: not better; stopped: the loss is nan"
    )
    assert cells("the goal") == (
        "the goal is reached: 90 % of the predictions are the float model's"
    )
    assert cells("conv1") == "conv1 .. relu1 2 0.5 0.125 yes float biases"
    assert cells("fc") == "fc 1 - - no: nothing in it trains"


def test_without_blocks_there_is_no_table_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    blocks_table(Output("quantize", None), [])
    assert capsys.readouterr().out == ""


def test_every_layer_that_was_equalized_or_not_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    equalization_table(Output("quantize", None), [])
    assert capsys.readouterr().out == ""
    equalization_table(Output("quantize", None), PAIRS)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "expand depthwise 12 1.5 3 relu instead of the clamp of expand" in lines
    assert "project - - - 0 skipped: add (add) lets no factor pass" in lines
    assert "1 of 2 layers equalized" in lines
    found = [r.to_json() for r in equalized_records(PAIRS, {"model": "m"})]
    assert [(r["layer"], r["outcome"]) for r in found] == [
        ("expand", "equalized"),
        ("project", "skipped"),
    ]
    assert (found[0]["metric"], found[0]["value"], found[0]["reference"]) == (
        "range_ratio",
        1.5,
        12.0,
    )
    assert "value" not in found[1]
    assert found[1]["reason"] == PAIRS[1]["reason"]


def test_records() -> None:
    found = [r.to_json() for r in stage_records(RUNGS, BLOCKS, {"model": "m"})]
    assert [(r["algorithm"], r["metric"]) for r in found] == [
        ("ranges and rounding", "distance"),
        ("ranges and rounding", "agreement"),
        ("block reconstruction", "distance"),
        ("distillation", "distance"),
        ("distillation", "agreement"),
        ("block reconstruction", "relative_error"),
        ("block reconstruction", "relative_error"),
    ]
    assert {r["reason"] for r in found if r["algorithm"] == "distillation"} == {"the loss is nan"}
    assert {r["method"] for r in found if r["algorithm"] == "distillation"} == {"ptq+finetune"}
    assert found[-2] == {
        "model": "m",
        "method": "ptq",
        "algorithm": "block reconstruction",
        "layer": "conv1 .. relu1",
        "outcome": "kept",
        "metric": "relative_error",
        "value": 0.125,
        "reference": 0.5,
    }
    assert found[-1]["reason"] == "nothing in it trains"
    assert not found[-1].keys() & {"value", "reference"}
