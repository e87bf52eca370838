"""Which length counts as 1 between the latent frames of a drive.

The published code divides a recorded trajectory by its longest step. A live drive does not know its
future, so it divides by a fixed length, and so does training.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from lingbot.camera.poses import check_scale

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TranslationScale:
    """Lengths that count as 1.

    Args:
        live: of drives whose future is not known, and of clips; "offline" refuses live drives and
            takes clips as the published offline path does.
        recorded: of drives whose longest step is known; "published" takes that.

    Raises:
        ValueError: for what is neither a positive length nor one of these words.
    """

    live: float | Literal["offline"]
    recorded: float | Literal["published"]

    def __post_init__(self) -> None:
        if self.live != "offline":
            object.__setattr__(self, "live", check_scale(self.live))
        if self.recorded != "published":
            checked = check_scale(self.recorded, "recorded scale", "published")
            object.__setattr__(self, "recorded", checked)

    def of(self, largest_step: float | None, has_origins: bool = True) -> float:
        """The length that counts as 1 in a drive.

        Args:
            largest_step: of a recorded drive; None for a live one.
            has_origins: whether its rays have origins; without them no length matters.

        Raises:
            ValueError: for a live drive where only recorded ones are taken.
        """
        if not has_origins:
            return 1.0
        if largest_step is not None:
            return check_scale(largest_step) if self.recorded == "published" else self.recorded
        if self.live == "offline":
            raise ValueError(
                'translation_scale="offline" needs the longest step of the whole drive, which a '
                "live one does not know: give a number such as 0.2, or drive a recorded folder."
            )
        return self.live

    def log_choice(self, largest_step: float | None) -> None:
        """Logs by which length the translations of a drive are divided, and why."""
        scale = self.of(largest_step)
        if largest_step is None:
            log.info("Translations are divided by %g (camera.translation_scale).", scale)
        elif self.recorded == "published":
            log.info(
                "Translations are divided by %g, the longest step between latent frames of this "
                "recorded drive, as published; camera.recorded_scale takes a fixed length instead.",
                scale,
            )
        else:
            log.info(
                "Translations are divided by %g (camera.recorded_scale); the longest step between "
                "latent frames of this recorded drive is %g.",
                *(scale, largest_step),
            )
