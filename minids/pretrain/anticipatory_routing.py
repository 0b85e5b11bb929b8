"""Anticipatory routing: experts chosen by the weights of some steps before, against spikes of the loss.

Report 4.2.3. Weights and routing drive each other: an outlier moves the gates, and tokens rush to other experts at once.
At step t the features use the weights of step t, and the experts are those that the weights of step t - delta would choose.
The old weights need not be kept: the batch of step t is known at step t - delta, which chooses for it in advance.
"""

import torch

RECENT = 20     # losses whose mean says what a spike is


class Anticipation:
    """Whether a step routes so, and what was chosen for the steps to come. Off, it costs nothing.

    Always on where `settings.spike` is 0; otherwise from a spike on until `calm` steps after it.
    """

    def __init__(self, settings):
        self.settings = settings
        self.until = 0 if settings.spike else settings.steps
        self.routes = {}

    def experts(self, step: int, choose):
        """What `choose(step)` gave `anticipate` steps ago; None where the step routes by itself. At the beginning nothing was
        chosen yet: the first steps take what the weights of the very first of them choose."""
        if not self.settings.anticipate or step >= self.until:
            self.routes.clear()
            return None
        for ahead in range(step, min(step + self.settings.anticipate + 1, self.settings.steps)):
            if ahead not in self.routes:
                self.routes[ahead] = choose(ahead)
        return self.routes.pop(step)

    def spiked(self, step: int, loss: float, log) -> bool:
        """Whether the loss of a step that routed by itself is `spike` times the mean of the last ones. If so, the steps up to
        `calm` after this one will be anticipated."""
        if not self.settings.spike or step < self.until:
            return False
        last = [record["loss"] for record in log[-2 * RECENT:] if "loss" in record][-RECENT:]
        if len(last) < RECENT or loss <= self.settings.spike * sum(last) / RECENT:
            return False
        self.until = step + 1 + self.settings.calm
        return True

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint has to hold; nothing where the feature is off."""
        if not self.settings.anticipate:
            return {}
        chosen = {f"{step}.{part}.{gate}": experts.cpu() for step, parts in self.routes.items()
                  for part, gates in enumerate(parts) for gate, experts in enumerate(gates)}
        return {"until": torch.tensor(self.until)} | chosen

    def restore(self, state: dict[str, torch.Tensor], device) -> None:
        """Take over what `state` gave."""
        self.until, self.routes = int(state["until"]), {}
        places = sorted(tuple(map(int, name.split("."))) for name in state if name != "until")
        for step, part, gate in places:
            parts = self.routes.setdefault(step, [])
            if part == len(parts):
                parts.append([])
            parts[part].append(state[f"{step}.{part}.{gate}"].to(device))
