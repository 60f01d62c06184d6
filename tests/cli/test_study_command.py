"""``bitsmith study``: what it prints and writes, and every bad input."""

import json

import pytest

from bitsmith.studies import studies


@pytest.fixture
def refused(run, tmp_path):
    """Run a study that must fail; return the message after checking that nothing is left."""

    def command(*arguments, code=2):
        before = sorted(tmp_path.rglob("*"))
        ran = run("study", *arguments)
        assert ran.code == code
        assert ran.err.startswith("error: ")
        assert "Traceback" not in ran.err
        assert sorted(tmp_path.rglob("*")) == before, "files were left behind"
        return ran.err

    return command


def test_prints_and_writes_nothing_unless_told(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run("study", "memory", "--quick")
    assert ran.code == 0
    assert "17.5" in ran.out
    assert "--out DIR" in ran.out
    assert list(tmp_path.iterdir()) == []


def test_writes_page_figures_and_json(run, tmp_path):
    out = tmp_path / "deep" / "folder"
    ran = run("study", "memory", "--quick", "--out", out, "--json", tmp_path / "m.json")
    assert ran.code == 0, ran.err
    names = ["memory-bytes.png", "memory-bytes.svg", "memory.html"]
    assert sorted(p.name for p in out.iterdir()) == names
    assert all(str(out / name) in ran.out for name in names)
    assert (out / "memory-bytes.png").read_bytes().startswith(b"\x89PNG")
    assert "bitsmith study memory --seed 0 --quick" in (out / "memory.html").read_text()
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["command"] == "study"
    sizes = {(r["model"], r["recipe"]): r["bytes"] for r in found["records"]}
    assert sizes["7 billion", "int4"] == 3_500_000_000
    again = run("study", "memory", "--quick", "--out", out)
    assert again.code == 0  # its own files are replaced


def test_json_on_standard_output_is_all_there(run):
    ran = run("study", "memory", "--quick", "--seed", 7, "--json", "-")
    assert {r["seed"] for r in ran.json["records"]} == {7}
    assert {r["study"] for r in ran.json["records"]} == {"memory"}
    assert "What this run shows" in ran.err


def test_lists_them(run):
    ran = run("list", "studies", "--json", "-")
    assert {r["study"] for r in ran.json["records"]} == set(studies)
    for record in ran.json["records"]:
        study = studies[record["study"]]
        assert record["reason"].startswith(study.title)
        assert all(f"{n}={s.default}" in record["reason"] for n, s in study.settings.items())


def test_settings_reach_the_study_and_its_page(run, tmp_path):
    given = ("--set", "bits=3", "--set", "lr=0.2")
    ran = run("study", "one-weight", *given, "--out", tmp_path / "o", "--json", "-")
    assert ran.code == 0, ran.err
    assert {r.get("weight_bits") for r in ran.json["records"]} == {3}
    page = (tmp_path / "o" / "one-weight.html").read_text()
    assert "bitsmith study one-weight --seed 0 --set bits=3 --set lr=0.2" in page


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["bit=3"], "did you mean 'bits'"),
        (["bits=3.5"], "a whole number from 2 to 8, not '3.5'"),
        (["bits=9"], "a whole number from 2 to 8, not '9'"),
        (["lr=nan"], "not 'nan'"),
        (["bits"], "NAME=VALUE, not 'bits'"),
        (["bits=3", "bits=4"], "twice"),
    ],
)
def test_settings_that_are_none(refused, tmp_path, given, said):
    pairs = [part for pair in given for part in ("--set", pair)]
    assert said in refused("one-weight", *pairs, "--out", tmp_path / "x")


def test_settings_for_a_study_that_has_none(refused, tmp_path):
    assert "known: none" in refused("memory", "--set", "bits=3", "--out", tmp_path / "x")


def test_unknown_study(refused, tmp_path):
    assert "did you mean 'memory'" in refused("memroy", "--out", tmp_path / "x")


def test_data_for_a_study_without_data(refused, tmp_path):
    message = refused("memory", "--dataset", "digits", "--out", tmp_path / "x")
    assert "takes no data set" in message


@pytest.mark.parametrize("seed", [-1, 1 << 31, "x"])
def test_seed_that_is_none(refused, tmp_path, seed):
    assert "--seed" in refused("rounding", "--seed", seed, "--out", tmp_path / "x")


def test_largest_seed(run):
    assert run("study", "rounding", "--quick", "--seed", (1 << 31) - 1).code == 0


def test_out_that_is_a_file_or_cannot_be_made(refused, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert str(taken) in refused("memory", "--out", taken)
    assert "below" in refused("memory", "--out", taken / "below")
    assert taken.read_text() == "mine"


def test_out_with_a_folder_where_a_file_goes(refused, tmp_path):
    (tmp_path / "o" / "memory.html").mkdir(parents=True)
    assert "it is a folder" in refused("memory", "--out", tmp_path / "o")


def test_interrupted_leaves_nothing(refused, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("bitsmith.studies.memory.quantize", interrupted)
    assert "nothing was written" in refused("memory", "--out", tmp_path / "new", code=130)


def test_no_display_is_needed(run, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MPLBACKEND", "TkAgg")
    assert run("study", "memory", "--quick", "--out", tmp_path / "o").code == 0
