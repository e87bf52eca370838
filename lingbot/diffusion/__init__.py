"""Flow matching: schedule, few-step sampler, training objectives."""

from lingbot.diffusion.flow import FlowSchedule
from lingbot.diffusion.flow_matching import FlowMatching
from lingbot.diffusion.sampler import FewStepSampler

__all__ = ["FewStepSampler", "FlowMatching", "FlowSchedule"]
