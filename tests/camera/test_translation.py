"""Which length counts as 1, and that it is told."""

import logging

import pytest

from lingbot.camera.translation import TranslationScale


def test_live_drives_keep_the_fixed_length_and_recorded_ones_take_their_longest_step() -> None:
    scale = TranslationScale(0.2, "published")
    assert scale.of(None) == 0.2
    assert scale.of(6.5) == 6.5
    assert TranslationScale(0.2, 0.3).of(6.5) == 0.3
    assert TranslationScale("offline", 0.3).of(6.5) == 0.3


def test_rays_without_origins_need_no_length() -> None:
    assert TranslationScale("offline", "published").of(None, has_origins=False) == 1


def test_a_live_drive_has_no_longest_step_to_take() -> None:
    with pytest.raises(ValueError, match="which a live one does not know"):
        TranslationScale("offline", "published").of(None)


@pytest.mark.parametrize(
    ("recorded", "step", "said"),
    [
        ("published", None, "divided by 0.2 (camera.translation_scale)"),
        ("published", 6.5, "divided by 6.5, the longest step between latent frames"),
        (0.3, 6.5, "divided by 0.3 (camera.recorded_scale); the longest step"),
    ],
)
def test_the_log_says_which_length_is_taken(recorded, step, said, caplog) -> None:
    caplog.set_level(logging.INFO)
    TranslationScale(0.2, recorded).log_choice(step)
    (message,) = caplog.messages
    assert said in message
