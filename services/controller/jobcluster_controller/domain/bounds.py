"""The cluster's own limits: what a task gets that asks for nothing, and the most that one may ask for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from jobcluster_common import limits as amounts
from jobcluster_common.errors import Invalid

from .job import NO_LIMITS, JobSpec, Limits


@dataclass(frozen=True, slots=True)
class Bounds:
    """``default`` is within ``max``. Where there is only a max, it is the default too: nothing is above it unasked."""

    default: Limits = NO_LIMITS
    max: Limits = NO_LIMITS

    def check(self, asked: Limits) -> None:
        """:raises Invalid: if more is asked than the cluster allows; every such limit is named."""
        if faults := amounts.faults(asked.amounts(), self.max.amounts(), "this cluster allows"):
            raise Invalid(faults)

    def filled(self, spec: JobSpec) -> JobSpec:
        """The spec with what the cluster gives where it asks for nothing, in its document too."""
        given = self.max.amounts() | self.default.amounts()
        given = {name: amount for name, amount in given.items() if spec.limits.get(name) is None}
        if not given:
            return spec
        default = Limits.of(given)
        shown: dict[str, Any] = dict(spec.document.get("limits", {}))
        shown["io"] = dict(shown.get("io", {}))
        for name in given:
            (shown["io"] if name.startswith("io/") else shown)[name.removeprefix("io/")] = default.get(name)
        return replace(spec, limits_default=default, document={**spec.document, "limits": shown})


UNBOUNDED = Bounds()
