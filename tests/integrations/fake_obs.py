"""An OBS in memory, as far as capturing and setting it up go: profiles, one output, scenes, inputs."""

# Requests are answered by methods of their names.
# ruff: noqa: N802

import base64
import socket
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from instantvision.pipeline.errors import ObsError

GREEN = (40, 200, 40)


class FakeObs:
    """Answers requests as obs-websocket does; an ObsLink.

    Attributes:
        requests: names of all requests, in order.
        gone: True lets every request fail, as if OBS had ended.
        silent: True starts no output on StartRecord.
        busy: names of the status requests that answer `active`.
        paint: gives the colour of the next screenshot.
        after: called after each request with its name: where a test lets a crash happen.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.gone = self.silent = self.closed = False
        self.busy: set[str] = set()
        self.paint: Callable[[], tuple[int, int, int]] = lambda: GREEN
        self.after: Callable[[str], None] = lambda name: None
        self.profiles: dict[str, dict[tuple[str, str], str]] = {"Mine": {}}
        self.profile = "Mine"
        self.sender: socket.socket | None = None
        self.listeners: list[tuple[str, Callable[[dict[str, Any]], None]]] = []
        self.inputs: dict[str, dict[str, Any]] = {
            "Mic": {"kind": "pulse_input_capture", "settings": {}, "offset": 20}
        }
        self.scenes: dict[str, list[tuple[int, str]]] = {"Talk": [(1, "Mic")], "Break": []}
        self.program = "Talk"
        self.screenshots: list[dict[str, Any]] = []
        self.next_item = 10

    def request(self, name: str, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
        if self.gone:
            raise ObsError("OBS cannot be reached")
        self.requests.append(name)
        answer = getattr(self, f"_{name}")(**(data or {}))
        self.after(name)
        return dict(answer or {})

    def on(self, event: str, listener: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        self.listeners.append((event, listener))
        return lambda: self.listeners.remove((event, listener))

    def close(self) -> None:
        self.closed = True

    def tell(self, event: str, **data: Any) -> None:
        """Send an event."""
        for name, listener in list(self.listeners):
            if name == event:
                listener(data)

    def send(self, rgb: tuple[int, int, int] = GREEN, size: tuple[int, int] = (64, 48)) -> None:
        """Send a picture of one colour over the output."""
        assert self.sender is not None
        self.sender.sendall(mpjpeg(rgb, size))

    def collection(self) -> object:
        """What a scene collection keeps."""
        return {name: list(items) for name, items in self.scenes.items()}, {
            name: dict(each) for name, each in self.inputs.items()
        }

    def _GetVideoSettings(self) -> dict[str, int]:
        sides = {"baseWidth": 1280, "baseHeight": 720, "outputWidth": 1280, "outputHeight": 720}
        return sides | {"fpsNumerator": 30, "fpsDenominator": 1}

    def _GetProfileList(self) -> dict[str, object]:
        return {"currentProfileName": self.profile, "profiles": list(self.profiles)}

    def _CreateProfile(self, profileName: str) -> None:
        self.profiles[profileName] = {}
        self.profile = profileName

    def _SetCurrentProfile(self, profileName: str) -> None:
        assert self.sender is None, "the profile was switched under a running output"
        self.profile = profileName

    def _RemoveProfile(self, profileName: str) -> None:
        del self.profiles[profileName]

    def _SetProfileParameter(self, parameterCategory: str, parameterName: str, parameterValue: str) -> None:
        self.profiles[self.profile][parameterCategory, parameterName] = parameterValue

    def _GetRecordStatus(self) -> dict[str, bool]:
        return {"outputActive": self.sender is not None or "GetRecordStatus" in self.busy}

    def _GetStreamStatus(self) -> dict[str, bool]:
        return {"outputActive": "GetStreamStatus" in self.busy}

    def _GetVirtualCamStatus(self) -> dict[str, bool]:
        raise ObsError("not available", 604)

    def _GetReplayBufferStatus(self) -> dict[str, bool]:
        raise ObsError("not available", 604)

    def _StartRecord(self) -> None:
        if "GetRecordStatus" in self.busy:
            raise ObsError("running already", 500)
        if self.silent:
            return
        port = int(self.profiles[self.profile]["AdvOut", "FFURL"].rpartition(":")[2])
        self.sender = socket.create_connection(("127.0.0.1", port))
        self.tell("RecordStateChanged", outputState="OBS_WEBSOCKET_OUTPUT_STARTED")

    def _PauseRecord(self) -> None:
        if self.sender is None:
            raise ObsError("not running", 501)

    def _StopRecord(self) -> None:
        if self.sender is None:
            raise ObsError("not running", 501)
        self.sender.close()
        self.sender = None
        self.tell("RecordStateChanged", outputState="OBS_WEBSOCKET_OUTPUT_STOPPED")

    def _GetCurrentProgramScene(self) -> dict[str, str]:
        return {"currentProgramSceneName": self.program}

    def _GetSourceScreenshot(self, **wanted: Any) -> dict[str, str]:
        self.screenshots.append(wanted)
        width = wanted.get("imageWidth", 1280)
        jpeg = base64.b64encode(_jpeg(self.paint(), (width, width * 720 // 1280))).decode()
        return {"imageData": f"data:image/jpg;base64,{jpeg}"}

    def _GetSceneList(self) -> dict[str, object]:
        return {"scenes": [{"sceneName": name} for name in reversed(self.scenes)]}

    def _GetInputList(self) -> dict[str, object]:
        inputs = self.inputs.items()
        return {
            "inputs": [{"inputName": name, "unversionedInputKind": each["kind"]} for name, each in inputs]
        }

    def _GetInputSettings(self, inputName: str) -> dict[str, object]:
        return {"inputSettings": dict(self.inputs[inputName]["settings"])}

    def _SetInputSettings(self, inputName: str, inputSettings: dict[str, Any], overlay: bool = True) -> None:
        before = self.inputs[inputName]["settings"] if overlay else {}
        self.inputs[inputName]["settings"] = before | inputSettings

    def _CreateInput(
        self, sceneName: str, inputName: str, inputKind: str, inputSettings: dict[str, Any]
    ) -> dict[str, int]:
        assert inputName not in self.inputs
        self.inputs[inputName] = {"kind": inputKind, "settings": inputSettings, "offset": 0}
        return self._CreateSceneItem(sceneName, inputName)

    def _RemoveInput(self, inputName: str) -> None:
        if inputName not in self.inputs:
            raise ObsError("no such input", 600)
        del self.inputs[inputName]
        # As in OBS, where only the scene that is drawn loses its items at once.
        self.scenes[self.program] = [each for each in self.scenes[self.program] if each[1] != inputName]

    def _GetSceneItemList(self, sceneName: str) -> dict[str, object]:
        items = self.scenes[sceneName]
        return {"sceneItems": [{"sceneItemId": number, "sourceName": name} for number, name in items]}

    def _CreateSceneItem(self, sceneName: str, sourceName: str) -> dict[str, int]:
        self.next_item += 1
        self.scenes[sceneName].append((self.next_item, sourceName))
        return {"sceneItemId": self.next_item}

    def _RemoveSceneItem(self, sceneName: str, sceneItemId: int) -> None:
        [source] = [name for number, name in self.scenes[sceneName] if number == sceneItemId]
        self.scenes[sceneName].remove((sceneItemId, source))
        # OBS lets go of an input with its last item.
        if all(source != name for items in self.scenes.values() for _, name in items):
            del self.inputs[source]

    def _SetSceneItemTransform(self, **transform: Any) -> None:
        assert transform["sceneItemTransform"]["boundsWidth"] == 1280

    def _GetInputAudioSyncOffset(self, inputName: str) -> dict[str, float]:
        if not self.inputs[inputName]["kind"].startswith("pulse"):
            raise ObsError("not available", 604)
        return {"inputAudioSyncOffset": self.inputs[inputName]["offset"]}

    def _SetInputAudioSyncOffset(self, inputName: str, inputAudioSyncOffset: float) -> None:
        self.inputs[inputName]["offset"] = inputAudioSyncOffset


def mpjpeg(rgb: tuple[int, int, int] = GREEN, size: tuple[int, int] = (64, 48)) -> bytes:
    """A picture as FFmpeg's muxer writes it."""
    jpeg = _jpeg(rgb, size)
    head = f"--ffmpeg\r\nContent-type: image/jpeg\r\nContent-length: {len(jpeg)}\r\n\r\n"
    return head.encode() + jpeg + b"\r\n"


def _jpeg(rgb: tuple[int, int, int], size: tuple[int, int]) -> bytes:
    picture = np.full((size[1], size[0], 3), rgb[::-1], dtype=np.uint8)
    return cv2.imencode(".jpg", picture)[1].tobytes()
