"""Find all mistakes in a suite's file, each with its line, row or claim, value and allowed values."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from experiments.errors import InputError, similar_names, unknown_name_error
from experiments.suites.cards import cards
from experiments.suites.document import Document
from experiments.suites.miniature import tiny_architecture
from experiments.suites.models import Model, models
from experiments.suites.schema import SCALED_SETTINGS, Claim, Row, Scale, Suite
from experiments.suites.settings import Settings
from experiments.suites.yaml_schema import Problem, first_problem, validation_problems

ENTRY_KINDS = {"rows": "row", "claims": "claim"}
MISSING_KEYS_MESSAGE = "a suite needs the keys suite, version, title, source, cards, common and rows"
SETTING_NAMES = Settings.model_fields.keys()
BATCH_COUNTS = ("batch_size", "accumulate", "global_batch_size", "devices", "nodes")
LITGPT_ENGINES = ("litgpt", "litgpt_trainer")


class Mistake(NamedTuple):
    """One mistake in a suite's file.

    where: the row (with its card), claim, scale or model with the mistake, or "". says: the wrong value and the allowed
    values. similar_name: a similar allowed name, or "".
    """

    line: int
    where: str
    says: str
    similar_name: str = ""

    @property
    def text(self) -> str:
        return f"{self.where}: {self.says}" if self.where else self.says


def suite_and_mistakes(document: Document, name: str) -> tuple[Suite | None, list[Mistake]]:
    """Return the suite in ``document`` and its mistakes. If there are any, the suite is None.

    ``name``: the expected name of the suite.
    """
    data = document.data
    if not isinstance(data, dict) or not isinstance(data.get("rows"), list):
        return None, [Mistake(1, "", MISSING_KEYS_MESSAGE)]
    suite, found = None, []
    try:
        suite = Suite.model_validate(data)
    except ValidationError as error:
        found = _schema_mistakes(document, error)
    found += [Mistake(line, "", f"key {key!r} occurs twice") for key, line in document.duplicates]
    found += [*_name_mistakes(document, name), *_settings_mistakes(document)]
    return (None if found else suite), found


def _schema_mistakes(document: Document, error: ValidationError) -> list[Mistake]:
    found = []
    for problem in validation_problems(error, Suite, ENTRY_KINDS):
        match problem.place:
            case ("rows" | "claims" as part, int(number), *_):
                where = f"{ENTRY_KINDS[part]} {_entry_name(document.data[part][number], number)}"
            case _:
                where = ""
        found.append(Mistake(document.line(problem.place), where, problem.text, problem.similar_name))
    order = {"row": 0, "claim": 1, "": 2}
    return sorted(found, key=lambda mistake: order[mistake.where.partition(" ")[0]])


def _entry_name(entry: Any, number: int) -> str:
    """Return the quoted id of a row or claim for messages, or its number if it has no id."""
    return repr(entry["id"] if isinstance(entry, dict) and "id" in entry else f"number {number + 1}")


def _name_mistakes(document: Document, name: str) -> Iterator[Mistake]:
    """Yield the mistakes in names: a suite whose name is not that of its file, repeated ids, unknown rows and cards."""
    data = document.data
    if isinstance(data.get("suite"), str) and data["suite"] != name:
        says = f"suite = {data['suite']!r}: must be the file's name, {name!r}"
        yield Mistake(document.line(["suite"]), "", says)
    for part, what in ENTRY_KINDS.items():
        ids: list[Any] = []
        for number, entry in enumerate(_list_at(data, part)):
            if isinstance(entry, dict) and "id" in entry:
                if entry["id"] in ids:
                    says = f"{what} {entry['id']!r} occurs twice; each {what} needs its own id"
                    yield Mistake(document.line([part, number, "id"]), "", says)
                ids.append(entry["id"])
    yield from _unknown_names(
        document, "card", cards(), ((("cards", n), "", c) for n, c in enumerate(_list_at(data, "cards")))
    )
    suite_cards = [*_list_at(data, "cards"), *(card for _, scale in _scales(document) for card in scale.cards)]
    yield from _unknown_names(document, "card", suite_cards, _cards_named_by_rows(data))
    yield from _scale_mistakes(document)
    rows = [row.id for _, row in _valid_entries(document, "rows", Row)]
    if len(rows) == len(_list_at(data, "rows")):
        named = (*_rows_named_by_variants(document), *_rows_named_by_claims(document), *_rows_named_by_scales(document))
        yield from _unknown_names(document, "row", rows, named)


def _scale_mistakes(document: Document) -> Iterator[Mistake]:
    """Yield the mistakes in scales: repeated names and cards, unknown cards, changed settings that a twin must keep."""
    places = {card: "the suite" for card in _list_at(document.data, "cards") if isinstance(card, str)}
    names: list[str] = []
    for number, scale in _scales(document):
        where = f"scale {scale.scale!r}"
        if scale.scale in names:
            says = f"{where} occurs twice; each scale needs its own name"
            yield Mistake(document.line(["scales", number, "scale"]), "", says)
        names.append(scale.scale)
        yield from _unknown_names(
            document, "card", cards(), ((("scales", number, "cards", n), where, c) for n, c in enumerate(scale.cards))
        )
        for index, card in enumerate(scale.cards):
            if card in places:
                says = (
                    f"card {card!r} is also a card of {places[card]}; list each card once, in the suite or in one scale"
                )
                yield Mistake(document.line(["scales", number, "cards", index]), where, says)
            places.setdefault(card, where)
        for row, settings in scale.rows.items():
            for key in settings.keys() & SETTING_NAMES - set(SCALED_SETTINGS):
                says = f"row {row!r}: a scale must not change {key}; allowed: {', '.join(SCALED_SETTINGS)}"
                yield Mistake(document.line(["scales", number, "rows", row, key]), where, says)


def _list_at(data: Mapping[str, Any], key: str) -> list[Any]:
    return data[key] if isinstance(data.get(key), list) else []


UsedName = tuple[tuple[str | int, ...], str, Any]
"""A name that the document uses: its place, the row, claim or scale that uses it, and the name itself."""


def _cards_named_by_rows(data: Mapping[str, Any]) -> Iterator[UsedName]:
    for number, row in enumerate(_list_at(data, "rows")):
        if isinstance(row, dict):
            where = f"row {_entry_name(row, number)}"
            yield from (
                (("rows", number, "cards", index), where, card) for index, card in enumerate(_list_at(row, "cards"))
            )
            per_card = row.get("per_card")
            yield from (
                (("rows", number, "per_card", card), where, card)
                for card in (per_card if isinstance(per_card, dict) else ())
            )


def _rows_named_by_variants(document: Document) -> Iterator[UsedName]:
    for number, row in _valid_entries(document, "rows", Row):
        if row.variant_of:
            yield ("rows", number, "variant_of"), f"row {row.id!r}", row.variant_of


def _scales(document: Document) -> list[tuple[int, Scale]]:
    return list(_valid_entries(document, "scales", Scale))


def _rows_named_by_scales(document: Document) -> Iterator[UsedName]:
    for number, scale in _scales(document):
        yield from ((("scales", number, "rows", row), f"scale {scale.scale!r}", row) for row in scale.rows)


def _rows_named_by_claims(document: Document) -> Iterator[UsedName]:
    for number, claim in _valid_entries(document, "claims", Claim):
        for index, check in enumerate(claim.checks):
            for key in ("row", "over_row"):
                if row := getattr(check, key):
                    yield ("claims", number, "checks", index, key), f"claim {claim.id!r}", row


def _unknown_names(
    document: Document, what: str, allowed: Iterable[str], named: Iterable[UsedName]
) -> Iterator[Mistake]:
    known = list(allowed)
    for place, where, name in named:
        if name not in known:
            yield Mistake(document.line(place), where, str(unknown_name_error(what, name, known)))


def _valid_entries(document: Document, part: str, model: type[Any]) -> Iterator[tuple[int, Any]]:
    """Yield index and value of each entry of the document's list ``part`` that is valid for the class ``model``."""
    for number, entry in enumerate(_list_at(document.data, part)):
        try:
            yield number, model.model_validate(entry)
        except ValidationError:
            continue


def _settings_mistakes(document: Document) -> Iterator[Mistake]:
    """Yield the mistakes in the suite's models, and in the settings of each row on each of its cards."""
    data = document.data
    suite_models = _models_of_suite(data)
    for name, model in suite_models.items():
        if says := _tiny_version_problem(model):
            yield Mistake(document.line(("models", name)), f"model {name!r}", says)
    common = data.get("common")
    if not isinstance(common, dict):
        return
    for number, row in _valid_entries(document, "rows", Row):
        for card in row.cards or _list_at(data, "cards"):
            values = {**common, **row.settings, **row.per_card.get(str(card), {})}
            for problem in _problems_of_settings(values, models() | suite_models):
                place = _place_of_setting(problem.place, ("rows", number), row, card, common)
                yield Mistake(document.line(place), f"row {row.id!r} on {card}", problem.text, problem.similar_name)
        yield from _mistakes_of_twins(document, row, common, models() | suite_models)


def _mistakes_of_twins(
    document: Document, row: Row, common: Mapping[str, Any], known: Mapping[str, Model]
) -> Iterator[Mistake]:
    """Yield the mistakes in the settings of the row's smaller twins; nothing if the row itself has mistakes."""
    for number, scale in _scales(document):
        changes = scale.rows.get(row.id)
        if changes is None or list(_problems_of_settings({**common, **row.settings}, known)):
            continue
        for problem in _problems_of_settings({**common, **row.settings, **changes}, known):
            line = document.line(("scales", number, "rows", row.id, *problem.place))
            yield Mistake(line, f"row {row.id!r} {scale.note}", problem.text, problem.similar_name)


def _models_of_suite(data: Mapping[str, Any]) -> dict[str, Model]:
    """Return the valid models that the suite defines, by name."""
    given = data.get("models")
    found = {}
    for name, facts in given.items() if isinstance(given, dict) else ():
        with suppress(ValidationError):
            found[name] = Model.model_validate(facts)
    return found


def _tiny_version_problem(model: Model) -> str:
    """Return why the model has no tiny version for runs without a GPU; "" if it has one."""
    try:
        tiny_architecture(model.architecture) if model.family == "transformers" else None
    except InputError as problem:
        return str(problem)
    return ""


def _problems_of_settings(values: dict[str, Any], known: Mapping[str, Model]) -> list[Problem]:
    found = [
        Problem(
            (key,),
            f"unknown key {key!r}; allowed: {', '.join(sorted(SETTING_NAMES))}",
            similar_names(key, SETTING_NAMES),
        )
        for key in values.keys() - SETTING_NAMES
    ]
    values = {key: value for key, value in values.items() if key in SETTING_NAMES}
    model = values.get("model")
    if isinstance(model, str) and model not in known:
        found.append(Problem(("model",), str(unknown_name_error("model", model, known))))
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        found_in_settings = validation_problems(error, Settings)
        return found + (
            found_in_settings
            if found_in_settings[0].place
            else [_set_place_from_text(found_in_settings[0]), *_problems_of_single_settings(values)]
        )
    return found + (list(unsupported_settings(settings, known[settings.model])) if model in known else [])


def _set_place_from_text(problem: Problem) -> Problem:
    """Return the problem with the setting that its text begins with as its place; () if it begins with no setting."""
    key = problem.text.partition(" = ")[0]
    return problem._replace(place=(key,) if key in SETTING_NAMES else ())


def _problems_of_single_settings(values: dict[str, Any]) -> list[Problem]:
    """Return the problems of single settings, except for those in BATCH_COUNTS.

    If the batch counts are inconsistent, ``Settings`` does not check the other settings. This function does.
    """
    found = []
    for name, field in Settings.model_fields.items():
        if name in BATCH_COUNTS:
            continue
        if name not in values:
            if field.is_required():
                found.append(Problem((name,), f"key {name!r} is missing"))
            continue
        adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
        try:
            adapter.validate_python(values[name])
        except ValidationError as error:
            says = first_problem(error, Settings)
            found.append(Problem((name,), f"{name} = {values[name]!r}: {says.removeprefix(f' = {values[name]!r}: ')}"))
    return found


def unsupported_settings(settings: Settings, model: Model) -> Iterator[Problem]:
    """Yield the reasons why the row's model, data set, task and engine cannot be combined."""
    if settings.engine in LITGPT_ENGINES and model.litgpt is None:
        allowed = ", ".join(name for name, one in models().items() if one.litgpt)
        yield Problem(("model",), f"model = {settings.model!r}: LitGPT does not have this model; allowed: {allowed}")
    if settings.dataset == "gourmetgram-captions" and not model.family.startswith("blip2"):
        yield Problem(
            ("dataset",),
            f"dataset = {settings.dataset!r}: the model takes no images; allowed: constant, alpaca2k, imdb",
        )
    if settings.task == "generate" and settings.engine != "hf_trainer":
        yield Problem(("task",), f"task = 'generate': cannot run with engine {settings.engine}; allowed: hf_trainer")


def _place_of_setting(
    place: tuple[int | str, ...], row_place: tuple[str | int, ...], row: Row, card: Any, common: Mapping[str, Any]
) -> tuple[str | int, ...]:
    """Return where the document states the setting at ``place``: in per_card, in the row, or in common.

    If a problem concerns several settings, its ``place`` is empty, and the place of the row is returned.
    """
    key = str(place[0]) if place else ""
    if key in row.per_card.get(card, {}):
        return (*row_place, "per_card", card, *place)
    if key in row.settings:
        return (*row_place, "settings", *place)
    return ("common", *place) if key in common else (("common",) if key else row_place)
