"""Plain sentences over a run: what became of the statements, what the rows ran on, what follows from the choices."""

from collections.abc import Mapping

from experiments.results.evaluate import Evaluation, Status, scaled_down
from experiments.results.run_folder import Run
from experiments.results.schema import Result
from experiments.results.wording import number
from experiments.suites.suite import Suite

STATUSES: tuple[Status, ...] = ("fail", "error", "pass", "not evaluated")
ICONS: dict[Status, str] = {"fail": "✕", "error": "!", "pass": "✓", "not evaluated": "–"}


def headline(evaluation: Evaluation) -> str:
    """Return the result in one sentence: '14 of 16 evaluated statements hold; 2 fail; 9 were not evaluated.'"""
    passed, failed = evaluation.count("pass"), evaluation.count("fail")
    skipped, errors = evaluation.count("not evaluated"), evaluation.count("error")
    if not evaluation.verdicts:
        return "Nothing is stated about these rows, so there is nothing to evaluate."
    parts = [_evaluated(passed, failed)] if passed + failed else []
    if skipped and not parts:
        parts.append(f"None of the {len(evaluation.verdicts)} statements was evaluated")
    elif skipped:
        parts.append(f"{skipped} {'was' if skipped == 1 else 'were'} not evaluated")
    if errors:
        parts.append(f"{errors} ended in an error")
    return "; ".join(parts) + "."


def predicted_headline(evaluation: Evaluation) -> str:
    """Return what is predicted of the statements: '20 of 22 statements ... are predicted to hold; ...'"""
    passed, failed = evaluation.count("pass"), evaluation.count("fail")
    if not passed + failed:
        return "A prediction of memory can evaluate none of the statements."
    shares = f"All {passed}" if not failed else f"{passed} of {passed + failed}"
    words = f"{shares} statements that a prediction of memory can evaluate are predicted to hold"
    skipped = evaluation.count("not evaluated")
    return f"{words}; it cannot evaluate {skipped} others." if skipped else f"{words}."


def _evaluated(passed: int, failed: int) -> str:
    total = passed + failed
    if total == 1:
        return f"The one evaluated statement {'holds' if passed else 'fails'}"
    if not failed:
        return f"All {total} evaluated statements hold"
    if not passed:
        return f"All {total} evaluated statements fail"
    return f"{passed} of {total} evaluated statements hold; {failed} {'fails' if failed == 1 else 'fail'}"


def ran_on(result: Result) -> str:
    """What a row ran on: 'NVIDIA H200 capped at 78.6 GiB, emulating a100_80gb'."""
    machine = _machine(result, result.device.count)
    return f"{machine}, in miniature" if result.spec.size == "tiny" else machine


def _machine(result: Result, count: int) -> str:
    device = result.device
    words = device.name if device.kind == "cuda" else f"a processor ({device.name})"
    if count > 1:
        words = f"{count} x {words}" if device.kind == "cuda" else f"{words}, {count} ranks"
    if device.cap_gib is not None:
        words += f" capped at {number(device.cap_gib)} GiB"
    if result.emulated:
        words += f", emulating {result.spec.card}"
    return words


def setting_sentence(run: Run, results: Mapping[str, Result]) -> str:
    """One sentence on what the run is: a miniature, a card, or a stand-in for one."""
    counts: dict[str, int] = {}
    for result in results.values():
        machine = _machine(result, 1)
        gpus = result.device.count if result.device.kind == "cuda" else 1
        counts[machine] = max(counts.get(machine, 1), gpus)
    where = "; ".join(dict.fromkeys(_machine(one, counts[_machine(one, 1)]) for one in results.values()))
    if not where:
        return f"No row has a result yet. Asked for: {run.card}, {run.size} size."
    if run.size == "tiny":
        return f"This is a miniature on {where}: every row's own settings, on models small enough for any machine."
    return f"At full size on {where}."


def remarks(run: Run, suite: Suite, evaluation: Evaluation, results: Mapping[str, Result]) -> tuple[str, ...]:
    """What a reader must know of the run's choices before reading its numbers."""
    found = []
    if missing := len(run.rows) - len(results):
        found.append(f"{missing} of {len(run.rows)} rows {'has' if missing == 1 else 'have'} no result.")
    if run.size == "tiny":
        found.append(_what_tiny_models_show(evaluation))
    if scaled := sum(bool(scaled_down(suite, result)) for result in results.values()):
        rows = "row ran on fewer ranks than it states" if scaled == 1 else "rows ran on fewer ranks than they state"
        found.append(f"{scaled} {rows}: figures and outcomes are not evaluated of them, comparisons of memory are.")
    if any(result.emulated for result in results.values()):
        found.append(
            f"Memory and outcomes are those of {run.card}'s limit. Times are the stand-in's own and are not evaluated."
        )
    if run.weights == "random" or run.data == "synthetic":
        found.append(f"{run.weights.capitalize()} weights, data: {run.data}. The loss is not evaluated.")
    if run.length == "verdict":
        found.append("Each row ran only as many steps as its verdict needs, not the whole training.")
    if run.input == "with-image":
        found.append(
            "The model was given the image, which the material's own input leaves out; outcomes may differ by it."
        )
    if run.recipe_version != suite.version:
        found.append(f"Run by version {run.recipe_version} of the recipe, evaluated by version {suite.version}.")
    return tuple(found)


def _what_tiny_models_show(evaluation: Evaluation) -> str:
    evaluated = evaluation.count("pass") + evaluation.count("fail")
    return (
        "Tiny models can evaluate statements that compare rows with one another, or that state a value of zero: here "
        f"{evaluated} of {len(evaluation.verdicts)}. They show neither what fits a card nor sizes in GiB, "
        "and a CPU shows no times."
    )


def gib(value: float) -> str:
    """GiB with two decimals, or with three significant digits below 1 GiB: '78.60 GiB', '0.0123 GiB'."""
    return f"{value:.2f} GiB" if abs(value) >= 1 else f"{value:.3g} GiB"


def share(value: float) -> str:
    """A share in percent: '45 %'."""
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.1f} %"


def percent(error: float) -> str:
    """An error with its sign: '+0.4 %'; none where it rounds to nothing."""
    rounded = round(100 * error, 1)
    return f"{rounded:+.1f} %" if rounded else "0.0 %"


def lower_first(sentence: str) -> str:
    """A sentence as it goes on after a colon."""
    return sentence[:1].lower() + sentence[1:]
