"""`instantvision obs`: puts our picture into OBS, says what is set up, takes it out again; where the script lies.

A typer app of its own; whatever reaches for OBS is imported inside the commands.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from instantvision.integrations.mjpeg_address import DEFAULT_PORT

if TYPE_CHECKING:
    from instantvision.integrations.obs_link import ObsLink

app = typer.Typer(help="Our picture in OBS Studio: set up, look, undo.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable data on stdout.")]


@app.command("setup")
def setup_command(
    scene: Annotated[
        str | None, typer.Option(help="Scene that gets the picture.", show_default="the one on air")
    ] = None,
    audio: Annotated[
        str | None, typer.Option(help="Audio source to keep in step with the picture.", show_default="none")
    ] = None,
    latency_ms: Annotated[
        float | None,
        typer.Option(help="How late the sound shall be.", show_default="as late as the picture is"),
    ] = None,
    port: Annotated[int, typer.Option(help="Of the sink obs, without a virtual camera.")] = DEFAULT_PORT,
    as_json: JsonOption = False,
) -> None:
    """Make a source "Instant Vision" in OBS that shows our output; run again, it changes nothing."""
    from instantvision.integrations.obs_journal import SETUP, journal
    from instantvision.integrations.obs_setup import MEDIA_SOURCE_MS, Wanted, own_camera, set_up
    from instantvision.plugin.running import measured_latency_ms

    camera = own_camera()
    if audio is not None and latency_ms is None:
        latency_ms = measured_latency_ms()
        if latency_ms is not None and camera is None:
            latency_ms += MEDIA_SOURCE_MS
    wanted = Wanted(scene=scene, camera=camera, port=port, audio=audio, latency_ms=latency_ms)
    with _link() as link:
        status = set_up(link, journal(SETUP), wanted)
    typer.echo(json.dumps(status.to_json(), indent=2) if as_json else status)
    if camera is None:
        sink = "obs" if port == DEFAULT_PORT else f"mjpeg:{port}"
        typer.echo(f"send it pictures with: instantvision run --sink {sink}", err=True)


@app.command("status")
def status_command(as_json: JsonOption = False) -> None:
    """What is set up in OBS."""
    from instantvision.integrations.obs_journal import SETUP, journal
    from instantvision.integrations.obs_setup import status

    with _link() as link:
        found = status(link, journal(SETUP))
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else found)


@app.command("undo")
def undo_command(as_json: JsonOption = False) -> None:
    """Put everything in OBS back as it was, also what a crashed run has left."""
    from instantvision.integrations.obs_journal import PROFILE, SETUP, journal
    from instantvision.integrations.obs_profile import put_back_after_a_crash
    from instantvision.integrations.obs_setup import undo

    with _link() as link:
        done = list(undo(link, journal(SETUP)))
        if put_back_after_a_crash(link, journal(PROFILE)):
            done.append("profile of an earlier run removed")
    if as_json:
        typer.echo(json.dumps({"done": done}, indent=2))
    else:
        typer.echo("\n".join(done) or "nothing to undo")


@app.command("script-path")
def script_path_command() -> None:
    """The script to add in OBS under Tools → Scripts."""
    from instantvision.plugin.obs_script_path import script_path

    typer.echo(script_path())


@contextmanager
def _link() -> Iterator["ObsLink"]:
    from instantvision.integrations.obs_client import connect

    link = connect()
    try:
        yield link
    finally:
        link.close()
