"""All mistakes of a suite's file: each with its line, the row or claim, the value and what is allowed."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from experiments.errors import InputError, nearest, unknown
from experiments.suites.cards import cards
from experiments.suites.document import Document
from experiments.suites.miniature import miniature
from experiments.suites.models import Model, models
from experiments.suites.schema import Claim, Row, Suite
from experiments.suites.settings import Settings
from experiments.suites.yaml_schema import Problem, plain, problems

LISTS = {"rows": "row", "claims": "claim"}
SUITE_KEYS = "a suite needs the keys suite, version, title, source, cards, common and rows"
FIELDS = Settings.model_fields.keys()
COUNTS = ("batch_size", "accumulate", "global_batch_size", "devices", "nodes")
LITGPT = ("litgpt", "litgpt_trainer")


class Mistake(NamedTuple):
    """One mistake. where: the row on a card, the row or the claim, or "". near: an allowed name like the wrong one."""

    line: int
    where: str
    says: str
    near: str = ""

    @property
    def text(self) -> str:
        return f"{self.where}: {self.says}" if self.where else self.says


def suite_and_mistakes(document: Document, name: str) -> tuple[Suite | None, list[Mistake]]:
    """Return the suite in ``document``, which must be called ``name``, and its mistakes; None if it has any."""
    data = document.data
    if not isinstance(data, dict) or not isinstance(data.get("rows"), list):
        return None, [Mistake(1, "", SUITE_KEYS)]
    suite, found = None, []
    try:
        suite = Suite.model_validate(data)
    except ValidationError as error:
        found = _of_schema(document, error)
    found += [Mistake(line, "", f"key {key!r} stands twice") for key, line in document.duplicates]
    found += [*_of_names(document, name), *_of_settings(document)]
    return (None if found else suite), found


def _of_schema(document: Document, error: ValidationError) -> list[Mistake]:
    found = []
    for problem in problems(error, Suite, LISTS):
        match problem.place:
            case ("rows" | "claims" as part, int(number), *_):
                where = f"{LISTS[part]} {_name(document.data[part][number], number)}"
            case _:
                where = ""
        found.append(Mistake(document.line(problem.place), where, problem.text, problem.near))
    order = {"row": 0, "claim": 1, "": 2}
    return sorted(found, key=lambda mistake: order[mistake.where.partition(" ")[0]])


def _name(entry: Any, number: int) -> str:
    """Return the id of a row or claim as errors name it; its number if it has none."""
    return repr(entry["id"] if isinstance(entry, dict) and "id" in entry else f"number {number + 1}")


def _of_names(document: Document, name: str) -> Iterator[Mistake]:
    """Yield names that are not the file's, stand twice, or name no row and no card."""
    data = document.data
    if isinstance(data.get("suite"), str) and data["suite"] != name:
        says = f"suite = {data['suite']!r}: must be the file's name, {name!r}"
        yield Mistake(document.line(["suite"]), "", says)
    for part, what in LISTS.items():
        ids: list[Any] = []
        for number, entry in enumerate(_listed(data, part)):
            if isinstance(entry, dict) and "id" in entry:
                if entry["id"] in ids:
                    says = f"{what} {entry['id']!r} stands twice; an id names one {what}"
                    yield Mistake(document.line([part, number, "id"]), "", says)
                ids.append(entry["id"])
    yield from _unknown(
        document, "card", cards(), ((("cards", n), "", c) for n, c in enumerate(_listed(data, "cards")))
    )
    yield from _unknown(document, "card", _listed(data, "cards"), _cards_of_rows(data))
    rows = [row.id for _, row in _valid(document, "rows", Row)]
    if len(rows) == len(_listed(data, "rows")):
        yield from _unknown(document, "row", rows, _rows_of_claims(document))


def _listed(data: Mapping[str, Any], key: str) -> list[Any]:
    return data[key] if isinstance(data.get(key), list) else []


Named = tuple[tuple[str | int, ...], str, Any]
"""Where a name stands, the row or claim that it is in, and the name."""


def _cards_of_rows(data: Mapping[str, Any]) -> Iterator[Named]:
    for number, row in enumerate(_listed(data, "rows")):
        if isinstance(row, dict):
            where = f"row {_name(row, number)}"
            yield from ((("rows", number, "cards", n), where, c) for n, c in enumerate(_listed(row, "cards")))
            own = row.get("per_card")
            yield from ((("rows", number, "per_card", c), where, c) for c in (own if isinstance(own, dict) else ()))


def _rows_of_claims(document: Document) -> Iterator[Named]:
    for number, claim in _valid(document, "claims", Claim):
        for n, check in enumerate(claim.checks):
            for key in ("row", "over_row"):
                if row := getattr(check, key):
                    yield ("claims", number, "checks", n, key), f"claim {claim.id!r}", row


def _unknown(document: Document, what: str, allowed: Iterable[str], named: Iterable[Named]) -> Iterator[Mistake]:
    known = list(allowed)
    for place, where, name in named:
        if name not in known:
            yield Mistake(document.line(place), where, str(unknown(what, name, known)))


def _valid(document: Document, part: str, model: type[Any]) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each row or claim that is one."""
    for number, entry in enumerate(_listed(document.data, part)):
        try:
            yield number, model.model_validate(entry)
        except ValidationError:
            continue


def _of_settings(document: Document) -> Iterator[Mistake]:
    """Yield the mistakes in the suite's models, and in the settings of each row on each of its cards."""
    data = document.data
    own = _own_models(data)
    for name, model in own.items():
        if says := _without_miniature(model):
            yield Mistake(document.line(("models", name)), f"model {name!r}", says)
    common = data.get("common")
    if not isinstance(common, dict):
        return
    for number, row in _valid(document, "rows", Row):
        for card in row.cards or _listed(data, "cards"):
            values = {**common, **row.settings, **row.per_card.get(str(card), {})}
            for problem in _problems_of_settings(values, models() | own):
                place = _origin(problem.place, ("rows", number), row, card, common)
                yield Mistake(document.line(place), f"row {row.id!r} on {card}", problem.text, problem.near)


def _own_models(data: Mapping[str, Any]) -> dict[str, Model]:
    """Return the suite's own models that are valid."""
    given = data.get("models")
    found = {}
    for name, facts in given.items() if isinstance(given, dict) else ():
        with suppress(ValidationError):
            found[name] = Model.model_validate(facts)
    return found


def _without_miniature(model: Model) -> str:
    """Return why a model has no tiny version, so that its rows could not run without a GPU; "" if it has one."""
    try:
        miniature(model.architecture) if model.family == "transformers" else None
    except InputError as problem:
        return str(problem)
    return ""


def _problems_of_settings(values: dict[str, Any], known: Mapping[str, Model]) -> list[Problem]:
    found = [
        Problem((key,), f"unknown key {key!r}; allowed: {', '.join(sorted(FIELDS))}", nearest(key, FIELDS))
        for key in values.keys() - FIELDS
    ]
    values = {key: value for key, value in values.items() if key in FIELDS}
    model = values.get("model")
    if isinstance(model, str) and model not in known:
        found.append(Problem(("model",), str(unknown("model", model, known))))
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        stated = problems(error, Settings)
        return found + (stated if stated[0].place else [_placed(stated[0]), *_each_by_itself(values)])
    return found + (list(_cannot_run(settings, known[settings.model])) if model in known else [])


def _placed(problem: Problem) -> Problem:
    """Return a problem of several settings with the place of the setting that its text begins with, if it does."""
    key = problem.text.partition(" = ")[0]
    return problem._replace(place=(key,) if key in FIELDS else ())


def _each_by_itself(values: dict[str, Any]) -> list[Problem]:
    """Return the mistakes of single settings other than the counts that the batch numbers depend on.

    Settings looks at none of them if it finds the counts to be wrong.
    """
    found = []
    for name, field in Settings.model_fields.items():
        if name in COUNTS:
            continue
        if name not in values:
            if field.is_required():
                found.append(Problem((name,), f"key {name!r} is missing"))
            continue
        adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
        try:
            adapter.validate_python(values[name])
        except ValidationError as error:
            says = plain(error, Settings)
            found.append(Problem((name,), f"{name} = {values[name]!r}: {says.removeprefix(f' = {values[name]!r}: ')}"))
    return found


def _cannot_run(settings: Settings, model: Model) -> Iterator[Problem]:
    """Yield why a row cannot run with its model, its data set and its engine."""
    if settings.engine in LITGPT and model.litgpt is None:
        allowed = ", ".join(name for name, one in models().items() if one.litgpt)
        yield Problem(("model",), f"model = {settings.model!r}: LitGPT has no name for it; allowed: {allowed}")
    if settings.dataset == "gourmetgram-captions" and not model.family.startswith("blip2"):
        yield Problem(
            ("dataset",),
            f"dataset = {settings.dataset!r}: the model takes no images; allowed: constant, alpaca2k, imdb",
        )
    if settings.task == "generate" and settings.engine != "hf_trainer":
        yield Problem(("task",), f"task = 'generate': needs another engine than {settings.engine}; allowed: hf_trainer")


def _origin(
    place: tuple[int | str, ...], row_place: tuple[str | int, ...], row: Row, card: Any, common: Mapping[str, Any]
) -> tuple[str | int, ...]:
    """Return where the setting at ``place`` is stated: for the card, in the row, or else in common.

    A problem of several settings, which has no place, is the row's.
    """
    key = str(place[0]) if place else ""
    if key in row.per_card.get(card, {}):
        return (*row_place, "per_card", card, *place)
    if key in row.settings:
        return (*row_place, "settings", *place)
    return ("common", *place) if key in common else (("common",) if key else row_place)
