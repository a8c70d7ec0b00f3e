"""`prefect-imageqa run`: its flags are the parameters of the flow, with bounds, defaults and help.

The flags are derived from the flow's signature and models, as is the form in Prefect's UI.
"""

import inspect
import sys
from collections.abc import Callable, Collection
from functools import wraps
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import BaseModel, ValidationError

from ...tasks.runs.plugins import import_parser
from ..image_qa import image_qa
from .options import Flag, UsageError
from .terminal import run_in_terminal

_TYPES: dict[str, Any] = {
    "dataset": str,
    "endpoint": Annotated[list[str] | None, Parameter(negative=())],
    "style": str,
    "store": str | None,
}
"""Types of parameters for which Python accepts more than a command line can."""

_FLAGS = {
    ("columns", "image"): "image-key",
    ("columns", "conversation"): "conversation-key",
    ("columns", "answer"): "answer-key",
    ("columns", "output"): "output-key",
    ("images", "root"): "image-root",
    ("exports", "formats"): "export",
    ("pilot", "rows"): "pilot",
    ("pilot", "min_parsed"): "pilot-min-parsed",
    ("pilot", "approval"): "pilot-approval",
    ("pilot", "wait"): "pilot-wait",
    ("checks", "names"): "check",
    ("checks", "times"): "check-times",
    ("checks", "benchmarks"): "benchmark",
    ("checks", "seed"): "check-seed",
}
"""Flags whose name differs from the field of their group."""

Json = Annotated[Flag, Parameter(help="Print one line of JSON last on stdout.")]


def flag_of(group: str, field: str) -> str:
    """The command-line flag of a group's field, without the leading dashes."""
    return _FLAGS.get((group, field), field.replace("_", "-"))


def _extra_body_problem() -> str:
    """What is wrong with --extra-body on the command line; empty if nothing is."""
    # cyclopts would read the value of a single key as a string even if it is a number.
    keys = (word for word in sys.argv if word.startswith("--extra-body."))
    return next((f"{word}: give --extra-body one JSON object" for word in keys), "")


def validation_message(error: ValidationError, flag: str = "") -> str:
    """The first error as one line that names the flag.

    Args:
        error: raised for a group, for all parameters, or for the value of a flag.
        flag: name of the flag in the last case.
    """
    first = error.errors(include_url=False)[0]
    path = [str(step) for step in first["loc"]]
    groups = {
        parameter.annotation.__name__: name
        for name, parameter in _flow_parameters().items()
        if isinstance(parameter.annotation, type)
    }
    # An error raised for a single group names the group only in its title, such as "Sampling".
    path = [*(name for model, name in groups.items() if model == error.title), *path]
    if path and path[0] in groups.values():
        flag = f"--{flag_of(*path[:2])}"
    elif path:
        flag = f"--{path[0].replace('_', '-')}"
    given = f", not {first['input']!r:.100}" if first["type"] == "literal_error" else ""
    return f"{flag}: {first['msg'].removeprefix('Value error, ')}{given}"


def with_code(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters, with the functions that a person at a terminal names as module:function.

    The flow itself takes no code by name: its parameters may come from anyone.
    """
    code: dict[str, Any] = {}
    sys.path.append("")  # the working directory too, as for `python -m`
    try:
        if parsing := parameters.get("parsing"):
            parser = import_parser(parsing.parser)
            code["parsing"] = parsing.model_copy(update={"parser": parser})
    finally:
        sys.path.remove("")
    return parameters | code


def _flow_parameters() -> dict[str, inspect.Parameter]:
    """The parameters of the flow by name."""
    return dict(inspect.signature(image_qa.fn).parameters)


def _as_option(parameter: inspect.Parameter) -> inspect.Parameter:
    """A parameter of the flow as an option of a command; those of a group become flags."""
    name, hint = parameter.name, _TYPES.get(parameter.name, parameter.annotation)
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        hint = Annotated[
            hint, Parameter(name="*", name_transform=_flags_of(name), negative_iterable=())
        ]
    kind = parameter.POSITIONAL_ONLY if name == "dataset" else parameter.KEYWORD_ONLY
    return parameter.replace(annotation=hint, kind=kind)


def _flags_of(group: str) -> Callable[[str], str]:
    return lambda field: flag_of(group, field)


def flow_command(without: Collection[str] = ()) -> Callable[[Callable[..., int]], Any]:
    """Give a command the flow's parameters as options after its own, with their descriptions.

    The command raises a `UsageError` if something is wrong with their values.

    Args:
        without: names of parameters that the command does not have.
    """

    def with_options(command: Callable[..., int]) -> Any:
        @wraps(command)
        def checked(*args: Any, **options: Any) -> int:
            if problem := _extra_body_problem():
                raise UsageError(problem)
            try:
                return command(*args, **options)
            except ValidationError as error:
                raise UsageError(validation_message(error)) from error

        own = inspect.signature(command).parameters
        flow = _flow_parameters()
        options = [option for option in own.values() if option.kind is not option.VAR_KEYWORD]
        left_out = own.keys() | set(without)
        options += [_as_option(flow[name]) for name in flow if name not in left_out]
        _, _, descriptions = str(image_qa.fn.__doc__).partition("\n    Args:\n")
        checked.__doc__ = f"{command.__doc__}\n    Args:\n{descriptions}"
        checked.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
        checked.__annotations__ = {option.name: option.annotation for option in options}
        return checked

    return with_options


@flow_command()
def run(dataset: str, /, *, json: Json = False, **parameters: Any) -> int:
    """Ask a vLLM server for question-answer pairs about the images in every row.

    Exit code 0: the run completed, even with quarantined rows; 1: it failed, or no row is answered;
    2: usage error.

    If PREFECT_IMAGEQA_API_KEY is set, it is sent to endpoints that are given by URL.

    Example: prefect-imageqa run qas.json --output s3://bucket/qa --endpoint http://gpu-1:8000
    """
    if not parameters.get("endpoint") and not parameters.get("model"):
        raise UsageError("give --endpoint, or --model to start a server")
    summary = run_in_terminal(dataset, with_code(parameters))
    print(summary.to_json_line() if json else f"{summary}\n{summary.output}")
    return 0
