"""A parameter as a matrix whose rows may lie on several processes (FSDP2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from lambda24.common.optim.orthonormal import Rows


@dataclass(frozen=True)
class RowMatrix:
    """A parameter as `(out, in)` of which this process holds rows, whole if it is no DTensor.

    The update runs on the orientation (m, n) with m >= n; `tall` are the m rows, `wide` the n.
    """

    parameter: nn.Parameter
    rows: Rows  # of `out`
    num_inputs: int

    @classmethod
    def of(cls, parameter: nn.Parameter) -> RowMatrix:
        total = parameter.shape[0]
        num_inputs = parameter.numel() // total
        if not isinstance(parameter, DTensor):
            return cls(parameter, Rows.all(total), num_inputs)
        mesh = parameter.device_mesh
        sharded = [axis for axis, how in enumerate(parameter.placements) if how != Replicate()]
        if not sharded:
            return cls(parameter, Rows.all(total), num_inputs)
        if len(sharded) > 1 or parameter.placements[sharded[0]] != Shard(0):
            raise ValueError(
                f"dion works on rows: placements must be one Shard(0) and Replicate, got "
                f"{parameter.placements}"
            )
        most = math.ceil(total / mesh.size(sharded[0]))
        start = min(total, mesh.get_local_rank(sharded[0]) * most)
        count = min(most, total - start)
        rows = Rows(start, count, total, most, mesh.get_group(sharded[0]))
        return cls(parameter, rows, num_inputs)

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.parameter.dtype, torch.float32)

    @property
    def is_transposed(self) -> bool:
        return self.rows.total < self.num_inputs

    @property
    def tall(self) -> Rows:
        return Rows.all(self.num_inputs) if self.is_transposed else self.rows

    @property
    def wide(self) -> Rows:
        return self.rows if self.is_transposed else Rows.all(self.num_inputs)

    def as_rows(self, local: Tensor) -> Tensor:
        """State whose rows lie where the parameter's do."""
        if not isinstance(self.parameter, DTensor):
            return local
        return self._distribute(local, self.rows.total, self.parameter.placements)

    def as_replica(self, local: Tensor) -> Tensor:
        """State that every process holds whole."""
        if not isinstance(self.parameter, DTensor):
            return local
        everywhere = tuple(Replicate() for _ in self.parameter.placements)
        return self._distribute(local, len(local), everywhere)

    def _distribute(
        self, local: Tensor, num_rows: int, placements: tuple[Placement, ...]
    ) -> Tensor:
        assert isinstance(self.parameter, DTensor)
        width = local.shape[1]
        distributed: Tensor = DTensor.from_local(
            local.contiguous(),
            self.parameter.device_mesh,
            placements,
            shape=torch.Size((num_rows, width)),
            stride=(width, 1),
        )
        return distributed


def local_part(x: Tensor | None) -> Tensor:
    """What this process holds of `x`; writing to it writes to `x`."""
    assert x is not None
    local: Tensor = x.to_local() if isinstance(x, DTensor) else x
    return local
