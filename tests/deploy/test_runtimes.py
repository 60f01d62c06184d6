"""A file that a runtime cannot open is named, with what is needed instead."""

from pathlib import Path

import pytest

from bitsmith.deploy.runtimes import open_session, runtimes
from bitsmith.errors import InputError

CONTENTS = {"empty": b"", "gguf": b"GGUF\x03\x00\x00\x00" + bytes(64), "text": b"no model\n"}


@pytest.mark.parametrize("runtime", runtimes)
@pytest.mark.parametrize("content", CONTENTS)
def test_a_file_of_another_kind_is_named(tmp_path: Path, runtime: str, content: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    file = tmp_path / "z.onnx"
    file.write_bytes(CONTENTS[content])
    with pytest.raises(InputError, match="bitsmith quantize --out") as caught:
        open_session(file, runtime)
    assert str(caught.value).startswith(str(file))
