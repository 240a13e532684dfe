"""How a pipeline of diffusers calls its network, seen once, so that the network can be asked so again with other states.

Pipelines differ in what they give their network beside the state (embeddings, masks, sizes, ids), in the name and unit of the
timestep, and in how states lie in memory. All of it is there in the first call of a run, which is stopped right there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifold.errors import InputError
from manifold.pipeline_families import StateLayout, replaced, state_layout

__all__ = ["NetworkCall", "first_call"]

_TOGETHER = 16
"""States in one call."""
_STATES, _TIMESTEPS = ("sample", "hidden_states", "x"), ("timestep", "t")
"""What networks call them."""


@dataclass(frozen=True)
class NetworkCall:
    """A call of a network. Made by `first_call`.

    Attributes
        state: the state as it was shown, of one image, as the pipeline keeps it. layout: of it.
        scale: what the network is told of a timestep, over the scheduler's own.
        given: what else it was given, by keyword; of one image.
        names: keywords of the state and of the timestep.
        planned: arguments and keywords of `scheduler.set_timesteps`.
    """

    state: Tensor
    layout: StateLayout
    scale: float
    given: dict[str, Any]
    names: tuple[str, str]
    planned: tuple[tuple[Any, ...], dict[str, Any]]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a state."""
        channels, height, width = self.layout.unpack(self.state).shape[1:]
        return channels, height, width

    def ask(self, network: Callable[..., Any], states: Tensor, timesteps: Tensor) -> Tensor:
        """The network's output for states (n, C, H, W) at the scheduler's timesteps, () or (n,), in their type and place."""
        asked = timesteps.expand(len(states)) if timesteps.ndim == 0 else timesteps
        parts = zip(states.split(_TOGETHER), asked.split(_TOGETHER), strict=True)
        return torch.cat([self._ask(network, part, at) for part, at in parts])

    def _ask(self, network: Callable[..., Any], states: Tensor, timesteps: Tensor) -> Tensor:
        shown = self.layout.pack(states.to(self.state))
        told = (timesteps * self.scale if self.scale != 1 else timesteps).to(self.state.device)
        given = {name: _repeated(value, len(states)) for name, value in self.given.items()}
        output = network(**dict(zip(self.names, (shown, told), strict=True)), **given)
        output = getattr(output, "sample", output)
        output = output[0] if isinstance(output, tuple) else output
        return self.layout.unpack(output).to(states)


def first_call(pipeline: Any, network: Any, call: Mapping[str, Any]) -> NetworkCall:
    """How `pipeline(**call)`, a call for one image whose state is not doubled for guidance, calls its network.

    Raises: InputError if the network is never called, or shown more than one state; what the pipeline raises before.

    Cost: all that the pipeline does before, such as encoding the prompt; the network itself is not evaluated.
    """
    planned: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def watch(set_timesteps: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            planned.append((args, kwargs))
            return set_timesteps(*args, **kwargs)

        return watched

    def stop(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(args, kwargs)

    hook = network.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with replaced(pipeline.scheduler, "set_timesteps", watch):
            pipeline(**call, generator=torch.Generator().manual_seed(0))
    except _Reached as reached:
        found = reached
    else:
        raise InputError(f"{type(pipeline).__name__} never called its network, so there is nothing to measure")
    finally:
        hook.remove()
    given = inspect.signature(network.forward).bind(*found.positional, **found.keywords).arguments
    names = tuple(next(one for one in known if one in given) for known in (_STATES, _TIMESTEPS))
    state, told = (given.pop(name) for name in names)
    if len(state) != 1:
        raise InputError(f"the call must be for one image without guidance, the network was shown {len(state)} states")
    layout = state_layout(pipeline, state, (), dict(call))
    own = float(pipeline.scheduler.timesteps[0])
    scale = float(torch.as_tensor(told).reshape(-1)[0]) / own if own else 1.0
    return NetworkCall(state, layout, scale, given, (names[0], names[1]), planned[-1])


class _Reached(Exception):
    """The network is about to be called."""

    def __init__(self, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        super().__init__()
        self.positional, self.keywords = positional, keywords


def _repeated(value: Any, n: int) -> Any:
    """What was given for one image, for n of them."""
    if isinstance(value, Mapping):
        return {name: _repeated(one, n) for name, one in value.items()}
    if isinstance(value, Tensor) and value.ndim and len(value) == 1:
        return value.expand(n, *value.shape[1:])
    return value
