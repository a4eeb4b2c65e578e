"""Invalid values for every option of every command: exit code 2, and one line with the value and the allowed values."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from experiments.cli import catalog
from experiments.cli.app import main
from experiments.cli.parsing.commands import COMMANDS, load_command
from experiments.cli.parsing.values import allowed_choices, describe_allowed_values, displayed_name, value_type
from experiments.errors import similar_names
from tests.support.results.evidence import EVIDENCE

RUN = str(EVIDENCE / "slurm_hf_trainer-a100_40gb-full-verdict")
READ = (
    "list --suite-file @",
    "check @",
    "run --suite-file @ --size tiny",
    "run single_gpu_blip2 --site slurm --profile @",
    "logs baseline @",
    "evaluate @",
    "report @",
    "compare @ RUN",
    "compare RUN @",
    "predict --suite-file @",
    "predict --model @ --card a100_80gb --loop lightning",
    "predict --model @ --card a100_80gb --loop plain",
    "predict -- python @",
    "fit --model @ --card a100_80gb --loop lightning",
    "lease --key @ --dry-run",
    "configure --image-source load --image-archive @",
    "configure --ca-bundle @",
    "configure --base-image-archive @",
    "top --profile @ --once",
    "doctor --site slurm --profile @",
)
"""Commands that read the file or folder @."""
WRITTEN = ("evaluate RUN --csv @", "run single_gpu_blip2 --size tiny --row xxl-sgd --results @")
BAD_FILES = ("missing.yaml", "folder", "broken.yaml", "binary.yaml", "file/below", "a" * 300)
PYDANTIC = ("Value error,", "Input should be", "validation error", "Invalid value")
TIME = "T14:00Z"


def _options():
    for name in COMMANDS:
        for param in load_command(name).params:
            if param.param_type_name == "option" and not param.is_flag:
                yield name, param


OPTIONS = list(_options())
CHOICES = [(name, param) for name, param in OPTIONS if allowed_choices(param)]
TYPED = [(name, param) for name, param in OPTIONS if allowed_choices(param) or value_type(param) in (int, float)]
BOUNDED = [(name, param) for name, param in OPTIONS if param.min is not None]


def _id(value: object) -> str:
    return value if isinstance(value, str) else displayed_name(value)


@pytest.fixture
def error_of(capsys):
    """Run a command with an error; return the line that it prints."""

    def run(*arguments: str) -> str:
        code = main([*arguments])
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), err
        assert err.startswith("testbed: ")
        assert err.count("\n") == 1
        assert not [words for words in PYDANTIC if words in err]
        return err.removeprefix("testbed: ").rstrip()

    return run


@pytest.fixture
def invalid_files(tmp_path, monkeypatch, machine):
    """Create files and folders in the current folder that are invalid for every command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TESTBED_SUITES", "")
    monkeypatch.setenv("TESTBED_LEDGER", str(tmp_path / "journal"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(128, 256)))


@pytest.mark.parametrize(("name", "param"), TYPED, ids=_id)
def test_the_error_for_an_invalid_value_names_it_and_the_allowed_values(error_of, name, param):
    error = error_of(name, displayed_name(param), "no-such-thing")
    assert error.startswith(f"{displayed_name(param)} no-such-thing: allowed: {describe_allowed_values(param)}")


@pytest.mark.parametrize(("name", "param"), CHOICES, ids=_id)
def test_the_error_for_a_misspelled_choice_suggests_the_correct_one(error_of, name, param):
    value = allowed_choices(param)[-1]
    assert error_of(name, displayed_name(param), f"{value}x").endswith(f"; did you mean {value}?")


@pytest.mark.parametrize(("name", "param"), BOUNDED, ids=_id)
def test_the_error_for_a_number_below_the_minimum_names_the_minimum(error_of, name, param):
    assert error_of(name, displayed_name(param), f"{param.min - 1:g}").endswith(f" from {param.min:g}")


@pytest.mark.parametrize(("name", "param"), OPTIONS, ids=_id)
def test_an_option_without_its_value_is_named(error_of, name, param):
    assert error_of(name, displayed_name(param)).startswith(f"{displayed_name(param)} needs a value")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_and_a_surplus_argument_are_named(error_of, name):
    assert error_of(name, "--no-such-option").startswith("unknown option --no-such-option")
    if not any(param.nargs == -1 for param in load_command(name).params):
        required = [
            param for param in load_command(name).params if param.required and param.param_type_name == "option"
        ]
        words = [*(f"{displayed_name(param)}=x" for param in required), *(f"word-{number}" for number in range(4))]
        assert "word-3" in error_of(name, *words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "predict --precision bf16",
            "--precision bf16: allowed: 32-true, bf16-true, 16-true, bf16-mixed, 16-mixed;"
            " did you mean bf16-true or bf16-mixed?",
        ),
        (
            "predict --batch abc --model x --card all",
            "--batch abc: allowed: whole numbers from 1 to 999999999, such as 4 or 1,2,4",
        ),
        ("predict --max-gib nan", "--max-gib nan: allowed: numbers"),
        ("run --siz tiny", "unknown option --siz; did you mean --size?; see testbed run --help"),
        ("run --rerun=yes", "--rerun takes no value; see testbed run --help"),
        ("run", "run: needs SUITE or --suite-file, or else --group; `testbed list` shows the suites"),
        ("lists", "did you mean list?"),
        ("--cloud x", "missing command; see testbed --help"),
        ("report a b c", "unexpected argument b c; see testbed report --help"),
        ("logs", "ROW is required; see testbed logs --help"),
        ("predict xxl-sgd", "unknown suite 'xxl-sgd' (xxl-sgd is a row of single_gpu_blip2); allowed: beyond"),
        (
            "run single_gpu_blip2/xxl",
            "unknown suite 'single_gpu_blip2/xxl' (xxl is a row of beyond and single_gpu_blip2); allowed: beyond",
        ),
        ("list single_gpu_blip", "did you mean single_gpu_blip2?"),
        ("run single_gpu_blip2 slurm_hf_trainer --row xxll", "; similar: xxl"),
        ("run single_gpu_blip2 slurm_hf_trainer --row q", "; `testbed list SUITE` shows the rows"),
        ("slots --hours soon", "--hours: length 'soon' is malformed; allowed: 3 or 3h (hours), 2h50m, 45m, 7d"),
        ("slots --time-of-day noon", "--time-of-day: hours 'noon' are not a daily window; allowed: 9-17"),
        ("slots --zone Helsinki", "--zone: unknown time zone 'Helsinki'; similar names: Europe/Helsinki"),
        ("slots --start 2099-01-01", "--start: time '2099-01-01' has no time zone; allowed: 20"),
        ("slots --site nowhere", "unknown site 'nowhere'; allowed: chameleon, kvm"),
        ("extend --by soon", "--by: length 'soon' is malformed; allowed: 3 or 3h"),
        ("status --within soon", "--within: length 'soon' is malformed; allowed: 3 or 3h"),
        ("reproduce --site demo --max-hours soon", "--max-hours: length 'soon' is malformed; allowed: 3 or 3h"),
        ("lease --site demo --end-when-idle soon", "--end-when-idle: length 'soon' is malformed; allowed: 3 or 3h"),
        ("slots --count 2.5", "--count 2.5: allowed: whole numbers from 1"),
    ],
)
def test_an_error_has_no_wording_of_pydantic(error_of, arguments, message):
    assert message in error_of(*arguments.split())


@pytest.mark.parametrize("bad", BAD_FILES, ids=lambda bad: bad[:12])
@pytest.mark.parametrize("line", READ)
def test_a_file_that_cannot_be_read_is_named_in_one_line(error_of, invalid_files, line, bad):
    error = error_of(*(word.replace("@", bad).replace("RUN", RUN) for word in line.split()))
    exists = line.startswith("configure") and bad.endswith(".yaml")
    assert bad in error or (exists and error.startswith("no active lease"))


@pytest.mark.parametrize("bad", ["file/below", "a" * 300], ids=lambda bad: bad[:12])
@pytest.mark.parametrize("line", WRITTEN)
def test_a_path_that_cannot_be_written_is_named_in_one_line(error_of, invalid_files, line, bad):
    assert bad in error_of(*(word.replace("@", bad).replace("RUN", RUN) for word in line.split()))


@pytest.mark.parametrize(("name", "param"), [one for one in OPTIONS if value_type(one[1]) is Path], ids=_id)
def test_an_empty_path_is_rejected(error_of, name, param):
    assert error_of(name, displayed_name(param), "").startswith(f"{displayed_name(param)} '': allowed: a path")


def test_a_missing_file_that_is_not_in_the_command_line_shows_a_traceback(monkeypatch, capsys):
    def broken():
        raise FileNotFoundError(2, "No such file or directory", "/somewhere/else")

    monkeypatch.setattr(catalog, "cards_as_data", broken)
    assert main(["cards"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_value_of_several_lines_is_reported_in_one_line(error_of):
    assert error_of("predict", "--precision", "bf16\n-true").startswith("--precision bf16 -true: allowed: ")


def test_the_example_in_the_error_for_an_invalid_time_is_in_the_future(error_of):
    example = error_of("slots", "--start", "tomorrow").split("allowed: ")[1].split(TIME)[0]
    assert datetime.fromisoformat(f"{example}{TIME}") > datetime.now(UTC)


def test_a_similar_name_is_found_by_its_beginning_or_by_similarity():
    assert similar_names("bf16", ["32-true", "bf16-true"]) == "bf16-true"
    assert similar_names("adamm", ["sgd", "adamw"]) == "adamw"
    assert similar_names("", ["sgd"]) == similar_names("quite different", ["sgd"]) == ""
