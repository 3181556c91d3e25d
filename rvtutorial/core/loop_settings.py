"""How Lightning's loop runs a training, and where it is written down: names, ranges, defaults.

Written by hand: known without torch and Lightning, so that sweep files are checked anywhere.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rvtutorial.core.names import near_match


class LoopSettings(BaseModel):
    """How Lightning's loop runs a training, and where it is written down.

    Values may be texts. Raises ValueError that names the setting, what it may be and what
    was given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    accumulate: int = Field(
        1, ge=1, description="batches whose gradients make one step"
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="what computes"
    )
    devices: int = Field(
        1, ge=1, le=64, description="processes on one machine, a GPU each"
    )
    nodes: int = Field(
        1, ge=1, le=256, description="machines, each with so many devices"
    )
    batches: Literal["engine", "raster_vision"] = Field(
        "engine", description="whose data sets cut the chips"
    )
    workers: int = Field(
        0, ge=0, le=64, description="processes that read, with batches=raster_vision"
    )
    train_scores: bool = Field(
        False, description="IoU and the like of training chips too"
    )
    wandb: Literal["offline", "online", "off"] = Field(
        "offline",
        description="Weights & Biases: files here, upload at once, or nothing",
    )
    project: str = Field("rvtutorial", description="project of Weights & Biases")
    entity: str | None = Field(
        None, description="team or user there; none: the user's default"
    )
    run_name: str | None = Field(None, description="name there; none: the run's folder")

    @classmethod
    def of(cls, **given) -> "LoopSettings":
        "Settings from names and values; None is the default."
        known = cls.model_fields
        given = {k: v for k, v in given.items() if v is not None}
        for name in given:
            if name not in known:
                raise ValueError(
                    f"there is no setting {name!r}; {near_match(name, known)}"
                )
        try:
            return cls(**given)
        except ValidationError as err:
            wrong = err.errors()[0]
            if not wrong["loc"]:
                raise ValueError(wrong["msg"].removeprefix("Value error, ")) from None
            name = wrong["loc"][0]
            what = f"{name} ({known[name].description})"
            raise ValueError(f"{what}: {wrong['msg']}, got {given[name]!r}") from None

    def model_post_init(self, context):
        if self.workers and self.batches == "engine":
            raise ValueError(
                f"workers={self.workers} would do nothing: the engine's batches are read by "
                "threads of its own. Leave workers out, or use batches=raster_vision"
            )
        if self.processes > 1 and self.batches != "engine":
            raise ValueError(
                f"{self.processes} processes share the batches of the engine, got "
                f"batches={self.batches}: use batches=engine, or one device"
            )

    @property
    def processes(self) -> int:
        "How many work on each batch."
        return self.devices * self.nodes

    @property
    def deciding(self) -> dict:
        "Those that decide what is learned."
        own = {"accumulate": self.accumulate, "processes": self.processes}
        return own | {"batches": self.batches}
