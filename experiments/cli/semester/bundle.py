"""`testbed bundle`, `testbed grade`: write one archive of a run to hand in, and check archives of students."""

import json
from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.output import print_json, say
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import Json
from experiments.errors import InputError

app = Commands()


@app.command()
def bundle(
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="Folder of the run: results/RUN_ID.")],
    output: Annotated[Path | None, typer.Option(help="Path of the archive; default: RUN_FOLDER.bundle.zip.")] = None,
) -> None:
    """Write an archive of a run, with checksums, to hand in.

    The archive has results and telemetry, without weights, logs and notebooks. `testbed grade` checks it offline.
    Passwords in URLs and the path of the home folder are removed from its files.
    """
    from experiments.bundle.archive import write_bundle
    from experiments.results.run_folder import RunFolder

    print(write_bundle(RunFolder(folder), output))


@app.command()
def grade(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE", help="Archives of `testbed bundle`.")],
    row: Annotated[
        list[str] | None,
        typer.Option(help="A row that students had to run; may be given several times; default: all rows of the run."),
    ] = None,
    card: Annotated[str | None, typer.Option(help="The GPU model that the run must be for; default: any.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="RUN_FOLDER", help="Your own run; results must agree with its predictions.")
    ] = None,
    known_runs: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN_FOLDER", help="Runs that students may have copied; copies are rejected."),
    ] = None,
    gradescope: Annotated[
        Path | None, typer.Option(help="With one bundle: write Gradescope's results.json to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check archives that students hand in; show points and problems.

    A bundle is rejected if a row is not in the lab or has other settings, or if a measurement is copied from another
    bundle or a known run. It is also rejected if its values contradict each other, the telemetry or a prediction. The
    reasons are shown. Exit code 1: a bundle is rejected.
    """
    from experiments.bundle.check import check_bundle, paths_by_measurement_key, reject_copies
    from experiments.bundle.gradescope import gradescope_results
    from experiments.results.run_folder import RunFolder, run_folders
    from experiments.suites.cards import card_named
    from experiments.system.files import write_atomically

    if gradescope and len(bundles) > 1:
        raise InputError(f"--gradescope {gradescope}: allowed with one BUNDLE only")
    if card:
        card_named(card, "--card")
    trusted = RunFolder(predictions).predictions() if predictions else ()
    if predictions and not trusted:
        raise InputError(f"--predictions {predictions}: has no predictions.json; `testbed run` writes it")
    checked_alone = [check_bundle(path, trusted, row or (), card) for path in bundles]
    checked = reject_copies(
        checked_alone, paths_by_measurement_key([run for folder in known_runs or () for run in run_folders(folder)])
    )
    gradescope_data = {str(bundle_check.path): gradescope_results(bundle_check) for bundle_check in checked}
    if gradescope:
        write_atomically(gradescope, json.dumps(gradescope_data[str(bundles[0])], indent=2))
    if as_json:
        print_json(gradescope_data)
    for bundle_check in () if as_json else checked:
        points = gradescope_data[str(bundle_check.path)]["score"]
        decision = "accepted" if bundle_check.is_accepted else "rejected"
        say(f"{bundle_check.path}: {decision}, {points} of {len(bundle_check.no_point_reasons)} points")
        missing = [f"{name}: {why}" for name, why in bundle_check.no_point_reasons.items() if why]
        for line in (*bundle_check.problems, *missing):
            say(f"  {line}")
    raise typer.Exit(int(not all(bundle_check.is_accepted for bundle_check in checked)))
