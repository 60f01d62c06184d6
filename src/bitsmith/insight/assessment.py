"""The whole proof of one quantized file: how good, how fast, how exact, and where it errs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from bitsmith.data import Batches
from bitsmith.deploy.runtimes import open_session
from bitsmith.deploy.verify import Verification, verify
from bitsmith.insight.evaluation import Difference, Evaluation, difference, evaluate
from bitsmith.insight.layers import (
    TensorError,
    WeightSpread,
    layer_records,
    tensor_errors,
    weight_spreads,
)
from bitsmith.insight.measure import Record
from bitsmith.insight.records import evaluation_records, quantized_keys, verification_records
from bitsmith.insight.subject import float_session
from bitsmith.model.quantized import QuantizedModel

__all__ = ["Assessment", "assess"]

#: Shows how far a stage is: ``stage(what, samples)`` gives a function that advances it.
Stage = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


@final
@dataclass(frozen=True, eq=False)
class Assessment:
    """What :func:`assess` found.

    Attributes:
        float32, quantized: the two networks in the same runtime on the same samples.
        against: quantized − float32, paired.
        verification: simulation against runtime.
        errors: every quantized activation against the float graph.
        weights: every integer layer's weight.
        error_samples: samples that ``errors`` were measured on.
    """

    float32: Evaluation
    quantized: Evaluation
    against: Difference
    verification: Verification
    errors: list[TensorError]
    weights: list[WeightSpread]
    error_samples: int

    def records(self, model: QuantizedModel, data: dict[str, Any]) -> list[Record]:
        """Return everything as records; ``data`` names the samples (dataset, split, hash)."""
        keys = quantized_keys(model) | data
        plain = {"model": keys.get("model"), "weight_bits": 32, "activation_bits": 32, **data}
        return [
            *evaluation_records(self.float32, plain),
            *evaluation_records(self.quantized, keys, self.against, self.float32),
            *verification_records(self.verification, keys),
            *layer_records(self.errors, keys),
        ]


def assess(
    model: QuantizedModel,
    path: Path,
    batches: Batches,
    *,
    name: str,
    stage: Stage,
    verify_samples: int = 256,
    error_samples: int = 128,
    latency_repeats: int = 30,
    seed: int = 0,
    threads: int | None = None,
    runtime: str = "onnxruntime",
) -> Assessment:
    """Evaluate file and float network in the runtime, verify the file, and measure the layers.

    Args:
        model: freshly quantized (its graph still has the float weights).
        path: the exported file.
        batches: the samples to evaluate on; others are drawn from the same split.
        name: of the network in reports.
        stage: shows progress.
        verify_samples, error_samples: at most so many for verification and layer errors.
        latency_repeats: timed calls per batch size.
        seed: of which samples are drawn for verification and layer errors.
        threads: of the runtime.
        runtime: a registered runtime.
    """
    plain, plain_bytes = float_session(model.program.graph, runtime, threads)
    quantized = open_session(path, runtime, threads=threads)
    label = f"{name} {model.recipe.name}"
    with stage("evaluating float32", batches.samples) as advance:
        first = evaluate(
            f"{name} float32", plain, batches, runtime=runtime, method="float",
            bytes=plain_bytes, latency_repeats=latency_repeats, advance=advance,
        )  # fmt: skip
    with stage(f"evaluating {model.recipe.name}", batches.samples) as advance:
        second = evaluate(
            label, quantized, batches, runtime=runtime,
            method=model.provenance.get("method", "ptq"), bytes=path.stat().st_size,
            latency_repeats=latency_repeats, advance=advance,
        )  # fmt: skip
    split = batches.split
    count = min(verify_samples, split.n)
    with stage("verifying", count) as advance:
        drawn = split.batches(64, limit=count, seed=seed)
        verification = verify(
            model, path, drawn, runtime=runtime, samples=count, threads=threads, advance=advance
        )
    few = min(error_samples, split.n)
    with stage("layer errors", None):
        errors = tensor_errors(model, split.batches(32, limit=few, seed=seed))
    return Assessment(
        first, second, difference(second, first), verification, errors, weight_spreads(model), few
    )
