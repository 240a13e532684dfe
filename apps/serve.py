"""`manifold serve`: binds an address, says so, and runs the service until Ctrl-C."""

from __future__ import annotations

import ipaddress
import socket
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from manifold.errors import InputError, ManifoldWarning, MissingExtraError

__all__ = ["is_local", "serve_workspace"]

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def serve_workspace(
    workspace: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    images: str | Path | None = None,
    encoder: str | None = None,
    allow_hosts: Sequence[str] = (),
    max_body_mb: float = 20.0,
    max_megapixels: float = 50.0,
    max_k: int = 1000,
    thumbnail_px: int = 256,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve a workspace over HTTP until the process is interrupted.

    Arguments
        workspace: an indexed one.
        host, port: address to listen at; port 0 takes a free one.
        images, encoder, thumbnail_px: see `SearchService.open`.
        allow_hosts: further names that the Host header may have, where the address is local.
        max_body_mb: largest request, in 10^6 bytes. max_megapixels: largest image, in 10^6 pixels. max_k: most neighbours.
        announce: told the address once the server listens.

    Raises: MissingExtraError if FastAPI is not installed; InputError if the address cannot be had or a limit is not
        positive; all of `SearchService.open`.
    """
    try:
        import uvicorn

        from .server import create_app
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"the server needs {error.name}, which is not installed; run: pip install 'latent-manifold[serve]'"
        ) from error
    from .search_service import Limits

    local = is_local(host)
    hosts = _LOCAL_NAMES | {host.lower(), *map(str.lower, allow_hosts)} if local else None
    body, pixels = _millions("--max-body-mb", max_body_mb), _millions("--max-megapixels", max_megapixels)
    limits = Limits(max_body_bytes=body, max_image_pixels=pixels, max_k=max_k)
    # The address first: that it is taken is known at once, a large workspace takes a while to open.
    with _listen(host, port) as listening:
        app = create_app(
            workspace, limits=limits, images=images, encoder=encoder, thumbnail_px=thumbnail_px, hosts=hosts
        )  # fmt: skip
        if not local:
            warnings.warn(
                f"listening at {host}, so everyone who reaches this machine can search the collection and see its "
                "pictures; there is no password",
                ManifoldWarning,
                stacklevel=2,
            )
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        announce(f"serving {workspace} at {address}; what it answers: {address}/docs; Ctrl-C stops it")
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5, ws="none")
        uvicorn.Server(config).run(sockets=[listening])


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _millions(option: str, value: float) -> int:
    if not 1e-6 <= value <= 1e6:  # also where it is not a number
        raise InputError(f"{option} must be from 1e-6 to 1e6, it is {value:g}")
    return round(value * 10**6)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot listen at {host}, port {port} ({reason}); choose others with --host and --port"
        ) from error
