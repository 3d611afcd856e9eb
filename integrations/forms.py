"""How a person names a source or a sink; apart from the factory, so that a help text imports no numpy."""

SOURCE_FORMS = "webcam, webcam:NAME, obs, obs:NAME, file:PATH or test-pattern"
SINK_FORMS = "virtual-camera, virtual-camera:NAME, obs, mjpeg:PORT, file:PATH or null"
