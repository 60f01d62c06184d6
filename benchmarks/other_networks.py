"""Other kinds of network through the same path: MLP, CNN, depthwise with relu6, concat, islands.

Each is trained briefly on Fashion-MNIST, quantized with W8A8 and 256 training images, run in ONNX
Runtime on the test images, and verified on all of them: cumulatively where everything runs in
integers, layer by layer on the runtime's own inputs where float islands are in between.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitsmith.data import load_dataset
from bitsmith.deploy.export import export
from bitsmith.deploy.runtimes import open_session
from bitsmith.deploy.verify import verify
from bitsmith.insight.measure import paired_difference
from bitsmith.model.evaluate import correct, predict
from bitsmith.model.ptq import ptq
from bitsmith.model.train import fit
from bitsmith.zoo import load_model
from record import arguments, on_machine, save


class Branches(nn.Module):
    """Branches of unlike range joined by concat; a transposed convolution as a float island."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU6())
        self.left = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.up = nn.ConvTranspose2d(48, 16, 2, stride=2)
        self.mix = nn.Sequential(nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.Hardswish())
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = self.stem(x)
        x = torch.cat([self.left(x), self.right(x), x], 1)
        return self.head(self.mix(self.up(x)).mean((2, 3)))


def measure(name: str, model: nn.Module, images: int | None, threads: int) -> dict[str, Any]:
    """Train, quantize, export, verify, evaluate one network."""
    data = load_dataset("fashion-mnist")
    train, test = data.split("train"), data.split("test")
    torch.manual_seed(0)
    fit(model, train.batches(128, limit=images, seed=0), epochs=1, lr=0.05, progress=False)
    batches = test.batches(250, limit=images)
    reference = correct(*predict(model, batches))
    quantized = ptq(model, "W8A8", train.batches(64, limit=256, seed=0))
    with tempfile.TemporaryDirectory() as folder:
        path = export(quantized, Path(folder) / "m.onnx")
        logits, labels = predict(open_session(path, threads=threads), batches)
        assert labels is not None
        found = verify(quantized, path, batches, samples=len(labels), isolated_samples=1000)
    delta, low, high = paired_difference(correct(logits, labels), reference)
    islands = [t for t in found.tensors if t.outcome == "float"]
    codes = [t for t in found.tensors if t.outcome != "float"]
    return {
        "network": name,
        "float32": 100 * float(reference.double().mean()),
        "W8A8 file": 100 * float(correct(logits, labels).double().mean()),
        "n": len(labels),
        "difference [95 %]": f"{delta:+.2f} [{low:+.2f}, {high:+.2f}]",
        "integer operators": f"{found.executed_integer}/{found.planned_integer}",
        "isolated, integer: differing codes": sum(t.isolated_differing for t in codes),
        "float islands": ", ".join(f"{t.op} ({t.isolated_max_lsb:g} LSB)" for t in islands)
        or "none",
        "changed predictions": found.changed_predictions,
        "worst-case codes differing": sum(w.differing for w in found.worst_cases),
        "verified": "yes" if found.passed else "; ".join(found.failures),
    }


def main() -> None:
    """Run and record."""
    options = arguments(__doc__ or "").parse_args()
    suffix = on_machine(options)
    torch.manual_seed(0)
    networks: dict[str, nn.Module] = {"branches": Branches()}
    if not options.quick:
        names = ("mlp", "mnist-cnn", "mobilenet-small")
        networks.update({n: load_model(n, pretrained=False).module for n in names})
    images = 500 if options.quick else 10_000
    rows = [measure(name, net, images, options.threads) for name, net in networks.items()]
    save(f"other_networks{suffix}", rows, options.quick)


if __name__ == "__main__":
    main()
