"""Describe a run in sentences: its verdicts, its machine, and how its options affect the meaning of its numbers."""

from collections.abc import Iterator, Mapping

from experiments.results.obstacles import fewer_ranks_note
from experiments.results.run_folder import Run
from experiments.results.schema import Result, StageTimes
from experiments.results.verdicts import Evaluation, Status
from experiments.results.wording import GRADE_NAMES, choose_memory_unit, format_number
from experiments.suites.cards import have_same_chip
from experiments.suites.suite import Suite
from provision.words import number_with_noun

STATUSES: tuple[Status, ...] = ("fail", "error", "pass", "not evaluated")
ICONS: dict[Status, str] = {"fail": "✕", "error": "!", "pass": "✓", "not evaluated": "–"}


def headline(evaluation: Evaluation) -> str:
    """Return the evaluation in one sentence, failures first.

    Example: '3 of 41 statements fail; 38 pass: 29 predicted, 9 measured in miniature; 9 were not evaluated.' If twins
    ran, which are smaller copies of the lab's rows, the sentence begins 'Scaled to 12 GB: 3 of 41 statements fail; '.
    """
    if not evaluation.verdicts:
        return "The lab states nothing about these rows."
    scale = f"{upper_first(evaluation.scale)}: " if evaluation.scale else ""
    return f"{scale}{_headline_of_verdicts(evaluation)}"


def _headline_of_verdicts(evaluation: Evaluation) -> str:
    parts = [*_failed_parts(evaluation)]
    parts += _passed_parts(evaluation, bool(parts))
    skipped = evaluation.count("not evaluated")
    if skipped and not parts:
        parts.append(f"None of the {_statement_count(skipped)} was evaluated")
    elif skipped:
        parts.append(f"{skipped} {'was' if skipped == 1 else 'were'} not evaluated")
    return "; ".join(parts) + "."


def _failed_parts(evaluation: Evaluation) -> Iterator[str]:
    passed, failed, errors = (evaluation.count(status) for status in ("pass", "fail", "error"))
    total = passed + failed
    if failed and total == 1:
        yield f"The statement fails{_known_failures_note(evaluation)}"
    elif failed and not passed:
        yield f"None of {_statement_count(total)} passes{_known_failures_note(evaluation)}"
    elif failed:
        verb = "fails" if failed == 1 else "fail"
        yield f"{failed} of {_statement_count(total)} {verb}{_known_failures_note(evaluation)}"
    if errors:
        yield number_with_noun(errors, "error")
    if count := len(evaluation.contradictions):
        yield f"{number_with_noun(count, 'prediction')} contradict{'s' if count == 1 else ''} a measurement"


def _passed_parts(evaluation: Evaluation, after_failures: bool) -> Iterator[str]:
    passed, grades = evaluation.count("pass"), _grades_of_passed(evaluation)
    verb = "passes" if passed == 1 else "pass"
    if passed and evaluation.count("fail"):
        yield f"{passed} {verb}{grades}"
    elif passed and after_failures:
        yield f"{_statement_count(passed)} {verb}{grades}"
    elif passed:
        yield f"{'The statement' if passed == 1 else f'All {_statement_count(passed)}'} {verb}{grades}"


def predicted_headline(evaluation: Evaluation) -> str:
    """Return the prediction in one sentence.

    Example: '20 of 22 statements about memory are predicted to pass; 8 cannot be predicted.'
    """
    passed, failed = evaluation.count("pass"), evaluation.count("fail")
    if not passed + failed:
        return "No statement is about memory, so none can be predicted."
    shares = f"All {passed}" if not failed else f"{passed} of {passed + failed}"
    skipped = evaluation.count("not evaluated")
    rest = f"; {skipped} cannot be predicted" if skipped else ""
    return f"{shares} statements about memory are predicted to pass{rest}."


def _known_failures_note(evaluation: Evaluation) -> str:
    """Return how many failures have a known cause, to append to their number: ', 2 of them with a known cause'."""
    known, failed = evaluation.known_failures, evaluation.count("fail")
    return "" if not known else f"{'' if known == failed else f', {known} of them'} with a known cause"


def _grades_of_passed(evaluation: Evaluation) -> str:
    """Return the grades of the statements that pass, such as ': 29 predicted, 9 measured'; ', predicted' if all are."""
    counts = evaluation.passed_by_grade()
    if len(counts) == 1:
        return f", {GRADE_NAMES[next(iter(counts))]}"
    parts = ", ".join(f"{count} {GRADE_NAMES[grade]}" for grade, count in counts.items())
    return f": {parts}" if parts else ""


def _statement_count(count: int) -> str:
    return number_with_noun(count, "statement")


def machine_in_words(result: Result) -> str:
    """Return the machine of a row: 'NVIDIA H200 capped at 78.6 GiB, emulating a100_80gb'."""
    machine = _machine_name(result, result.device.count)
    return f"{machine}, in miniature" if result.spec.size == "tiny" else machine


def _machine_name(result: Result, count: int) -> str:
    device = result.device
    words = device.name if device.kind == "cuda" else f"a CPU ({device.name})"
    if count > 1:
        words = f"{count} x {words}" if device.kind == "cuda" else f"{words}, {count} ranks"
    if device.cap_gib is not None:
        words += f" capped at {format_number(device.cap_gib)} GiB"
    if result.emulated:
        chip = ", which has the same chip" if have_same_chip(device.card, result.spec.card) else ""
        words += f", emulating {result.spec.card}{chip}"
    if device.shared:
        words += ", shared with other rows"
    return words


def size_and_machines_sentence(run: Run, results: Mapping[str, Result]) -> str:
    """Return one sentence on the run: miniature or full size, and on which machines."""
    counts: dict[str, int] = {}
    for result in results.values():
        machine = _machine_name(result, 1)
        gpus = result.device.count if result.device.kind == "cuda" else 1
        counts[machine] = max(counts.get(machine, 1), gpus)
    where = "; ".join(dict.fromkeys(_machine_name(one, counts[_machine_name(one, 1)]) for one in results.values()))
    if not where:
        return f"No row has a result yet. Requested: {run.card}, size {run.size}."
    if run.size == "tiny":
        return f"This is a miniature on {where}: each row ran with its settings, but with a tiny model."
    return f"At full size on {where}."


def remarks(run: Run, suite: Suite, evaluation: Evaluation, results: Mapping[str, Result]) -> tuple[str, ...]:
    """Return remarks on options that affect the meaning of the run's numbers."""
    sentences = []
    if missing := len(run.rows) - len(results):
        sentences.append(f"{missing} of {len(run.rows)} rows {'has' if missing == 1 else 'have'} no result.")
    if run.size == "tiny":
        sentences.append(_limits_of_a_miniature(evaluation))
    if count := sum(bool(fewer_ranks_note(suite, result)) for result in results.values()):
        rows = "row ran on fewer ranks than it states" if count == 1 else "rows ran on fewer ranks than they state"
        sentences.append(f"{count} {rows}: comparisons of memory are evaluated, outcomes and reference values are not.")
    if note := suite.note_on_scaled_rows(run.rows, run.card):
        sentences.append(
            f"{upper_first(note)}: smaller models and batches than the lab's. Outcomes and ratios are compared "
            "with the lab's statements. The lab's own numbers are neither evaluated nor reproduced."
        )
    if any(result.device.shared for result in results.values()):
        sentences.append(
            f"The memory limit is that of {run.card}. Rows shared a GPU, each with this limit: their times and the "
            "utilization of the GPU were not measured."
        )
    elif any(result.emulated for result in results.values()):
        sentences.append(
            f"The memory limit is that of {run.card}. Times are those of the actual GPU: ratios between rows are "
            "evaluated, seconds are not."
        )
    if run.weights == "random" or run.data == "synthetic":
        sentences.append(f"{run.weights.capitalize()} weights, data: {run.data}. Losses depend on both.")
    if run.length == "verdict":
        sentences.append("Each row ran only as many steps as its verdict needs.")
    if run.input == "with-image":
        sentences.append("The model received the image, which the lab leaves out; outcomes may differ.")
    if run.recipe_version != suite.version:
        sentences.append(f"Run with version {run.recipe_version} of the suite, evaluated with version {suite.version}.")
    return tuple(sentences)


def _limits_of_a_miniature(evaluation: Evaluation) -> str:
    evaluated = evaluation.count("pass") + evaluation.count("fail")
    return (
        "In miniature, two kinds of statements are evaluated: comparisons between rows, and statements that a value is "
        "zero. Whether a row fits a card, and sizes in GiB, are predicted at full size. "
        f"{evaluated} of {len(evaluation.verdicts)} statements have a verdict; times need a GPU. "
        "Of the losses of tiny models, only two things are compared: whether they fall, and their first values."
    )


def format_gib(value: float) -> str:
    """Format a size in GiB as text: '78.60 GiB'. A smaller size is in a smaller unit: '38.1 MiB'."""
    unit, per_gib = choose_memory_unit(value)
    return f"{format_memory(value, per_gib)} {unit}"


def format_memory(gib: float, per_gib: int = 1) -> str:
    """Format a size in GiB as a number without a unit, for a column that names the unit. per_gib: units in a GiB."""
    size = gib * per_gib
    return f"{size:.2f}" if abs(size) >= 1 and per_gib == 1 else f"{size:.3g}"


def format_share(value: float) -> str:
    """Format a share in percent: '45 %'."""
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.1f} %"


def format_percent(error: float) -> str:
    """Format a relative error or change in percent, with its sign: '+0.4 %'; '0.0 %' if it rounds to zero."""
    rounded = round(100 * error, 1)
    return f"{rounded:+.1f} %" if rounded else "0.0 %"


def format_stages(times: StageTimes) -> str:
    """Format the seconds of a row's stages: '3.2 start, 1.1 build, 9.5 train, 0.8 end'."""
    return ", ".join(f"{seconds:.1f} {name.removesuffix('_s')}" for name, seconds in times.model_dump().items())


def upper_first(words: str) -> str:
    """Return the words with an upper-case first letter, to begin a sentence."""
    return words[:1].upper() + words[1:]


def lower_first(sentence: str) -> str:
    """Return the sentence with a lower-case first letter, to follow a colon."""
    return sentence[:1].lower() + sentence[1:]
