"""``bitsmith study``: one experiment, its tables, its figures and what it shows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitsmith.cli.folder import result_folder
from bitsmith.cli.options import Json
from bitsmith.cli.output import Output, json_path, progress
from bitsmith.cli.staging import Staging
from bitsmith.cli.study_all import ALL, study_all
from bitsmith.errors import InputError

if TYPE_CHECKING:
    from bitsmith.studies import Options, Study, StudyResult

__all__ = ["study"]


def study(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="See: bitsmith list studies. all: every study, one page."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for the page NAME.html and its figures as SVG and PNG; of all: for "
            "report.html and each result, from which the next run goes on. Without it nothing is "
            "written.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="DATA",
            help="Of a study that runs on data. Default: the study's own.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**31 - 1, help="Of everything random.")
    ] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer repeats or samples, the same pictures.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A choice of this study alone, as often as there are; bitsmith list studies "
            "shows them.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            metavar="NAMES",
            help="Of all: these studies, with commas between. Default: every study.",
            show_default=False,
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Run one of the experiments that teach quantization, and draw its figures."""
    if name == ALL:
        _refuse(dataset, settings)
        study_all(out, only, seed=seed, quick=quick, json=json)
        return
    if only is not None:
        raise InputError(f"--only is of {ALL}, not of the study {name}; leave it out")
    output = Output("study", json)
    from bitsmith.studies import Options, studies

    chosen = studies[name]()
    given = _pairs(settings or [])
    chosen.chosen(given)  # refused before anything is made
    files = _files(chosen, out)
    with result_folder(out), Staging([*files, json_path(json)]) as staging:
        options = Options(seed, quick, dataset, progress, given)
        begun = time.perf_counter()
        result = chosen.run(options)
        seconds = time.perf_counter() - begun
        if out is not None:
            _write(chosen, result, options, out, staging, seconds)
        output.json(result.records, staging)
    _print(output, chosen, result)
    if out is None:
        output.line("\nNo files were written; --out DIR writes the page with the figures.")
        return
    drawn = {
        out / f"{name}.html",
        *(p for f in result.figures for p in _pictures(name, f.name, out)),
    }
    output.heading("Files")
    for path in files:
        if path in drawn:
            output.line(str(path))


def _refuse(dataset: str | None, settings: list[str] | None) -> None:
    """Refuse what can be said of one study alone."""
    given = ["--dataset"] * (dataset is not None) + ["--set"] * bool(settings)
    if given:
        raise InputError(
            f"study {ALL} runs each study on its own data with its own settings; leave out "
            f"{' and '.join(given)}, or name one study"
        )


def _pairs(settings: list[str]) -> dict[str, str]:
    """Return name → value of ``NAME=VALUE`` pairs."""
    pairs = [text.partition("=") for text in settings]
    if wrong := [text for text, (_, sign, _) in zip(settings, pairs, strict=True) if not sign]:
        raise InputError(f"--set takes NAME=VALUE, not {', '.join(map(repr, wrong))}")
    found = {name: value for name, _, value in pairs}
    if len(found) < len(pairs):
        raise InputError(f"--set gives a setting twice: {', '.join(settings)}")
    return found


def _files(chosen: Study, out: Path | None) -> list[Path]:
    """Return every file that a run may write."""
    if out is None:
        return []
    pictures = [p for figure in chosen.figures for p in _pictures(chosen.name, figure, out)]
    return [out / f"{chosen.name}.html", *pictures]


def _pictures(study: str, figure: str, out: Path) -> list[Path]:
    return [out / f"{study}-{figure}.{kind}" for kind in ("svg", "png")]


def _write(
    chosen: Study,
    result: StudyResult,
    options: Options,
    out: Path,
    staging: Staging,
    seconds: float,
) -> None:
    from bitsmith.insight.report.article import render_articles
    from bitsmith.insight.report.style import png, standalone_svg
    from bitsmith.version import __version__

    command = f"bitsmith study {chosen.name} --seed {options.seed}"
    command += f" --dataset {options.dataset}" if options.dataset else ""
    command += " --quick" if options.quick else ""
    command += "".join(f" --set {name}={value}" for name, value in options.settings.items())
    about = (("command", command), ("bitsmith", __version__), ("seconds", f"{seconds:.1f}"))
    page = render_articles(chosen.title, [chosen.article(result, about)])
    staging.path(out / f"{chosen.name}.html").write_text(page, encoding="utf-8")
    for figure in result.figures:
        svg, raster = _pictures(chosen.name, figure.name, out)
        text = standalone_svg(figure.draw, figure.size)
        staging.path(svg).write_text(text, encoding="utf-8")
        staging.path(raster).write_bytes(png(figure.draw, figure.size))


def _print(output: Output, chosen: Study, result: StudyResult) -> None:
    output.heading(chosen.title)
    output.line(chosen.text)
    for table in result.tables:
        output.heading(table.title)
        output.table(table.columns, table.rows)
        if table.note:
            output.line(table.note)
    output.heading("What this run shows")
    for finding in result.findings:
        output.line(f"- {finding}")
    if result.skipped:
        output.heading("Left out")
        for part in result.skipped:
            output.line(f"- {part}")
