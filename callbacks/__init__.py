"""Lightning callbacks: what leaves a drive or a training run besides its result.

They know the module by documented members only: `session.finished_reports` and
`session.all_reports` (the realtime steps' accounts), the frames that `predict_step` returns,
`sample_clip` (generated and true frames of a batch) and `training_flops` (what a batch costs).
"""

from lingbot.callbacks.contact_sheet import ContactSheet
from lingbot.callbacks.last_checkpoint import LastCheckpoint
from lingbot.callbacks.step_log import RealtimeStepLog
from lingbot.callbacks.step_plot import StepPlot
from lingbot.callbacks.step_progress import StepProgress
from lingbot.callbacks.training_speed import TrainingSpeed
from lingbot.callbacks.video_writer import VideoWriter

__all__ = [
    "ContactSheet",
    "LastCheckpoint",
    "RealtimeStepLog",
    "StepPlot",
    "StepProgress",
    "TrainingSpeed",
    "VideoWriter",
]
