"""The command line: arguments become config objects, errors become one line and an exit code.

Exit 0 fine, 1 expected error, 2 usage or a value out of range, 130 Ctrl-C. Data goes to stdout, everything else
to stderr. No logic lives here, and whatever is slow to import is imported inside the command that needs it.
"""

import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from instantvision.integrations.forms import SINK_FORMS, SOURCE_FORMS
from instantvision.pipeline.config import (
    Fit,
    LiveConfig,
    Mix,
    Pipeline,
    Settings,
    Size,
    Solver,
    Spacing,
    Temporal,
)
from instantvision.pipeline.control import FADE_S, Show
from instantvision.pipeline.errors import InstantVisionError
from instantvision.pipeline.presets import settings_for
from instantvision.pipeline.sizes import (
    BENCH_FRAMES,
    BENCH_SIDE,
    DEMO_SIDE,
    RENDER_SIDE,
    RUN_SIDE,
    bench_sides,
)
from instantvision.plugin.front_ends import DEFAULT_PORT, FrontEnds, Run, open_front_ends, parse_scenes
from instantvision.plugin.obs_commands import app as obs_app
from instantvision.plugin.preset_commands import app as presets_app

DEFAULTS = Settings()
LIVE_DEFAULTS = LiveConfig()


class OneLineErrors(TyperGroup):
    """Prints an expected error as `Type: message` and ends with its exit code; --debug shows where it came from."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except InstantVisionError as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"{type(error).__name__}: {error}", err=True)
            raise typer.Exit(error.exit_code) from error


app = typer.Typer(
    cls=OneLineErrors,
    help="Restyle live video with a latent diffusion model: webcam or file in, virtual camera or file out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(presets_app, name="presets")
app.add_typer(obs_app, name="obs")

PresetOption = Annotated[str, typer.Option(help="A look, or a mix such as oil:0.7,ink:0.3.")]
StepsOption = Annotated[int, typer.Option(help="Denoiser evaluations a frame.")]
StrengthOption = Annotated[
    float | None, typer.Option(help="0 to 1, the full effect.", show_default="the preset's")
]
SeedOption = Annotated[int | None, typer.Option(help="Of the noise.", show_default="the preset's")]
TemporalOption = Annotated[
    Temporal | None,
    typer.Option(
        help="What a frame takes over from the one before: nothing, the noise, all that did not move, or that and "
        "deep features.",
        show_default="warm; noise with throughput",
    ),
]
EpsilonOption = Annotated[
    float, typer.Option(help="With warm: leave out steps that change less than this; 0 leaves none out.")
]
SpacingOption = Annotated[Spacing, typer.Option(help="Where the steps lie; trailing for distilled models.")]
SolverOption = Annotated[
    Solver,
    typer.Option(
        help="How a step is made: first or second order, or (lcm, tcd) as a model was distilled for."
    ),
]
FloorOption = Annotated[int, typer.Option(help="With warm: the fewest steps of a frame that moved.")]
CeilingOption = Annotated[
    int, typer.Option(help="With warm and full: the most steps of a frame that is no cut.")
]
PipelineOption = Annotated[
    Pipeline,
    typer.Option(
        help="Finish each frame before the next, or have one on its way for each step: more, but later."
    ),
]
Fp8Option = Annotated[
    bool,
    typer.Option("--fp8", help="Multiply in 8 bits what can be, on GPUs that have it: faster, less exact."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable data on stdout.")]
SIZE_HELP = "N or WxH in pixels, multiples of 16."


def main() -> None:
    """The console script."""
    app(prog_name="instantvision")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"instantvision {version('instantvision')}")
        raise typer.Exit


@app.callback()
def every_command(
    # Its callback has ended the program before this is called.
    version: Annotated[  # noqa: ARG001
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the command; OneLineErrors reads --debug too."""
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(levelname)s: %(message)s")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for demo.mp4 and presets.png.")] = Path(
        "instantvision-demo"
    ),
    preset: PresetOption = str(DEFAULTS.mix),
    size: Annotated[str | None, typer.Option(help=SIZE_HELP, show_default=str(DEMO_SIDE))] = None,
    temporal: TemporalOption = None,
    epsilon: EpsilonOption = DEFAULTS.epsilon,
    steps_floor: FloorOption = DEFAULTS.steps_floor,
    steps_ceiling: CeilingOption = DEFAULTS.steps_ceiling,
    as_json: JsonOption = False,
) -> None:
    """Stylise a bundled portrait, to see what this computer and every preset can do."""
    settings = dataclasses.replace(
        settings_for(Mix.parse(preset), size=_size(size)),
        temporal=temporal or DEFAULTS.temporal,
        epsilon=epsilon,
        steps_floor=steps_floor,
        steps_ceiling=steps_ceiling,
    )
    from instantvision.pipeline.demo import make_demo
    from instantvision.pipeline.report import progress_bar

    with progress_bar("demo") as on_progress:
        summary = make_demo(out, settings, size_given=size is not None, on_progress=on_progress)
    typer.echo(_json(summary.to_json()) if as_json else summary)


@app.command()
def render(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Video or picture.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="File to write, of the same kind.")],
    preset: PresetOption = str(DEFAULTS.mix),
    size: Annotated[
        str | None, typer.Option(help=SIZE_HELP, show_default=f"the input's shape, longer side {RENDER_SIDE}")
    ] = None,
    steps: StepsOption = DEFAULTS.steps,
    strength: StrengthOption = None,
    seed: SeedOption = None,
    temporal: TemporalOption = None,
    epsilon: EpsilonOption = DEFAULTS.epsilon,
    steps_floor: FloorOption = DEFAULTS.steps_floor,
    steps_ceiling: CeilingOption = DEFAULTS.steps_ceiling,
    spacing: SpacingOption = DEFAULTS.spacing,
    solver: SolverOption = DEFAULTS.solver,
    pipeline: PipelineOption = DEFAULTS.pipeline,
    fp8: Fp8Option = False,
    max_frames: Annotated[int | None, typer.Option(help="Stop after so many.", show_default="all")] = None,
    as_json: JsonOption = False,
) -> None:
    """Restyle a video file, every frame, with its sound; or a picture."""
    settings = settings_for(Mix.parse(preset), size=_size(size), steps=steps, strength=strength, seed=seed)
    settings = dataclasses.replace(
        settings,
        temporal=temporal or _temporal(pipeline),
        epsilon=epsilon,
        steps_floor=steps_floor,
        steps_ceiling=steps_ceiling,
        spacing=spacing,
        solver=solver,
        pipeline=pipeline,
    )
    from instantvision.pipeline.render import RenderJob
    from instantvision.pipeline.render import render as render_job
    from instantvision.pipeline.report import progress_bar

    job = RenderJob(
        source=source,
        output=output,
        settings=settings,
        keep_shape=size is None,
        max_frames=max_frames,
        fp8=fp8,
    )
    with progress_bar(source.name) as on_progress:
        summary = render_job(job, on_progress)
    typer.echo(_json(summary.to_json()) if as_json else summary)


@app.command()
def run(
    source: Annotated[str, typer.Option(help=f"{SOURCE_FORMS}.")] = "webcam",
    sink: Annotated[str, typer.Option(help=f"{SINK_FORMS}.")] = "virtual-camera",
    preset: PresetOption = str(DEFAULTS.mix),
    size: Annotated[str | None, typer.Option(help=SIZE_HELP, show_default=str(RUN_SIDE))] = None,
    fps: Annotated[float, typer.Option(help="Frames a second that the sink gets.")] = LIVE_DEFAULTS.fps,
    steps: StepsOption = DEFAULTS.steps,
    strength: StrengthOption = None,
    seed: SeedOption = None,
    temporal: TemporalOption = None,
    epsilon: EpsilonOption = DEFAULTS.epsilon,
    steps_floor: FloorOption = DEFAULTS.steps_floor,
    steps_ceiling: CeilingOption = DEFAULTS.steps_ceiling,
    spacing: SpacingOption = DEFAULTS.spacing,
    solver: SolverOption = DEFAULTS.solver,
    pipeline: PipelineOption = DEFAULTS.pipeline,
    fp8: Fp8Option = False,
    duration: Annotated[float | None, typer.Option(help="Seconds.", show_default="until Ctrl-C")] = None,
    fit: Annotated[
        Fit, typer.Option(help="Fill the size and crop, or show all between bars.")
    ] = DEFAULTS.fit,
    mirror: Annotated[bool, typer.Option("--mirror", help="Flip left and right.")] = DEFAULTS.mirror,
    fade: Annotated[float, typer.Option(help="Seconds from one look to the next.")] = FADE_S,
    panic_mode: Annotated[
        Show, typer.Option(help="What panic shows; `camera` is the real picture, `effect` is refused.")
    ] = Show.SLATE,
    control: Annotated[bool, typer.Option(help="Serve the dock on this computer.")] = True,
    control_port: Annotated[int, typer.Option(min=0, max=65535, help="Of the dock; 0 takes a free one.")] = (
        DEFAULT_PORT
    ),
    obs: Annotated[bool, typer.Option(help="Follow OBS Studio through its websocket.")] = False,
    scene: Annotated[
        list[str] | None, typer.Option(metavar="SCENE=PRESET", help="The look of a scene in OBS; repeatable.")
    ] = None,
    loop: Annotated[bool, typer.Option(help="Begin a file again at its end.")] = True,
    stats_json: Annotated[Path | None, typer.Option(help="File for the figures of the run.")] = None,
) -> None:
    """Restyle live, until Ctrl-C.

    Keys at a terminal: p panic, e back to the effect, b bypass, n and N next and previous look, q quit.
    """
    settings = settings_for(Mix.parse(preset), size=_size(size), steps=steps, strength=strength, seed=seed)
    settings = dataclasses.replace(
        settings,
        fit=fit,
        mirror=mirror,
        temporal=temporal or _temporal(pipeline),
        epsilon=epsilon,
        steps_floor=steps_floor,
        steps_ceiling=steps_ceiling,
        spacing=spacing,
        solver=solver,
        pipeline=pipeline,
    )
    config = LiveConfig(fps=fps, duration_s=duration)
    wanted = FrontEnds(port=control_port if control else None, obs=obs, scenes=parse_scenes(scene or []))
    from instantvision.pipeline.live import LiveJob, live
    from instantvision.plugin.status_line import StatusLine

    job = LiveJob(
        source=source,
        sink=sink,
        settings=settings,
        size_given=size is not None,
        config=config,
        fade_s=fade,
        panic=panic_mode,
        loop=loop,
        stats_json=stats_json,
        fp8=fp8,
    )
    with StatusLine() as line:
        end = live(
            job,
            line.show,
            lambda control, preview, stop: open_front_ends(
                wanted, Run(control=control, preview=preview, stop=stop), line
            ),
        )
    _leave(130 if end.interrupted else 0, threads_left=end.stats.threads_left)


@app.command()
def bench(
    preset: PresetOption = str(DEFAULTS.mix),
    size: Annotated[str | None, typer.Option(help=SIZE_HELP, show_default=str(BENCH_SIDE))] = None,
    steps: StepsOption = DEFAULTS.steps,
    spacing: SpacingOption = DEFAULTS.spacing,
    solver: SolverOption = DEFAULTS.solver,
    pipeline: PipelineOption = DEFAULTS.pipeline,
    fp8: Fp8Option = False,
    frames: Annotated[
        int | None, typer.Option(min=2, help="Of each measurement.", show_default=str(BENCH_FRAMES))
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Measure more sizes too, and write a page with plots.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how long a frame takes, stage by stage, and what it costs."""
    settings = settings_for(Mix.parse(preset), size=_size(size), steps=steps)
    settings = dataclasses.replace(
        settings, temporal=_temporal(pipeline), spacing=spacing, solver=solver, pipeline=pipeline
    )
    from instantvision.pipeline import bench as bench_module
    from instantvision.pipeline import bench_report
    from instantvision.pipeline.report import bench_table, progress_bar
    from instantvision.pipeline.start import load_mini

    if report:
        bench_report.prepare_folder(report)
    model, settings = load_mini(settings, None if size else BENCH_SIDE.square_on, fp8=fp8)
    count = frames or BENCH_FRAMES.on(model.device.type)
    if report:
        sides = bench_sides(model.device.type)
        with progress_bar("sizes") as on_progress:
            figures = bench_report.write_report(report, model, settings, count, sides, on_progress)
        typer.echo(report / bench_report.PAGE_FILE, err=True)
    else:
        figures = bench_module.run(model, settings, count)
    typer.echo(_json(figures.to_json()) if as_json else bench_table(figures))


@app.command()
def devices(as_json: JsonOption = False) -> None:
    """Cameras and virtual cameras of this computer."""
    from instantvision.integrations.factory import list_devices

    found = list_devices()
    if as_json:
        typer.echo(_json(dataclasses.asdict(found)))
        return
    for title, group in (("cameras", found.cameras), ("virtual cameras", found.virtual_cameras)):
        typer.echo(f"{title}:" if group else f"{title}: none")
        for device in group:
            typer.echo(f"  {device.name}  {device.path}  {device.driver}{'  in use' if device.busy else ''}")
    for note in found.notes:
        typer.echo(note, err=True)


def _size(text: str | None) -> Size | None:
    return None if text is None else Size.parse(text)


def _json(data: object) -> str:
    return json.dumps(data, indent=2)


def _temporal(pipeline: Pipeline) -> Temporal:
    """What frames take over when the user does not say: all they can."""
    return DEFAULTS.temporal if pipeline == "latency" else "noise"


def _leave(code: int, *, threads_left: int) -> None:
    """End with an exit code, without the interpreter's own shutdown where native code may still be running."""
    sys.stdout.flush()
    sys.stderr.flush()
    if threads_left:
        os._exit(code)
    raise typer.Exit(code)
