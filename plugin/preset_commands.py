"""`instantvision presets`: the looks there are, and the user's own as files. A typer app of its own."""

import json
from pathlib import Path
from typing import Annotated

import typer

from instantvision.pipeline.config import Mix, Settings
from instantvision.pipeline.errors import ConfigError
from instantvision.pipeline.presets import find, load_presets, settings_for, user_folder

app = typer.Typer(help="The looks to choose from, and your own.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable data on stdout.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


@app.command("list")
def list_presets(as_json: JsonOption = False) -> None:
    """All looks, each in a sentence."""
    presets = load_presets().values()
    if as_json:
        typer.echo(json.dumps([preset.to_json() for preset in presets], indent=2))
        return
    width = max(len(preset.name) for preset in presets)
    for preset in presets:
        typer.echo(f"{preset.name:{width}}  {preset.description}")


@app.command("show")
def show_preset(name: str, as_json: JsonOption = False) -> None:
    """What one look is made of."""
    preset = find(name)
    typer.echo(json.dumps(preset.to_json(), indent=2) if as_json else preset)


@app.command("save")
def save_preset(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and dashes.")],
    preset: Annotated[
        str | None, typer.Option(help="A look, or a mix.", show_default="what runs at this moment")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="0 to 1, the full effect.", show_default="the preset's")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the noise.", show_default="the preset's")] = None,
    description: Annotated[
        str | None, typer.Option(help="One sentence.", show_default="what it is mixed of")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Save a mix as a look of your own; a program that runs already knows it after its next start."""
    from instantvision.pipeline.preset_files import save

    settings = _running() if preset is None else settings_for(Mix.parse(preset))
    settings = settings_for(
        settings.mix,
        strength=settings.strength if strength is None else strength,
        seed=settings.seed if seed is None else seed,
    )
    typer.echo(save(name, settings, description, force=force))


@app.command("import")
def import_presets(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Preset files, NAME.toml.")],
    force: ForceOption = False,
) -> None:
    """Copy preset files into your folder, each checked first."""
    from instantvision.pipeline.preset_files import take_in

    for file in files:
        typer.echo(take_in(file, force=force))


@app.command("export")
def export_preset(
    name: str,
    file: Annotated[Path | None, typer.Argument(help="NAME.toml.", show_default="stdout")] = None,
    force: ForceOption = False,
) -> None:
    """Write a look to a file, for others to import."""
    from instantvision.pipeline.preset_files import give_away, to_toml

    if file is None:
        typer.echo(to_toml(find(name)), nl=False)
    else:
        give_away(name, file, force=force)


@app.command("path")
def show_path() -> None:
    """The folder of your own looks."""
    typer.echo(user_folder())


def _running() -> Settings:
    from instantvision.plugin.running import running_state

    state = running_state()
    if not state:
        raise ConfigError("nothing is running to save the look of: name one, as in --preset oil:0.7,ink:0.3")
    return settings_for(Mix.parse(state["preset"]), strength=state["strength"], seed=state["seed"])
