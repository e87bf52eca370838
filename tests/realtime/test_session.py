import time

import numpy as np
import pytest
import torch
from PIL import Image

from lingbot.camera.controls import Controls
from lingbot.codec.video import frames_to_uint8
from lingbot.data.control_stream import ControlStream
from lingbot.diffusion import FewStepSampler, FlowSchedule
from lingbot.model import CachedTransformer, KVCacheConfig, LocalExchange
from lingbot.realtime.account import StepAccount, StepAccounts
from lingbot.realtime.session import RealtimeSession
from tests.model.worlds import (
    HEIGHT,
    SMALL,
    WIDTH,
    PromptLengths,
    small_camera,
    small_codec,
    small_transformer,
)

IMAGE = torch.arange(HEIGHT * WIDTH * 3, dtype=torch.int64).remainder(251).to(torch.uint8)
IMAGE = IMAGE.view(HEIGHT, WIDTH, 3)
DRIVE = ControlStream.from_actions("w-20,jw-12,none-12", 3)


class RecordingSampler(FewStepSampler):
    """Keeps every clean chunk it makes."""

    def __init__(self) -> None:
        super().__init__(FlowSchedule(5.0))
        self.made: list[torch.Tensor] = []

    def __call__(self, *args) -> torch.Tensor:
        self.made.append(super().__call__(*args))
        return self.made[-1]


def make_session(cache=None, policy: str = "step") -> RealtimeSession:
    model = CachedTransformer(
        small_transformer(), cache or KVCacheConfig(), SMALL.grid(3, HEIGHT // 8, WIDTH // 8),
        LocalExchange(SMALL.num_heads), policy,
    )  # fmt: skip
    return RealtimeSession(
        model, small_codec(), PromptLengths(), small_camera(), RecordingSampler()
    )


def drive(session: RealtimeSession, stream=DRIVE, prompt: str = "dusk", seed: int = 0):
    session.reset(IMAGE, prompt, seed)
    return [session.step(controls) for controls in stream]


def test_the_first_step_gives_9_frames_and_later_ones_12():
    frames = drive(make_session())
    assert [tuple(f.shape) for f in frames] == [(9, HEIGHT, WIDTH, 3)] + 3 * [
        (12, HEIGHT, WIDTH, 3)
    ]
    assert all(f.dtype == torch.uint8 for f in frames)


def test_a_reset_alone_starts_the_same_world_over():
    session = make_session()
    first = drive(session, prompt="dusk", seed=5)
    session.reset()
    assert all(torch.equal(session.step(c), frames) for c, frames in zip(DRIVE, first, strict=True))
    session.reset(seed=6)
    assert not torch.equal(session.step(next(iter(DRIVE))), first[0])


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"seed": -1}, "seed=-1"),
        ({"image": IMAGE[1:]}, "uint8"),
    ],
)
def test_a_start_that_is_none_is_refused_and_the_world_goes_on(start, message):
    session = make_session()
    with pytest.raises(RuntimeError, match="no world yet"):
        session.reset()
    session.reset(IMAGE, "dusk")
    with pytest.raises(ValueError, match=message):
        session.reset(**start)
    assert len(session.step(next(iter(DRIVE)))) == 9


def test_streamed_frames_equal_a_one_shot_decode_of_all_latents():
    session = make_session()
    streamed = torch.cat(drive(session))
    latents = torch.cat(session.sampler.made, dim=2)
    with torch.no_grad():
        at_once = frames_to_uint8(session.codec.decode(latents))[0]
    assert torch.equal(streamed, at_once)


def test_a_seed_makes_one_world_and_another_seed_another():
    session = make_session()
    first, again, other = drive(session), drive(session), drive(session, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_controls_steer_the_frames_of_their_chunk_and_not_those_before():
    left, right = (ControlStream.from_actions(f"w-20,{turn}-12", 3) for turn in "jl")
    a, b = drive(make_session(), left), drive(make_session(), right)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[2], b[2])


@pytest.mark.parametrize("policy", ["denoise", "off"])
def test_conditioner_policies_make_the_same_video(policy):
    expected = drive(make_session())
    assert all(
        torch.equal(a, b) for a, b in zip(drive(make_session(policy=policy)), expected, strict=True)
    )


def test_the_image_is_encoded_once_a_session_and_shown_to_the_first_chunk_only():
    session = make_session()
    encoded, conditions = [], []
    encode, begin = session.codec.encode, session.model.begin_chunk
    session.codec.encode = lambda x: encoded.append(x) or encode(x)
    session.model.begin_chunk = lambda c, condition, f: (
        conditions.append(condition) or begin(c, condition, f)
    )
    drive(session)
    assert len(encoded) == 1
    mask, image = conditions[0][:, :4], conditions[0][:, 4:]
    assert mask[:, :, 0].eq(1).all()
    assert mask[:, :, 1:].eq(0).all()
    assert image[:, :, 0].any()
    assert not image[:, :, 1:].any()
    assert all(not later.any() for later in conditions[1:])


def test_a_prompt_event_changes_the_frames_from_its_chunk_on():
    plain = drive(make_session())
    changed = drive(
        make_session(), ControlStream.from_actions("w-20,jw-12,none-12", 3, prompt_events={2: "no"})
    )
    assert torch.equal(plain[1], changed[1])
    assert not torch.equal(plain[2], changed[2])


@pytest.mark.parametrize("cache", [KVCacheConfig(), KVCacheConfig(6, 2), KVCacheConfig(5, 1)])
def test_recomputing_the_history_under_the_same_prompt_changes_nothing(cache):
    """The recomputed memory must hold exactly what it held, also after frames were evicted."""
    kept, recomputed = make_session(cache), make_session(cache)
    for session in (kept, recomputed):
        session.reset(IMAGE, "dusk")
    *past, last = ControlStream.from_actions("w-56", 3)
    for controls in past:
        kept.step(controls)
        recomputed.step(controls)
    recomputed.change_prompt("dusk", recompute_history=True)
    frames = [session.step(last) for session in (kept, recomputed)]
    if cache.window == -1:
        assert torch.equal(*frames)
    # evicted frames are gone, so only layer 0, which sees no history, can be the same again
    rows = [session.model.kv_cache.in_time_order(0)[0] for session in (kept, recomputed)]
    before = (session_frames(kept) - 3) * kept.model.grid.tokens_per_frame
    assert torch.allclose(rows[0][:, :before], rows[1][:, :before], atol=1e-5)


def session_frames(session: RealtimeSession) -> int:
    return session.model.kv_cache.frames_visible


def test_recomputing_the_history_under_another_prompt_changes_the_memory():
    session = make_session()
    drive(session)
    before = [m.clone() for m in session.model.kv_cache.visible(1)]
    session.change_prompt("noon, grass", recompute_history=True)
    assert not torch.allclose(before[0], session.model.kv_cache.visible(1)[0], atol=1e-4)


def test_the_report_accounts_for_the_step():
    session = make_session()
    drive(session)
    report = session.report
    layers = SMALL.num_layers
    assert (report.step, report.frames, len(report.pass_ms)) == (3, 12, 4)
    assert report.conditioner_misses == layers
    assert report.conditioner_hits == 3 * layers + layers - 1
    parts = sum(report.pass_ms) + report.context_update_ms + report.camera_ms + report.decode_ms
    assert 0 < parts <= report.total_ms
    assert report.collectives == []


def test_frames_leave_before_the_context_update_and_their_account_says_when():
    session = make_session()
    session.reset(IMAGE, "dusk")
    update = session.model.update_context
    session.model.update_context = lambda clean: time.sleep(0.3) or update(clean)
    started = time.perf_counter()
    session.step(DRIVE[0])
    step_ms = (time.perf_counter() - started) * 1000
    assert session.finished_reports() == []
    session.finish_chunk()
    (report,) = session.finished_reports()
    assert report == session.report
    assert 0 < report.key_to_frame_ms <= step_ms  # which made no context update
    assert report.context_update_ms >= 300
    assert report.key_to_frame_ms + report.context_update_ms <= 1.1 * report.total_ms
    assert report.overlap_ms == 0
    session.step(DRIVE[1])
    session.step(DRIVE[2])  # must make the update of the step before, and counts it as waiting
    assert [r.step for r in session.finished_reports(since=1)] == [1]
    assert [r.step for r in session.all_reports(since=1)] == [1, 2]
    assert session.report.key_to_frame_ms > 300


def test_time_between_a_step_and_the_end_of_its_chunk_is_not_the_steps():
    session = make_session()
    session.reset(IMAGE, "dusk")
    times = [time.perf_counter()]
    session.step(DRIVE[0])
    times.append(time.perf_counter())
    time.sleep(0.5)
    times.append(time.perf_counter())
    total_ms = session.report.total_ms
    times.append(time.perf_counter())
    worked = (times[1] - times[0]) + (times[3] - times[2])
    assert total_ms <= 1000 * worked + 50 < 1000 * (times[3] - times[0])


@pytest.mark.parametrize("late", [False, True])
def test_when_a_chunk_is_finished_changes_nothing(late):
    """Also not where the prompt changes, with its history, while the update is still to be made."""
    events = {1: "no", 2: "noon, grass"}
    stream = ControlStream.from_actions(
        "w-20,jw-12,none-12", 3, prompt_events=events, history="recompute"
    )
    session = make_session(KVCacheConfig(6, 2))
    session.reset(IMAGE, "dusk")
    frames = []
    for controls in stream:
        frames.append(session.step(controls))
        if not late:
            session.finish_chunk()
    session.change_prompt("dusk")
    frames.append(session.step(Controls(actions=("w",) * 12)))
    expected = drive_updating_at_once(stream, KVCacheConfig(6, 2))
    assert torch.equal(torch.cat(frames), torch.cat(expected))


def drive_updating_at_once(stream, cache) -> list[torch.Tensor]:
    """The order of old: the context update before the decode."""
    session = make_session(cache)
    session.reset(IMAGE, "dusk")
    send = session._outlet.send
    session._outlet.send = lambda clean, clock: (
        session.model.update_context(clean) or send(clean, clock)
    )
    session._update_context = lambda chunk, account: account.close()
    frames = [session.step(controls) for controls in stream]
    session.change_prompt("dusk")
    return [*frames, session.step(Controls(actions=("w",) * 12))]


def test_a_new_world_or_the_end_drops_a_context_update_that_is_still_to_be_made():
    session = make_session()
    session.reset(IMAGE, "dusk")
    session.step(DRIVE[0])
    assert torch.equal(torch.cat(drive(session)), torch.cat(drive(make_session())))
    session.close()
    session.finish_chunk()
    assert session.model.kv_cache.frames_visible == 0
    assert [r.context_update_ms > 0 for r in session.finished_reports()] == [True] * 3 + [False]


def test_only_so_many_reports_are_kept():
    accounts = StepAccounts(kept=2)
    for step in range(3):
        account = StepAccount(step, torch.device("cpu"))
        with account.clock.running():
            account.handed_out(12)
        account.close()
        accounts.append(account)
    assert [report.step for report in accounts.finished()] == [1, 2]


def test_turning_controls_into_rays_counts_as_camera_time():
    session = make_session()
    session.reset(IMAGE, "dusk")
    chunk = session.camera.chunk
    session.camera.chunk = lambda *arguments: time.sleep(0.05) or chunk(*arguments)
    session.step(DRIVE[0])
    assert session.report.camera_ms >= 50


def test_it_drives_under_inference_mode_too():
    expected = drive(make_session())
    with torch.inference_mode():
        assert torch.equal(drive(make_session())[-1], expected[-1])


def test_a_closed_or_new_session_refuses_to_step_and_says_what_to_do():
    with make_session() as session:
        with pytest.raises(RuntimeError, match="reset"):
            session.step(DRIVE[0])
        session.reset(IMAGE, "dusk")
        session.step(DRIVE[0])
    with pytest.raises(RuntimeError, match="reset"):
        session.step(DRIVE[1])


def test_controls_that_do_not_fill_the_chunk_are_refused_and_the_session_goes_on():
    session = make_session()
    session.reset(IMAGE, "dusk")
    with pytest.raises(ValueError, match="8"):
        session.step(Controls(actions=("w",) * 12))
    assert torch.equal(session.step(DRIVE[0]), drive(make_session())[0])


def test_a_prompt_that_is_refused_leaves_the_session_as_it_was():
    session = make_session()
    frames = [*drive(session, DRIVE[:2])]
    with pytest.raises(ValueError, match="the prompt is empty"):
        session.change_prompt(" ")
    with pytest.raises(ValueError, match="seed=-1"):
        session.reset(seed=-1)
    frames.append(session.step(DRIVE[2]))
    assert all(map(torch.equal, frames, drive(make_session(), DRIVE[:3])))


def test_a_session_starts_from_an_image_or_array_of_any_size():
    red = np.full((50, 90, 3), (200, 10, 30), np.uint8)
    expected = make_session()
    expected.reset(torch.tensor([200, 10, 30], dtype=torch.uint8).expand(HEIGHT, WIDTH, 3), "dusk")
    for image in (red, Image.fromarray(red)):
        session = make_session()
        session.reset(image, "dusk", np.int64(0))
        assert torch.equal(session._first_condition, expected._first_condition)


@pytest.mark.parametrize("image", [IMAGE[:8], IMAGE.float(), IMAGE[..., :2]])
def test_first_frames_of_another_size_or_type_are_refused(image):
    with pytest.raises(ValueError, match=r"uint8 \(32, 48, 3\)"):
        make_session().reset(image, "dusk")


def test_context_updates_of_the_last_chunks_leave_the_same_history_in_another_session():
    here, there = make_session(), make_session()
    assert here.last_chunk is None
    drive(there, stream=(), prompt="dusk", seed=7)
    here.reset(IMAGE, "dusk")
    for controls in DRIVE:
        here.step(controls)
        here.finish_chunk()
        chunk = here.last_chunk
        assert torch.equal(chunk.clean, here.sampler.made[-1])
        with torch.no_grad():
            there.model.begin_chunk(chunk.controls, chunk.condition, chunk.first_frame)
            there.model.update_context(chunk.clean)
        for a, b in zip(
            here.model.kv_cache.visible(0), there.model.kv_cache.visible(0), strict=True
        ):
            assert torch.equal(a, b)
    here.close()
    assert here.last_chunk is None


class Interruption(BaseException):
    """Like Ctrl-C, from wherever it is wanted."""


STAGES = {
    "camera": ("camera", "chunk"),
    "pass": ("model", "predict"),
    "decode": ("_outlet", "send"),
    "chunk": ("model", "begin_chunk"),
    "bookkeeping": ("_accounts", "finished"),
}


@pytest.mark.parametrize("error", [Interruption, KeyboardInterrupt, ValueError], ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_that_is_interrupted_says_so_until_the_world_starts_over(stage, error, monkeypatch):
    session = make_session()
    expected = drive(session)
    session.reset()
    steps = list(DRIVE)
    session.step(steps[0])
    owner, name = STAGES[stage]

    def fail(*_: object) -> None:
        raise error("now")

    with monkeypatch.context() as patch:
        patch.setattr(getattr(session, owner), name, fail)
        with pytest.raises(error, match="now"):
            session.step(steps[1])
    for again in (lambda: session.step(steps[1]), lambda: session.change_prompt("night")):
        with pytest.raises(RuntimeError, match=rf"step 1 was interrupted \({error.__name__}: now"):
            again()
    assert session.report.step == 0  # neither waits nor fails
    session.reset()
    assert all(torch.equal(session.step(c), f) for c, f in zip(DRIVE, expected, strict=True))


def test_controls_that_are_refused_leave_the_session_as_it_was():
    session = make_session(KVCacheConfig(max_frames=6))
    expected = drive(session, list(DRIVE)[:2])
    session.reset()
    steps = list(DRIVE)
    assert torch.equal(session.step(steps[0]), expected[0])
    with pytest.raises(ValueError, match="9 actions for chunk 1"):
        session.step(Controls(actions=("w",) * 9))
    assert torch.equal(session.step(steps[1]), expected[1])
    with pytest.raises(RuntimeError, match=r"raise kv_cache\.max_frames"):
        session.step(steps[2])
    assert session.step_index == 2


def test_an_interrupted_context_update_is_made_again(monkeypatch):
    session = make_session()
    expected = drive(session)
    session.reset()
    frames = []
    for controls in DRIVE:
        frames.append(session.step(controls))
        with monkeypatch.context() as patch:
            block = session.model.transformer.blocks[1]

            def fail(*_: object, **__: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(block, "forward", fail)
            with pytest.raises(KeyboardInterrupt):
                session.finish_chunk()
    assert all(torch.equal(*pair) for pair in zip(frames, expected, strict=True))


def test_a_chunk_that_is_not_finite_ends_the_drive_with_its_step():
    session = make_session()
    session.reset(IMAGE, "dusk")
    steps = list(DRIVE)
    session.step(steps[0])
    session.finish_chunk()
    session.model.transformer.head.head.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match="realtime step 1: the clean latents are not fin"):
        session.step(steps[1])
    with pytest.raises(RuntimeError, match="call reset"):
        session.step(steps[1])


def test_keys_are_held_through_a_chunk():
    by_key, by_controls = make_session(), make_session()
    for session in (by_key, by_controls):
        session.reset(IMAGE, "dusk", 3)
    for keys, frames in (("w", 8), ("none", 12), ("jw", 12)):
        held = "" if keys == "none" else keys
        assert torch.equal(by_key.step(keys), by_controls.step(Controls((held,) * frames)))
    with pytest.raises(ValueError, match="unknown key 'q'"):
        by_key.step("q")
    assert len(by_key.step("w")) == 12


def test_a_drive_in_words_is_that_of_its_stream_from_any_step_on():
    session, other = make_session(), make_session()
    for one in (session, other):
        one.reset(IMAGE, "dusk", 3)
    stream = [*ControlStream.from_actions("w-8,jw-12", 3), *(Controls(("d",) * 12),) * 2]
    expected = [other.step(controls) for controls in stream]
    driven = [*session.drive("w-8,jw-12"), *session.drive("d-24")]
    assert [len(frames) for frames in driven] == [9, 12, 12, 12]
    assert all(torch.equal(*pair) for pair in zip(driven, expected, strict=True))
    with pytest.raises(ValueError, match="'q'"):
        session.drive("q-3")
