"""Instruction sets from what real machines print, and this machine against torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from bitsmith.numbers import machine
from bitsmith.numbers.machine import has_vnni, instruction_sets

ZEN3 = "fpu sse4_2 movbe popcnt avx f16c rdrand fma avx2 bmi2 sha_ni vaes vpclmulqdq"
SKYLAKE = f"{ZEN3} avx512f avx512dq avx512cd avx512bw avx512vl"
ICELAKE = f"{SKYLAKE} avx512_vnni avx512_bitalg"
ALDER = f"{ZEN3} avx_vnni"
SAPPHIRE = f"{ICELAKE} avx_vnni amx_bf16 amx_tile amx_int8"


def x86(*flags: str) -> str:
    return "\n\n".join(
        f"processor\t: {i}\nmodel name\t: some avx512_vnni name\nflags\t\t: {f}\nbugs\t\t: x"
        for i, f in enumerate(flags)
    )


@pytest.mark.parametrize(
    ("flags", "expected", "vnni"),
    [
        (ZEN3, {"avx2"}, False),
        (SKYLAKE, {"avx2", "avx512f"}, False),
        (ICELAKE, {"avx2", "avx512f", "avx512_vnni"}, True),
        (ALDER, {"avx2", "avx_vnni"}, True),
        (SAPPHIRE, {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"}, True),
        ("fpu sse2", set(), None),
    ],
)
def test_x86_on_linux(flags: str, expected: set[str], vnni: bool | None) -> None:
    found = machine._from_cpuinfo(x86(flags, flags))
    assert found == expected
    assert machine._vnni("x86_64", found) is vnni
    assert machine._vnni("AMD64", found) is vnni
    assert machine._vnni("aarch64", found) is None


def test_only_what_every_processor_has_counts() -> None:
    assert machine._from_cpuinfo(x86(ALDER, ZEN3)) == {"avx2"}


def test_arm_on_linux() -> None:
    text = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes crc32 atomics asimdhp asimddp\n"
    assert machine._from_cpuinfo(text) == {"neon", "dotprod"}
    assert machine._vnni("aarch64", machine._from_cpuinfo(text)) is None


@pytest.mark.parametrize("text", ["", "processor : 0", "flags", ":::\n\n:"])
def test_nothing_to_read_is_unknown(text: str) -> None:
    assert machine._from_cpuinfo(text) == frozenset()
    assert machine._vnni("x86_64", frozenset()) is None


def test_macs() -> None:
    m1 = "hw.optional.AdvSIMD: 1\nhw.optional.neon: 1\nhw.optional.arm.FEAT_DotProd: 1\n"
    intel = "hw.optional.avx2_0: 1\nhw.optional.avx512f: 0\nhw.optional.avx512vnni: 0\n"
    assert machine._from_sysctl(m1) == {"neon", "dotprod"}
    assert machine._from_sysctl(intel) == {"avx2"}
    assert machine._vnni("x86_64", machine._from_sysctl(intel)) is False
    assert machine._from_sysctl("") == frozenset()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs /proc/cpuinfo")
def test_this_machine_against_torch() -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in ("AVX2", "AVX512"):
        assert "avx2" in instruction_sets()
    if capability == "AVX512":
        assert "avx512f" in instruction_sets()
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    if supported is not None and has_vnni() is not None:
        assert ("avx512_vnni" in instruction_sets()) == supported()


def test_a_machine_without_any_source(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(sys, "platform", "win32")
    assert instruction_sets.__wrapped__() == frozenset()
