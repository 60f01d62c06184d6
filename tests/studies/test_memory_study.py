"""Bytes of large models, against the published values."""

import pytest

from bitsmith.studies import Options, studies

#: Format → GB of 7 billion and of 70 billion parameters.
PUBLISHED = {
    "fp32": (28, 280),
    "fp16": (14, 140),
    "int8": (7, 70),
    "int4": (3.5, 35),
    "int2": (1.75, 17.5),
    "int1": (0.875, 8.75),
}
#: Scheme → bits per weight: of the OCP and NVIDIA specifications, and code + 32 bits / group.
SPECIFIED = {
    "mxfp8 e4m3": 8.25,
    "mxfp6 e2m3": 6.25,
    "mxfp4": 4.25,
    "nvfp4": 4.5,
    "int4 group 128 (W4G128)": 4.25,
    "int4 group 64 (W4G64)": 4.5,
    "int4 group 32 (W4G32)": 5.0,
    "int2 group 64 (W2G64)": 2.5,
}


@pytest.fixture(scope="module")
def result():
    return studies["memory"]().run(Options())


def test_codes_alone_take_what_texts_say(result):
    sizes = {(r.recipe, r.model): r.bytes for r in result.records}
    for name, (small, large) in PUBLISHED.items():
        assert sizes[name, "7 billion"] == small * 1e9
        assert sizes[name, "70 billion"] == large * 1e9


def test_says_where_texts_differ(result):
    assert result.tables[0].note.endswith("print 17 for int2 where arithmetic gives 17.5.")


def test_scales_are_counted(result):
    bits = {r.recipe: r.bits_per_weight for r in result.records}
    for name, expected in SPECIFIED.items():
        assert bits[name] == pytest.approx(expected, abs=1e-4), name
    sizes = {(r.recipe, r.model): r.bytes for r in result.records}
    assert sizes["int4 group 64 (W4G64)", "7 billion"] == 7e9 * 4.5 / 8


def test_size_does_not_depend_on_the_weights(result):
    again = studies["memory"]().run(Options(seed=5))
    assert [r.bytes for r in again.records] == [r.bytes for r in result.records]
