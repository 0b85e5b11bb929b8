"""Anticipatory routing: experts chosen by the weights of some steps before, against loss spikes.

Report 4.2.3. Weights and routing drive each other: an outlier moves the gates, and tokens rush to
other experts at once. At step t the features use the weights of step t, and the experts are those
that the weights of step t - delta would choose. The old weights need not be kept: the batch of step
t is known at step t - delta, so its experts are chosen then.
"""

import torch

RECENT = 20     # number of losses whose mean a spike is measured against


class Anticipation:
    """Whether a step takes experts that were chosen in advance, and those chosen so far.

    On in all steps where `settings.spike` is 0; otherwise from a spike on, for `calm` steps. Off,
    it costs nothing.
    """

    def __init__(self, settings):
        self.settings = settings
        self.until = 0 if settings.spike else settings.steps
        self.routes = {}

    def experts(self, step: int, choose):
        """The result of `choose(step)` from `anticipate` steps ago; None if the step routes freely.

        At the beginning nothing was chosen in advance: the first steps take the choices that the
        weights of the very first one make.
        """
        if not self.settings.anticipate or step >= self.until:
            self.routes.clear()
            return None
        for ahead in range(step, min(step + self.settings.anticipate + 1, self.settings.steps)):
            if ahead not in self.routes:
                self.routes[ahead] = choose(ahead)
        return self.routes.pop(step)

    def spiked(self, step: int, loss: float, log) -> bool:
        """Whether the loss of a step that routed freely is `spike` times the mean of recent ones.

        If so, the steps up to `calm` after this one will be anticipated.
        """
        if not self.settings.spike or step < self.until:
            return False
        recent = [record["loss"] for record in log[-2 * RECENT:] if "loss" in record][-RECENT:]
        if len(recent) < RECENT or loss <= self.settings.spike * sum(recent) / RECENT:
            return False
        self.until = step + 1 + self.settings.calm
        return True

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors that a checkpoint has to hold; none where the feature is off."""
        if not self.settings.anticipate:
            return {}
        chosen = {f"{step}.{part}.{gate}": experts.cpu() for step, parts in self.routes.items()
                  for part, gates in enumerate(parts) for gate, experts in enumerate(gates)}
        return {"until": torch.tensor(self.until)} | chosen

    def restore(self, state: dict[str, torch.Tensor], device) -> None:
        """Take over the tensors of `state`."""
        self.until, self.routes = int(state["until"]), {}
        places = sorted(tuple(map(int, name.split("."))) for name in state if name != "until")
        for step, part, gate in places:
            parts = self.routes.setdefault(step, [])
            if part == len(parts):
                parts.append([])
            parts[part].append(state[f"{step}.{part}.{gate}"].to(device))
