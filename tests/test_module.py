"""The module under its Trainer: driving and training, on one rank and on several."""

import lightning as L
import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from lingbot.camera.controls import CameraControl, Controls
from lingbot.data.control_stream import ControlStream
from lingbot.diffusion import FewStepSampler, FlowMatching, FlowSchedule
from lingbot.kernels import KernelConfig
from lingbot.model import KVCacheConfig, TransformerConfig
from lingbot.module import LingBotModule
from lingbot.parallel.strategy import (
    SequenceParallelStrategy,
    ShardedSequenceParallelStrategy,
)
from tests.distributed import run_ranks
from tests.model.worlds import HEIGHT, SMALL, WIDTH, PromptLengths, small_camera, small_codec

TWELVE_HEADS = TransformerConfig(
    dim=96, ffn_dim=64, num_heads=12, num_layers=2, text_dim=16, text_len=8, freq_dim=32
)
IMAGE = torch.arange(HEIGHT * WIDTH * 3).remainder(251).to(torch.uint8).view(HEIGHT, WIDTH, 3)
ACTIONS = "w-20,jw-12,none-12"


def seeded(transformer: torch.nn.Module, seed: int = 0) -> None:
    """The same weights whenever, and on whichever rank, the module is built."""
    torch.manual_seed(seed)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.5 * parameter.shape[-1] ** -0.5)


def make_module(
    model: TransformerConfig = TWELVE_HEADS, build: bool = True, **changes
) -> LingBotModule:
    module = LingBotModule(
        **{
            "model": model,
            "codec": small_codec,
            "text_encoder": PromptLengths,
            "camera": small_camera,
            "sampler": FewStepSampler(FlowSchedule(5.0)),
            "kv_cache": KVCacheConfig(9, 3),
            "objective": FlowMatching(FlowSchedule(5.0)),
            "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            "initialise": seeded,
        }
        | changes
    )
    if build:
        module.configure_model()
    return module


def quiet_trainer(**options) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, inference_mode=False, **options,
    )  # fmt: skip


class Collector(L.Callback):
    """Keeps what every realtime step gave, and what all of them report at the end."""

    def __init__(self) -> None:
        self.frames: list[torch.Tensor] = []

    def on_predict_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.frames.append(outputs)

    def on_predict_end(self, trainer, module):
        self.reports = module.session.all_reports()


def predict(decode: str = "auto", **options) -> Collector:
    module, seen = make_module(decode=decode), Collector()
    module.start_world(IMAGE, "dusk", seed=3)
    trainer = quiet_trainer(callbacks=[seen], **options)
    stream = ControlStream.from_actions(ACTIONS, 3)
    trainer.predict(module, DataLoader(stream, batch_size=None), return_predictions=False)
    return seen


def predict_on_a_rank(rank: int, ranks: int, uniform: bool | None, decode: str):
    strategy = SequenceParallelStrategy(uniform_fast_path=uniform)
    seen = predict(decode, strategy=strategy, devices=ranks)
    return torch.cat(seen.frames), [report.to_dict() for report in seen.reports]


def test_predict_drives_a_control_stream_like_a_session_of_ones_own():
    seen = predict()
    session = make_module().new_session(IMAGE, "dusk", seed=3)
    with session:
        for controls, frames in zip(
            ControlStream.from_actions(ACTIONS, 3), seen.frames, strict=True
        ):
            assert torch.equal(session.step(controls), frames)


# a chunk has 18 tokens and 6 columns: 2 and 3 ranks share them evenly, 4 do not
@pytest.mark.processes
@pytest.mark.parametrize(
    ("ranks", "uniform", "decode", "paths"),
    [
        (2, None, "split", {"uniform"}),
        (2, False, "split", {"variable"}),
        (3, None, "split", {"uniform"}),
        (3, None, "whole", {"uniform"}),
        (4, None, "split", {"variable"}),
    ],
)
def test_the_video_is_the_same_on_any_number_of_ranks_and_on_both_paths(
    ranks, uniform, decode, paths
):
    expected = torch.cat(predict().frames).int()
    made = run_ranks(predict_on_a_rank, ranks, ranks, uniform, decode, timeout=120)
    layers, passes = TWELVE_HEADS.num_layers, 4
    expected_calls = {
        "qkv": passes * layers + layers - 1,  # the update's last block sends k, v only
        "kv": 1,
        "out": passes * layers + layers - 1,
        "gather": passes,
    } | ({"frames": 1} if decode == "split" else {})
    for frames, reports in made:
        assert torch.equal(frames, made[0][0])
        assert (frames.int() - expected).abs().max() <= 1  # rounding to 8 bits
        for report in reports:  # the update's collectives are its own step's, though it comes late
            assert {c["name"]: c["calls"] for c in report["collectives"]} == expected_calls
            assert {c["path"] for c in report["collectives"]} == paths
        assert len(reports) == 4


def training_batch(samples: int = 2) -> dict:
    torch.manual_seed(5)
    poses = torch.eye(4, dtype=torch.float64).repeat(samples, 21, 1, 1)
    poses[:, :, 2, 3] = torch.arange(21) * 0.05
    return {
        "latents": torch.randn(samples, 16, 6, HEIGHT // 8, WIDTH // 8),
        "image_latent": torch.randn(samples, 16, 1, HEIGHT // 8, WIDTH // 8),
        "poses": poses,
        "actions": [["w"] * 20] * samples,
        "prompt": ["dusk", "noon"][:samples],
    }


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


class Gradients(L.Callback):
    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.found = {n: whole(p.grad) for n, p in module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.loss = float(outputs["loss"])


class OneBatch(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict:
        return training_batch()


def fit(changes: dict | None = None, **options) -> tuple[float, dict[str, torch.Tensor]]:
    module = make_module(build=False, **changes or {})  # the Trainer builds, and shards
    gradients = Gradients()
    trainer = quiet_trainer(max_steps=1, callbacks=[gradients], limit_val_batches=0, **options)
    trainer.fit(module, DataLoader(OneBatch(), batch_size=None))
    return gradients.loss, gradients.found


def fit_on_a_rank(rank: int, ranks: int, uniform: bool | None, sharded: bool, **options):
    kind = ShardedSequenceParallelStrategy if sharded else SequenceParallelStrategy
    return fit(strategy=kind(uniform_fast_path=uniform), devices=ranks, **options)


def fit_sharded(rank: int):
    compiled = {
        "activation_checkpointing": "selective",
        "kernels": KernelConfig("compiled"),
        "initialise": lambda transformer: seeded(transformer, rank),  # only the first one's count
    }
    return [
        fit_on_a_rank(rank, 2, None, sharded=True, changes=changes, precision=precision)
        for changes, precision in ((compiled, "32-true"), ({}, "bf16-mixed"))
    ]


def fit_packed_and_sharded(rank: int):
    packed = {"kernels": KernelConfig(pack_qkv=True)}
    return fit_on_a_rank(rank, 2, None, sharded=True, changes=packed)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("ranks", "uniform", "sharded"),
    [(2, None, False), (4, None, False), (2, False, False), (2, None, True)],
)
def test_loss_and_gradients_of_training_equal_those_of_one_rank(ranks, uniform, sharded):
    loss, gradients = fit()
    assert len(gradients) > 50
    for other_loss, other in run_ranks(fit_on_a_rank, ranks, ranks, uniform, sharded, timeout=120):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert other.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert torch.allclose(other[name], gradient, atol=1e-6, rtol=1e-3), name


@pytest.mark.processes
def test_sharded_weights_train_alike_compiled_recomputed_and_gathered_in_bfloat16():
    loss, gradients = fit()
    for (other_loss, other), rough in run_ranks(fit_sharded, 2, timeout=180):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        for name, gradient in gradients.items():
            assert torch.allclose(other[name], gradient, atol=1e-6, rtol=1e-3), name
        other_loss, other = rough
        assert other_loss == pytest.approx(loss, rel=0.02)
        assert {gradient.dtype for gradient in other.values()} == {torch.float32}
        apart = sum((other[n] - g).square().sum() for n, g in gradients.items())
        assert apart.sqrt() < 0.05 * sum(g.square().sum() for g in gradients.values()).sqrt()


class Attentions(TorchDispatchMode):
    """Counts attention going forward."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        self.calls += "scaled_dot_product" in name and "backward" not in name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("what", "again"), [("full", 2), ("selective", 1)])
@pytest.mark.parametrize("ops", ["reference", "compiled"])
def test_what_is_recomputed_gives_the_same_gradients(what, again, ops):
    found = {}
    for checkpointing in ("none", what):
        module = make_module(activation_checkpointing=checkpointing, kernels=KernelConfig(ops))
        assert {block.ops.name for block in module.transformer.blocks} == {ops}
        losses = module._losses(training_batch(), torch.Generator().manual_seed(0))
        losses["loss"].backward()
        parameters = module.transformer.named_parameters()
        found[checkpointing] = {n: p.grad for n, p in parameters if p.grad is not None}
    for name, gradient in found["none"].items():
        assert torch.equal(gradient, found[what][name]), name
    with Attentions() as attentions:
        losses = module._losses(training_batch(), torch.Generator().manual_seed(0))
        once = attentions.calls
        losses["loss"].backward()
    assert once == 2 * 5  # blocks; two clean chunks, two noisy ones, and the prompt
    assert attentions.calls == again * once


def test_an_unknown_activation_checkpointing_is_refused():
    with pytest.raises(ValueError, match=r"activation_checkpointing='some' is not known: .*full"):
        make_module(build=False, activation_checkpointing="some")


def test_packed_weights_are_trained_and_leave_a_checkpoint_with_the_published_names():
    loss, _ = fit()
    packed = {"kernels": KernelConfig(pack_qkv=True)}
    other_loss, other = fit(packed)
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert any(".qkv." in name for name in other)
    module = make_module(**packed)
    assert module.state_dict().keys() == make_module().state_dict().keys()


@pytest.mark.processes
def test_packed_weights_are_not_sharded():
    with pytest.raises(RuntimeError, match="pack_qkv=true: sharded weights are trained apart"):
        run_ranks(fit_packed_and_sharded, 2, timeout=120)


def test_driving_without_a_world_says_to_start_one():
    with pytest.raises(RuntimeError, match="start_world"):
        quiet_trainer().predict(
            make_module(), DataLoader(ControlStream.from_actions("w-8", 3), batch_size=None)
        )


def test_a_session_of_ones_own_leaves_the_world_chosen_for_predict_alone():
    module, seen = make_module(), Collector()
    module.start_world(IMAGE, "dusk", seed=3)
    module.new_session(255 - IMAGE, "noon", seed=4)
    stream = ControlStream.from_actions("w-8", 3)
    quiet_trainer(callbacks=[seen]).predict(module, DataLoader(stream, batch_size=None))
    assert torch.equal(seen.frames[0], predict().frames[0])


def test_the_context_update_comes_after_the_callbacks_have_had_the_frames():
    order: list[str] = []

    class Watcher(L.Callback):
        def on_predict_batch_start(self, trainer, module, batch, batch_idx):
            model = module.session.model
            update = type(model).update_context
            model.update_context = lambda clean: order.append("update") or update(model, clean)

        def on_predict_batch_end(self, trainer, module, *_args, **_kwargs):
            order.append(f"frames, {len(module.session.finished_reports())} accounts")

        def on_predict_end(self, trainer, module):
            order.append(f"{len(module.session.finished_reports())} accounts")

    module = make_module()
    module.start_world(IMAGE, "dusk")
    stream = DataLoader(ControlStream.from_actions("w-20", 3), batch_size=None)
    quiet_trainer(callbacks=[Watcher()]).predict(module, stream)
    first, second = "frames, 0 accounts", "frames, 1 accounts"
    assert order == [first, "update", second, "update", "2 accounts"]


def test_an_unknown_way_to_decode_is_refused_at_once():
    with pytest.raises(ValueError, match="decode='half'"):
        make_module(build=False, decode="half")


def test_a_session_is_closed_when_a_step_fails():
    class Interrupt(L.Callback):
        def on_predict_batch_end(self, *args, **kwargs):
            raise KeyError("unplugged")

    module = make_module()
    module.start_world(IMAGE, "dusk")
    with pytest.raises(KeyError, match="unplugged"):
        quiet_trainer(callbacks=[Interrupt()]).predict(
            module, DataLoader(ControlStream.from_actions("w-8", 3), batch_size=None)
        )
    with pytest.raises(RuntimeError, match="reset"):
        module.session.step(ControlStream.from_actions("w-8", 3)[0])


def test_two_sessions_of_one_module_do_not_disturb_each_other():
    module = make_module()
    alone = module.new_session(IMAGE, "dusk", seed=3)
    steps = list(ControlStream.from_actions(ACTIONS, 3))
    expected = [alone.step(controls) for controls in steps]
    a, b = (module.new_session(IMAGE, "dusk", seed=seed) for seed in (3, 4))
    for controls, frames in zip(steps, expected, strict=True):
        assert torch.equal(a.step(controls), frames)
        assert not torch.equal(b.step(controls), frames)


def test_checkpoints_leave_the_frozen_codec_out_and_load_again(tmp_path):
    module = make_module()
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(module, DataLoader(OneBatch(), batch_size=None))
    trainer.save_checkpoint(tmp_path / "world.ckpt")
    saved = torch.load(tmp_path / "world.ckpt", weights_only=True)
    assert not any(name.startswith("codec.") for name in saved["state_dict"])
    other = make_module()
    quiet_trainer(max_steps=1, limit_val_batches=0).fit(
        other, DataLoader(OneBatch(), batch_size=None), ckpt_path=tmp_path / "world.ckpt"
    )
    for name, parameter in module.transformer.state_dict().items():
        assert torch.equal(parameter, other.transformer.state_dict()[name]), name


def test_sample_clip_gives_generated_and_true_frames_of_one_length():
    batch = training_batch(1) | {"image": IMAGE[None]}
    generated, truth = make_module().sample_clip(batch)
    assert generated.shape == truth.shape == (21, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"conditioner_cache": "always"}, "always"),
        ({"kv_cache": KVCacheConfig(4, 2)}, "ring of 2"),
        ({"camera": lambda: CameraControl("act", HEIGHT, WIDTH, 3)}, "448"),
        ({"camera": lambda: CameraControl("cam", 40, 48, 3)}, "multiples of 16"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_built(changes, says):
    def never():
        raise AssertionError("built")

    with pytest.raises(ValueError, match=says):
        make_module(SMALL, codec=never, text_encoder=never, **changes)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "bf16-mixed"])
def test_controls_reach_the_session_untouched_in_every_precision(precision):
    """Poses keep their digits, whatever Lightning does to the tensors of a batch."""
    poses = torch.eye(4, dtype=torch.float64).repeat(9, 1, 1)
    poses[:, 2, 3] = torch.arange(9) / 3
    controls = Controls(poses=poses)
    converted = quiet_trainer(precision=precision).precision_plugin.convert_input(controls)
    assert converted is controls
    assert controls.poses.dtype == torch.float64


def test_a_loss_that_is_not_finite_ends_the_training_and_names_its_step(tmp_path):
    module = make_module(optimizer=lambda weights: torch.optim.SGD(weights, lr=1e38))
    with pytest.raises(FloatingPointError, match="training step 2: the loss is not finite"):
        quiet_trainer(max_steps=5).fit(module, DataLoader(OneBatch(), batch_size=None))
