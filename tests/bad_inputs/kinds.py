"""Inputs by chance: what kind each is of, and what should be answered.

An input is a command with options that work, and one or two more that need not. `expected` is
refused, accepted, or open: an answer in one line, whichever it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bad_inputs.tables import (
    ALL,
    BASES,
    GENERATE,
    LISTS,
    NOT_NUMBERS,
    NUMBERS,
    TRAIN,
    WORDS,
    Option,
)

REFUSED, ACCEPTED, OPEN = "refused", "accepted", "open"


@dataclass(frozen=True)
class Input:
    """A command line and what should be answered to it."""

    kind: str
    command: str
    options: tuple[str, ...]
    expected: str


def with_options(command: str, *options: str) -> tuple[str, ...]:
    """The command's working options and these, which replace their own; groups go first."""
    replaced = {option.split("=")[0].lstrip("+~") for option in options}
    kept = [option for option in BASES[command] if option.split("=")[0] not in replaced]
    return tuple(sorted([*kept, *options], key=lambda option: "." in option.split("=")[0]))


def wrong_number(draw: random.Random) -> Input:
    """A number that is none, or out of bounds."""
    option = draw.choice(NUMBERS)
    values = [*option.bad, *option.bad, *NOT_NUMBERS, _far_below(draw)]
    if option.whole:
        values += [f"{draw.uniform(2, 9):.3f}", f"1e{draw.randint(20, 300)}"]
    return _with(draw, "numbers", option, draw.choice(values), REFUSED)


def wrong_word(draw: random.Random) -> Input:
    """A word that is not among those known."""
    option = draw.choice(WORDS)
    return _with(draw, "words", option, draw.choice(option.bad), REFUSED)


def wrong_list(draw: random.Random) -> Input:
    """A list, mapping or text that cannot be read, or says nothing."""
    option = draw.choice(LISTS)
    return _with(draw, "lists and texts", option, draw.choice(option.bad), REFUSED)


def wrong_type(draw: random.Random) -> Input:
    """A value where a group is, or a group where a value is."""
    command = draw.choice(ALL)
    key = draw.choice(["model", "camera", "sampler", "kv_cache", "module", "codec", "kernels"])
    inner = draw.choice(["model.dim", "camera.height", "seed", "fps"])
    option = draw.choice([
        f"{key}=5", f"{key}=nothing", f"{key}=[]", f"{key}=''", f"{inner}={{a: {{b: 1}}}}",
        f"{inner}=[[1]]",
    ])  # fmt: skip
    return Input("types", command, with_options(command, option), REFUSED)


def unknown_key(draw: random.Random) -> Input:
    """A key that nobody reads, with or without Hydra's plus signs."""
    command = draw.choice(ALL)
    group = draw.choice([
        "", "model.", "camera.", "kv_cache.", "sampler.", "sampler.schedule.", "kernels.",
        "paths.", "codec.", "text.", "conditioner_cache.",
    ])  # fmt: skip
    if command in TRAIN and draw.random() < 0.3:
        group = draw.choice(["objective.", "optimizer.", "scheduler.", "data.", "trainer."])
    if command in GENERATE and draw.random() < 0.3:
        group = draw.choice(["trainer.", "callbacks.video_writer.", "callbacks.step_log."])
    word = "".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(draw.randint(3, 9)))
    value = draw.choice(["1", "true", "abc", "{a: 1}", "null"])
    option = f"{draw.choice(['', '+', '++'])}{group}{word}x={value}"
    return Input("unknown keys", command, with_options(command, option), REFUSED)


def wrong_target(draw: random.Random) -> Input:
    """A class that is not there, is of another kind, or is nothing that could be called."""
    places = {
        "lingbot-generate": ["callbacks.video_writer", "logger.csv", "trainer", "module", "model",
                             "camera", "sampler", "kernels", "codec"],
        "lingbot-train": ["callbacks.checkpoint", "optimizer", "scheduler", "data", "trainer",
                          "module", "objective"],
        "lingbot-bench": ["strategy", "module", "camera"],
    }  # fmt: skip
    command = draw.choice(sorted(places))
    target = draw.choice(["nowhere.Class", "lingbot.nothing", "os.path", "5", "''",
                          "lingbot.muon", "collections.OrderedDict"])  # fmt: skip
    option = f"{draw.choice(places[command])}._target_={target}"
    return Input("targets", command, with_options(command, option), REFUSED)


def contradiction(draw: random.Random) -> Input:
    """Values that are each fine and do not go together, or not with the command."""
    command, *options = draw.choice([
        ("lingbot-generate", "actions=w-9", "folder=somewhere"),
        ("lingbot-generate", "experiment=bench_14b", "text=random"),
        ("lingbot-generate", "debug=overfit"),
        ("lingbot-generate", "model.control=act", "camera.kind=cam"),
        ("lingbot-generate", "camera.frames_per_chunk=4"),
        ("lingbot-generate", "camera.translation_scale=offline"),
        ("lingbot-generate", "trainer.devices=2", "strategy=ddp"),
        ("lingbot-generate", "strategy.sequence_size=2"),
        ("lingbot-generate", "trainer.devices=3"),
        ("lingbot-generate", "kernels.ops=triton"),
        ("lingbot-generate", "frames_per_chunk=20", "kv_cache=sliding"),
        ("lingbot-generate", "scene=null"),
        ("lingbot-generate", "weights=null", "codec=world"),
        ("lingbot-train", "kernels=fast"),
        ("lingbot-train", "module.objective=null"),
        ("lingbot-train", "module.optimizer=null"),
        ("lingbot-train", "objective.schedule=null"),
        ("lingbot-train", "module=codec_training", "strategy=sequence_parallel"),
        ("lingbot-train", "trainer.precision=bf16-true"),
        ("lingbot-train", "data.batch_size=2", "data.train_clips=1"),
        ("lingbot-train", "data.height=64"),
        ("lingbot-train", "data.latent_frames=4"),
        ("lingbot-train", "scheduler.total_steps=0"),
        ("lingbot-train", "module.kernels=null"),
        ("lingbot-evaluate", "num_chunks=33", "kv_cache=full"),
        ("lingbot-evaluate", "camera.translation_scale=offline"),
        ("lingbot-bench", "kv_cache=full"),
        ("lingbot-bench", "strategy=auto"),
        ("lingbot-bench", "strategy.sequence_size=2"),
        ("lingbot-bench", "compare=conditioner_cache:[step,off]", "sessions=3"),
        ("lingbot-drift", "compare=frames_per_chunk:[3,2]"),
        ("lingbot-drift", "compare=dtype:[float32,bfloat16]"),
    ])  # fmt: skip
    return Input("contradictions", command, with_options(command, *options), REFUSED)


def too_large(draw: random.Random) -> Input:
    """Sizes that no machine holds, answered at once."""
    command = draw.choice(ALL)
    option = draw.choice([
        f"model.num_layers={draw.randint(10**6, 10**7)}",
        f"model.dim={48 * draw.randint(10**5, 2 * 10**5)}",
        f"model.ffn_dim={draw.randint(10**9, 10**11)}",
        f"kv_cache={{window: {draw.randint(10**9, 10**11)}, sink: 0}}",
        f"model.text_len={draw.randint(10**8, 10**10)}",
        f"frames_per_chunk={draw.randint(10**5, 10**9)}",
        f"camera.width={16 * draw.randint(10**4, 10**8)}",
    ])  # fmt: skip
    return Input("beyond memory", command, with_options(command, option), REFUSED)


def files(folder: Path) -> Callable[[random.Random], Input]:
    """Files that are not what they are given for, out of a folder that `make_files` has filled."""
    junk = ["empty", "noise", "words", "nothing", "missing", "fifo"]

    def draw_input(draw: random.Random) -> Input:
        name = folder / draw.choice(junk)
        world = folder / draw.choice(["world_pointer", "world_cut", "world_hollow", "nothing"])
        drive = folder / f"drive_{draw.choice(['nan', 'flat', 'short', 'words', 'sheared'])}"
        command, *options = draw.choice([
            ("lingbot-generate", f"image={name}", "prompt=dusk"),
            ("lingbot-generate", f"image={folder / 'cut.png'}", "prompt=dusk"),
            ("lingbot-generate", f"image={folder / 'red.png'}"),
            ("lingbot-generate", f"folder={name}"),
            ("lingbot-generate", f"folder={drive}"),
            ("lingbot-generate", f"weights={name}"),
            ("lingbot-generate", f"weights={world}"),
            ("lingbot-generate", "codec=wan", f"codec.folder={name}"),
            ("lingbot-evaluate", f"weights={world}"),
            ("lingbot-drift", f"weights={name}"),
            ("lingbot-drift", f"image={name}", "prompt=dusk"),
            ("lingbot-bench", f"weights={world}"),
            ("lingbot-train", f"weights={world}"),
            ("lingbot-train", f"ckpt_path={name}"),
            ("lingbot-train", f"ckpt_path={folder / 'last.ckpt'}"),
            ("lingbot-train", f"export_dir={folder / 'drive_nan'}"),
            ("lingbot-generate", f"paths.output_dir={folder / 'words'}"),
            ("lingbot-parity", str(name)),
            ("lingbot-parity", str(folder / "red.png")),
            ("lingbot.world", str(name), "world"),
            ("lingbot.world", str(folder / "last.ckpt"), "world"),
        ])  # fmt: skip
        return Input("files", command, with_options(command, *options), REFUSED)

    return draw_input


def command_line(draw: random.Random) -> Input:
    """What is no option at all."""
    command = draw.choice([*ALL, "lingbot-parity", "lingbot.world"])
    text = draw.choice(["--nothing", "nothing", "=5", "a=b=c", "model.dim", "model..dim=5", "x=[",
                        "x={", "~nothing", "+=1", "-x"])  # fmt: skip
    if command in ("lingbot-parity", "lingbot.world"):
        text = draw.choice(["--nothing", "--ranks=0", "--ranks=x"])
    return Input("command line", command, with_options(command, text), REFUSED)


def fine(draw: random.Random) -> Input:
    """One of the values that must be taken."""
    options = [o for o in (*NUMBERS, *WORDS, *LISTS) if o.fine and o.commands != ("lingbot-bench",)]
    option = draw.choice(options)
    return _with(draw, "fine", option, draw.choice(option.fine), ACCEPTED)


def open_to_argument(draw: random.Random) -> Input:
    """What may be taken or not, in one line."""
    command, option = draw.choice([
        ("lingbot-generate", f"frames_per_chunk={draw.randint(1, 9)}"),
        ("lingbot-generate", f"model.num_layers={draw.randint(2, 40)}"),
        ("lingbot-generate", f"camera.height={16 * draw.randint(1, 9)}"),
        ("lingbot-generate", f"sampler.schedule.shift={10 ** draw.uniform(-3, 3):.4f}"),
        ("lingbot-generate", f"actions={draw.choice('wasdijkl')}-{draw.randint(1, 40)}"),
        ("lingbot-train", f"optimizer.lr={10 ** draw.uniform(-9, 3):.3g}"),
        ("lingbot-train", f"data.num_frames={draw.randint(2, 60)}"),
        ("lingbot-train", f"scheduler.warmup_steps={draw.randint(0, 9)}"),
        ("lingbot-evaluate", f"model.dim={8 * draw.randint(1, 30)}"),
    ])  # fmt: skip
    return Input("open", command, with_options(command, option), OPEN)


def inputs(count: int, seed: int, folder: Path) -> Iterator[Input]:
    """So many different inputs, the same for a seed; `folder` is filled by `make_files`."""
    draw = random.Random(seed)
    kinds = [
        *[wrong_number] * 9, *[wrong_word] * 3, *[wrong_list] * 3, unknown_key, unknown_key,
        contradiction, contradiction, too_large, files(folder), files(folder), wrong_type,
        wrong_target, command_line, fine, fine, open_to_argument,
    ]  # fmt: skip
    made: set[tuple[str, tuple[str, ...]]] = set()
    misses = 0
    while len(made) < count and misses < 100 * count:
        given = kinds[(len(made) + misses) % len(kinds)](draw)
        if (given.command, given.options) in made:
            misses += 1
            continue
        made.add((given.command, given.options))
        yield given


def _with(draw: random.Random, kind: str, option: Option, value: str, expected: str) -> Input:
    command = draw.choice(option.commands)
    options = with_options(command, *option.beside, f"{option.key}={value}")
    return Input(kind, command, options, expected)


def _far_below(draw: random.Random) -> str:
    return str(-draw.randint(3, 10**9))
