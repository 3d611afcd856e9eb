"""Every error the program raises on purpose.

InstantVisionError
├── ConfigError          a value the user gave is out of range or malformed (exit 2)
│   └── UnknownPreset    no preset of that name
├── SourceError          a camera or file cannot be opened, or stopped giving frames
├── SinkError            a virtual camera or output file cannot be opened or written
├── ObsError             OBS cannot be reached, or refused a request
├── WeightsError         a weights file is missing, damaged or of another model
└── EngineError          the device cannot run the model (memory, missing driver)

Each message names both values and the next step, on one line. The CLI prints `Type: message` and catches nothing else.
"""


class InstantVisionError(Exception):
    """Base of all expected errors."""

    exit_code = 1


class ConfigError(InstantVisionError):
    """A value the user gave is out of range or malformed."""

    exit_code = 2


class UnknownPreset(ConfigError):
    """No preset has the requested name."""


class SourceError(InstantVisionError):
    """A frame source cannot be opened or stopped giving frames."""


class SinkError(InstantVisionError):
    """A frame sink cannot be opened or written."""


class ObsError(InstantVisionError):
    """OBS cannot be reached, or refused a request.

    Args:
        code: why obs-websocket refused it, as in its protocol's list RequestStatus (600: no such thing, 601: exists
            already); None if it did not answer.
    """

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class WeightsError(InstantVisionError):
    """A weights file is missing, damaged or belongs to another model."""


class EngineError(InstantVisionError):
    """The device cannot run the model."""
