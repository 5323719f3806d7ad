"""Both networks of a GAN with their optimizers and the moving average: all that a step changes, and that is saved."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lsid_ray.config.schema import Experiment
from lsid_ray.model.discriminator import Discriminator
from lsid_ray.model.generator import Generator


class Networks:
    """Generator, discriminator (none if `loss.adv_weight` is 0), their optimizers, and the number of steps done.

    `wrap` makes a network distributed (DDP), which averages the gradients over the workers. `training.seed` determines
    the initial weights. The moving average is a function of the steps here; torch's AveragedModel has no warm-up of the
    decay.
    """

    def __init__(
        self,
        experiment: Experiment,
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    ):
        self.experiment, self.device = experiment, device
        training, optimizer = experiment.training, experiment.optimizer
        self.step = 0
        torch.manual_seed(training.seed)
        # In channels_last a step of the demo takes 0.87 of the time on a CPU (1 thread, Xeon with AVX-512).
        self.generator = Generator(experiment.generator).to(device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval() if optimizer.ema_decay else None
        self.discriminator: Discriminator | None = None
        if experiment.loss.adv_weight > 0:
            torch.manual_seed(training.seed + 1)  # so the generator's weights do not depend on it
            self.discriminator = Discriminator(experiment.discriminator, self.generator.planes, self.generator.scale)
            self.discriminator.to(device, memory_format=torch.channels_last)
            self.wrapped_discriminator = wrap(self.discriminator)
            self.optimizer_d = torch.optim.Adam(
                self.discriminator.parameters(), lr=optimizer.discriminator_lr, betas=optimizer.betas
            )
        self.wrapped_generator = wrap(self.generator)
        self.optimizer_g = torch.optim.Adam(
            self.generator.parameters(), lr=optimizer.generator_lr, betas=optimizer.betas
        )

    @property
    def scored(self) -> Generator:
        """The generator that is validated and saved: the moving average, if there is one."""
        return self.average or self.generator

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Average the parameters; copy the buffers (BatchNorm's statistics are averages already)."""
        assert self.average is not None
        averaged, current = list(self.average.parameters()), list(self.generator.parameters())
        # Early on the decay is lower, so that the random initial weights are forgotten quickly.
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + self.step) / (10 + self.step)))
        for average, value in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            average.copy_(value)

    def start_from(self, generator: dict[str, Tensor], discriminator: dict[str, Tensor]) -> None:
        """Replace the initial weights by those of state dicts, which may lack some; its moving average starts there."""
        for network in (self.generator, self.average):
            if network is not None:
                network.load_state_dict(generator, strict=False)
        if self.discriminator is not None:
            self.discriminator.load_state_dict(discriminator, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        state: dict[str, Any] = {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "optimizer_g": self.optimizer_g.state_dict(),
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        if self.discriminator is not None:
            state |= {"discriminator": self.discriminator.state_dict(), "optimizer_d": self.optimizer_d.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict` of the same experiment."""
        self.step = state["step"]
        self.generator.load_state_dict(state["generator"])
        self.optimizer_g.load_state_dict(state["optimizer_g"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.discriminator is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.optimizer_d.load_state_dict(state["optimizer_d"])
