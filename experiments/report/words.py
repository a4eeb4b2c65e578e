"""Plain sentences over a run: what became of the statements, what the rows ran on, what follows from the choices."""

from collections.abc import Mapping

from experiments.results.judge import Judgement, Status, scaled_down
from experiments.results.run_folder import Run
from experiments.results.schema import Result
from experiments.results.wording import number
from experiments.suites.suite import Suite

STATUSES: tuple[Status, ...] = ("did not hold", "broke", "held", "not judged")
ICONS: dict[Status, str] = {"did not hold": "✕", "broke": "!", "held": "✓", "not judged": "–"}


def headline(judgement: Judgement) -> str:
    """The verdict in one sentence: '14 of 16 judged statements held; 2 did not; 9 were not judged.'"""
    held, failed = judgement.count("held"), judgement.count("did not hold")
    unjudged, broke = judgement.count("not judged"), judgement.count("broke")
    if not judgement.verdicts:
        return "Nothing is stated about these rows, so nothing was judged."
    parts = [_judged(held, failed)] if held + failed else []
    if unjudged:
        parts.append(f"{unjudged} {'was' if unjudged == 1 else 'were'} not judged")
    if broke:
        parts.append(f"{broke} broke")
    if held + failed == 0:
        total = len(judgement.verdicts)
        parts[0] = f"None of the {total} statements was judged" if unjudged else parts[0]
    return "; ".join(parts) + "."


def predicted_headline(judgement: Judgement) -> str:
    """What is predicted of the statements in one sentence: '20 of 22 statements ... are predicted to hold; ...'"""
    held, failed = judgement.count("held"), judgement.count("did not hold")
    if not held + failed:
        return "A prediction of memory can judge none of the statements."
    shares = f"All {held}" if not failed else f"{held} of {held + failed}"
    words = f"{shares} statements that a prediction of memory can judge are predicted to hold"
    unjudged = judgement.count("not judged")
    return f"{words}; {unjudged} others it cannot judge." if unjudged else f"{words}."


def _judged(held: int, failed: int) -> str:
    judged = held + failed
    statements = "statement" if judged == 1 else "statements"
    if not failed:
        return f"The one judged {statements} held" if judged == 1 else f"All {judged} judged {statements} held"
    if not held:
        return (
            f"The one judged {statements} did not hold" if judged == 1 else f"None of {judged} judged {statements} held"
        )
    return f"{held} of {judged} judged {statements} held; {failed} did not"


def ran_on(result: Result) -> str:
    """What a row ran on: 'NVIDIA H200 capped at 78.6 GiB, standing in for a100_80gb'."""
    machine = _machine(result, result.device.count)
    return f"{machine}, in miniature" if result.spec.size == "tiny" else machine


def _machine(result: Result, count: int) -> str:
    device = result.device
    words = device.name if device.kind == "cuda" else f"a processor ({device.name})"
    if count > 1:
        words = f"{count} x {words}" if device.kind == "cuda" else f"{words}, {count} ranks"
    if device.cap_gib is not None:
        words += f" capped at {number(device.cap_gib)} GiB"
    if result.stands_in:
        words += f", standing in for {result.spec.card}"
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


def remarks(run: Run, suite: Suite, judgement: Judgement, results: Mapping[str, Result]) -> tuple[str, ...]:
    """What a reader must know of the run's choices before reading its numbers."""
    found = []
    if missing := len(run.rows) - len(results):
        found.append(f"{missing} of {len(run.rows)} rows {'has' if missing == 1 else 'have'} no result.")
    if run.size == "tiny":
        found.append(_what_a_miniature_judges(judgement))
    if scaled := sum(bool(scaled_down(suite, result)) for result in results.values()):
        rows = "row ran on fewer ranks than it states" if scaled == 1 else "rows ran on fewer ranks than they state"
        found.append(f"{scaled} {rows}: figures and outcomes are not judged of them, comparisons of memory are.")
    if any(result.stands_in for result in results.values()):
        found.append(
            f"Memory and outcomes are those of {run.card}'s limit. Times are the stand-in's own and are not judged."
        )
    if run.weights == "random" or run.data == "synthetic":
        found.append(f"{run.weights.capitalize()} weights, data: {run.data}. The loss is not judged.")
    if run.length == "verdict":
        found.append("Each row ran only as many steps as its verdict needs, not the whole training.")
    if run.input == "with-image":
        found.append(
            "The model was given the image, which the material's own input leaves out; outcomes may differ by it."
        )
    if run.recipe_version != suite.version:
        found.append(f"Run by version {run.recipe_version} of the recipe, judged by version {suite.version}.")
    return tuple(found)


def _what_a_miniature_judges(judgement: Judgement) -> str:
    judged = judgement.count("held") + judgement.count("did not hold")
    return (
        "A miniature can judge statements that compare rows with one another, or that say that something is nil: here "
        f"{judged} of {len(judgement.verdicts)}. It says nothing of what fits a card or of sizes in GiB, "
        "and a processor nothing of times."
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
