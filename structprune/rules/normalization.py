"""Normalisations: affine parameters and statistics belong to the channels they scale."""

from __future__ import annotations

from typing import Any

from ..labels import Labels
from .site import Site, rule


@rule("batch_norm", "instance_norm")
def channel_norm(site: Site, input: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Dimension 1 has up to four vectors; statistics run over the others."""
    vectors = [v for v in (*args[:4], *kwargs.values()) if isinstance(v, Labels)]
    input = site.hold(input, (d for d in range(input.ndim) if d != 1), f"statistics of {site.name} run over it")
    for vector in vectors:
        site.join(input, 1, vector, 0)
    return Labels(site.shape, input.coordinates)
