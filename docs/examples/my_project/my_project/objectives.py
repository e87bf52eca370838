from lingbot.diffusion import FlowMatching


class WithPenalty(FlowMatching):
    """Flow matching with a penalty on the clean latents' error.

    Args:
        penalty: weight of that error.
    """

    def __init__(self, *args, penalty: float = 0.1, **kwargs):
        super().__init__(*args, **kwargs)
        self.penalty = penalty

    def __call__(self, *args, **kwargs):
        terms = super().__call__(*args, **kwargs)
        weighted = self.penalty * terms["clean_error"]
        return {**terms, "penalty": weighted, "loss": terms["loss"] + weighted}
