"""Where our MJPEG output is found; apart from its server, so that the set-up and help texts import no numpy."""

HOST, PATH, DEFAULT_PORT, PORT_MAX = "127.0.0.1", "/v.mjpg", 8766, 65535


def address(port: int = DEFAULT_PORT) -> str:
    """The URL that OBS's media source opens."""
    return f"http://{HOST}:{port}{PATH}"
