"""The shape of the shared network, as a study plan says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from oncofed_shared.plan_sizes import Fusion, Size, sized
from oncofed_shared.strict import Frozen

__all__ = ["ModelSettings"]


class ModelSettings(Frozen):
    """Shape of the shared network.

    Attributes:
        fusion: how modalities are joined: `transformer` over all tokens, `two_way` attention between imaging and genes before
            it, or one of `network_fusion`.
        size: what stands for width, heads, layers and feedforward where they are not given; see `plan_sizes`.
        width: length of a token.
        layers: of the transformer, or feed-forward layers behind another fusion; 0 leaves the linear path alone.
        linear_path: a linear map from all scaled inputs to the outputs beside the fusion, which starts at zero.
        block_scaling: a modality's columns are divided by the root of their number, so that one decay holds two clinical
            columns and 1,500 genes alike (group-wise ridge; van de Wiel et al. 2016).
        hazards: `proportional` (one risk score per patient and one baseline per interval) or `free`.
    """

    fusion: Fusion = "transformer"
    size: Size | None = None
    width: Annotated[int, Field(ge=2, le=512)] = 16
    heads: Annotated[int, Field(ge=1, le=16)] = 2
    layers: Annotated[int, Field(ge=0, le=12)] = 1
    feedforward: Annotated[int, Field(ge=2, le=2048)] = 32
    linear_path: bool = True
    block_scaling: bool = True
    hazards: Literal["proportional", "free"] = "proportional"

    @model_validator(mode="before")
    @classmethod
    def _sized(cls, content: Any) -> Any:
        return sized(content)

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a later key that has its default: a study that was approved before it existed keeps its hash."""
        content: dict[str, Any] = written(self)
        later = {"fusion": "transformer", "size": None}
        return {k: v for k, v in content.items() if k not in later or v != later[k]}

    @field_validator("heads")
    @classmethod
    def _divides(cls, heads: int, info: ValidationInfo) -> int:
        if info.data.get("width", heads) % heads:
            message = "width must be a multiple of heads"
            raise ValueError(message)
        return heads

    @field_validator("layers")
    @classmethod
    def _joins(cls, layers: int, info: ValidationInfo) -> int:
        fusion = info.data.get("fusion", "transformer")
        if layers == 0 and fusion != "transformer":
            message = f"0 leaves the linear path alone, and fusion = '{fusion}' nothing to join"
            raise ValueError(message)
        return layers

    @field_validator("linear_path")
    @classmethod
    def _something(cls, linear_path: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic's way to call
        if info.data.get("layers") == 0 and not linear_path:
            message = "layers = 0 needs linear_path = true, or there is no network"
            raise ValueError(message)
        return linear_path
