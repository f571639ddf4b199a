"""The ``gallop`` command: results on stdout, progress and errors on stderr.

Exit codes: 0 done, 1 failure, 2 usage, 3 verification mismatch, 4 not found or no access,
130 interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from gallop.config import GallopConfig
from gallop.config_file import read_config, write_config
from gallop.outcome import Outcome
from gallop.setting import Setting
from gallop.settings import defaults, keyword_arguments, settings_of
from sparsedelta.cli import run

__all__ = ["gallop", "main"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sparsedelta", prog_name="gallop")
def gallop() -> None:
    """Fine-tune the few parameters with the largest gradient for their size, as a delta.

    Every command takes --config FILE.yml, whose every key a flag overrides.
    """


def _settings(command: str, *, writes: bool) -> Callable[[_Command], _Command]:
    # Flags and arguments of a command, from the table.
    options = [
        _argument(each) if each.positional else _option(each) for each in settings_of(command)
    ]
    options.append(
        click.option("--config", metavar="FILE", help="Read settings from this YAML file.")
    )
    options.append(
        click.option("--print-config", is_flag=True, help="Print all settings as YAML, and end.")
    )
    if writes:
        options += [
            click.option(
                "--dry-run", is_flag=True, help="Check everything; compute and write nothing."
            ),
            click.option("--force", is_flag=True, help="Replace existing outputs."),
        ]
    options += [
        click.option("-q", "--quiet", is_flag=True, help="No progress, no summary."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
    ]

    def decorate(function: _Command) -> _Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _argument(setting: Setting) -> Callable[[_Command], _Command]:
    return click.argument(setting.name, required=False, metavar=f"[{_metavar(setting)}]")


def _metavar(setting: Setting) -> str:
    return "DATA" if setting.name == "eval_data" else setting.name.upper()


def _option(setting: Setting) -> Callable[[_Command], _Command]:
    # The defaults are not click's: what is given must be told from what is not.
    more: dict[str, Any] = {}
    match setting.kind:
        case "integer":
            more["type"] = _integers(setting)
        case "number":
            more["type"] = _numbers(setting)
        case "numbers":
            more |= {"type": float, "nargs": 2}
        case "texts":
            more["multiple"] = True
        case "choice":
            more["type"] = click.Choice(setting.choices)
    shown = setting.shown or _shown(setting)
    text = f"{setting.help}  [default: {shown}]" if shown else setting.help
    names = setting.flags.split("/") if setting.kind != "switch" else [setting.flags]
    return click.option(
        *names, setting.name, default=None, help=text, metavar=setting.metavar, **more
    )


def _integers(setting: Setting) -> click.ParamType[Any]:
    return click.INT if setting.minimum is None else click.IntRange(min=int(setting.minimum))


def _numbers(setting: Setting) -> click.ParamType[Any]:
    if setting.minimum is None:
        return click.FLOAT
    return click.FloatRange(min=setting.minimum, max=setting.maximum)


def _shown(setting: Setting) -> str:
    match setting.default:
        case None:
            return ""
        case bool(on):
            return setting.flags.split("/")[0 if on else 1].removeprefix("--")
        case tuple(values):
            return " ".join(map(str, values))
    return str(setting.default)


def _given(command: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Values that the configuration file gives, and over them those of the command line."""
    given = read_config(options["config"]) if options["config"] else {}
    for setting in settings_of(command):
        value = options[setting.name]
        if value is not None and value != ():
            given[setting.name] = value
    return given


def _resolved(
    values: Mapping[str, Any], options: Mapping[str, Any], *, needs: tuple[str, ...]
) -> dict[str, Any]:
    """All settings, and the flags that are none; what cannot be left out is there."""
    if options["print_config"]:
        click.echo(write_config(values), nl=False)
        click.get_current_context().exit()
    for name in needs:
        if values[name] is None:
            setting = next(
                each
                for each in settings_of(click.get_current_context().info_name or "")
                if each.name == name
            )
            wanted = _metavar(setting) if setting.positional else setting.flags
            raise click.UsageError(
                f"Missing {wanted}: give it, or {setting.section}.{setting.key} in --config."
            )
    flags = ("force", "quiet", "as_json", "dry_run")
    return {**values, **{name: options[name] for name in flags if name in options}}


@gallop.command()
@_settings("select", writes=True)
def select(**options: Any) -> None:  # noqa: ANN401  (click passes them by name)
    """Choose which parameters of MODEL to train on DATA, and save them as a mask."""
    values = {**defaults(), **_given("select", options)}
    resolved = _resolved(values, options, needs=("model", "data", "out"))
    from gallop.commands import run_select  # noqa: PLC0415  (help must not wait for torch)

    source, data = resolved["model"], resolved["data"]
    _print(run_select(source, data, config=_config(resolved), options=resolved), resolved)


@gallop.command()
@_settings("train", writes=True)
@click.option("--resume", metavar="DIR", help="Go on from the last save in this folder of a run.")
def train(**options: Any) -> None:  # noqa: ANN401
    """Train a share of the parameters of MODEL on DATA, and write the delta to it.

    MODEL is a local folder or a Hub repository. DATA is a .jsonl file, one object a line with
    prompt and completion, text, or messages; any other file is plain text, one example a line.

    An interrupt finishes the step at hand, saves, and says how to go on; a second one stops at
    once.
    """
    given = _given("train", options)
    if options["resume"]:
        from gallop.run_folder import RunFolder  # noqa: PLC0415

        if options["run"]:
            raise click.UsageError("give either --run, to begin a run, or --resume, to go on")
        given.pop("run", None)  # a file names the folder that the run has begun in
        values = RunFolder(options["resume"]).settings(given)
    else:
        values = {**defaults(), **given}
        if values["mask"]:
            _refuse_selection(values, options)
    resolved = _resolved(values, options, needs=("model", "data", "out"))
    resolved["resume"] = options["resume"]
    config = None if resolved["mask"] else _config(resolved)
    from gallop.commands import run_train  # noqa: PLC0415

    source, data = resolved["model"], resolved["data"]
    _print(run_train(source, data, config=config, options=resolved), resolved)


def _refuse_selection(values: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    # A printed configuration has every key: the default beside a mask says nothing.
    default = defaults()
    for each in settings_of("train"):
        if each.section != "selection" or each.name == "mask":
            continue
        if options[each.name] not in (None, ()) or values[each.name] != default[each.name]:
            raise click.UsageError(
                f"give either {each.flags}, to choose a mask, or --mask, to train one"
            )


@gallop.command("eval")
@_settings("eval", writes=False)
def evaluate(**options: Any) -> None:  # noqa: ANN401
    """Measure MODEL, with deltas applied to it if any are given, on DATA.

    perplexity and exact-match read what train reads; choice reads a .jsonl file, one object a line
    with prompt, choices and answer (one of the choices, or its number from 0). Nothing is written.
    """
    values = {**defaults(), **_given("eval", options)}
    resolved = _resolved(values, options, needs=("model", "eval_data"))
    from gallop.measuring import run_eval  # noqa: PLC0415

    _print(run_eval(resolved), resolved)


@gallop.command()
@_settings("estimate", writes=False)
@click.option(
    "--probe", is_flag=True, help="Load the weights and run one micro-batch, for time and peak."
)
def estimate(**options: Any) -> None:  # noqa: ANN401
    """Say what memory and time training MODEL would take, from its headers alone.

    Without DATA, samples are taken to be --max-length tokens long.
    """
    values = {**defaults(), **_given("estimate", options)}
    resolved = _resolved(values, options, needs=("model",))
    from gallop.estimating import run_estimate  # noqa: PLC0415

    _print(run_estimate(_config(resolved), resolved, probe=options["probe"]), resolved)


def _config(values: Mapping[str, Any]) -> GallopConfig:
    config = GallopConfig(**keyword_arguments("GallopConfig", values))
    config.require_known()
    return config


def _print(outcome: Outcome, options: Mapping[str, Any]) -> None:
    if options["as_json"]:
        click.echo(json.dumps(outcome.values, indent=2))
        return
    if options["quiet"]:
        return
    shown = {key: each for key, each in outcome.values.items() if not isinstance(each, dict)}
    width = max(len(key) for key in shown)
    for key, value in shown.items():
        click.echo(f"{key.replace('_', ' '):<{width}}  {_readable(value)}")
    if outcome.lines:
        click.echo()
    for line in outcome.lines:
        click.echo(line)


def _readable(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.6g}"
        case list():
            return ", ".join(map(str, value)) or "none"
        case None:
            return "unknown"
    return str(value)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        arguments: Instead of ``sys.argv[1:]``.
    """
    run(gallop, "gallop", arguments)


if __name__ == "__main__":
    main()
