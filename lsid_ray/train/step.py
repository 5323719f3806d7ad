"""One training step of the GAN. Torch only, so that it can be tuned on a single GPU without Ray."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from lsid_ray.config.schema import Experiment
from lsid_ray.data.batch import Batch
from lsid_ray.data.preprocess import training_pair
from lsid_ray.model.discriminator import Discriminator
from lsid_ray.model.generator import Generator
from lsid_ray.model.losses import adversarial_weight, discriminator_loss, generator_loss, l1


class GanStep:
    """Both networks with their optimizers; a call with a batch updates each of them once.

    There is no discriminator if `loss.adv_weight` is 0. `wrap` makes a network distributed (DDP), which averages the
    gradients over the workers. `training.seed` determines the initial weights. The moving average and the schedules
    are pure functions of the step here; torch's AveragedModel has no warm-up of the decay, and its schedulers have
    state to save.
    """

    def __init__(
        self,
        experiment: Experiment,
        total_steps: int,
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    ):
        self.experiment, self.total_steps, self.device = experiment, total_steps, device
        self.step = 0
        optimizer = experiment.optimizer
        torch.manual_seed(experiment.training.seed)
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.generator = Generator(experiment.generator).to(device, memory_format=layout)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval() if optimizer.ema_decay else None
        self.discriminator: Discriminator | None = None
        if experiment.loss.adv_weight > 0:
            torch.manual_seed(experiment.training.seed + 1)  # so the generator's weights do not depend on it
            self.discriminator = Discriminator(experiment.discriminator, self.generator.planes, self.generator.scale)
            self.discriminator.to(device, memory_format=layout)
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

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Update the networks on this worker's share of a batch.

        Returns this worker's losses as detached scalars on the device: "l1" and, with a discriminator, "adversarial"
        (unweighted) and "discriminator", which are 0 during the warm-up. With `training.clip_norm` also the norms of
        the gradients: "gradient_norm" and, with a discriminator, "discriminator_gradient_norm".
        """
        e = self.experiment
        planes, target = training_pair(batch, e.generator)
        if self.device.type == "cuda":
            planes, target = (t.contiguous(memory_format=torch.channels_last) for t in (planes, target))
        factor = self._learning_rate_factor()
        weight = adversarial_weight(e.loss, self.step)
        self.generator.train()
        with self._autocast():
            image = self.wrapped_generator(planes)
        image = image.float()
        losses = {"l1": l1(image, target)}
        total = e.loss.l1_weight * losses["l1"]
        if self.discriminator is not None:
            norms = ["discriminator_gradient_norm"] if e.training.clip_norm else []
            losses |= dict.fromkeys(["adversarial", "discriminator", *norms], torch.zeros((), device=self.device))
            if weight > 0:
                losses |= self._update_discriminator(planes, target, image.detach(), factor)
                losses["adversarial"] = self._adversarial(planes, target, image)
                total = total + weight * losses["adversarial"]
        losses |= self._update(self.optimizer_g, total, e.optimizer.generator_lr * factor, "gradient_norm")
        if self.average is not None:
            self._update_average(e.optimizer.ema_decay)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def _autocast(self) -> torch.autocast:
        bf16 = self.device.type == "cuda" and self.experiment.training.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def _update_discriminator(self, planes: Tensor, target: Tensor, image: Tensor, factor: float) -> dict[str, Tensor]:
        assert self.discriminator is not None
        self.discriminator.train().requires_grad_(True)
        with self._autocast():
            if self.experiment.discriminator.norm == "batch":  # separate batch statistics for real and fake
                real = self.wrapped_discriminator(planes, target)
                fake = self.wrapped_discriminator(planes, image)
            else:
                real, fake = self.wrapped_discriminator(planes.repeat(2, 1, 1, 1), torch.cat([target, image])).chunk(2)
        loss = discriminator_loss(self.experiment.loss.adversarial, real.float(), fake.float(), mean_over_workers)
        learning_rate = self.experiment.optimizer.discriminator_lr * factor
        return {"discriminator": loss} | self._update(
            self.optimizer_d, loss, learning_rate, "discriminator_gradient_norm"
        )

    def _adversarial(self, planes: Tensor, target: Tensor, image: Tensor) -> Tensor:
        """The adversarial loss. Bypasses the DDP wrapper, as the discriminator's weights need no gradient here."""
        assert self.discriminator is not None
        self.discriminator.requires_grad_(False)
        kind, real = self.experiment.loss.adversarial, None
        with self._autocast():
            if kind == "relativistic":
                with torch.no_grad():
                    real = self.discriminator(planes, target).float()
            fake = self.discriminator(planes, image).float()
        return generator_loss(kind, real, fake, mean_over_workers)

    def _update(
        self, optimizer: torch.optim.Optimizer, loss: Tensor, learning_rate: float, norm_name: str
    ) -> dict[str, Tensor]:
        """Take a step of Adam; returns the norm of the gradient before it was clipped, under its name, if it was."""
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms, limit = {}, self.experiment.training.clip_norm
        if limit:  # of the mean gradient of all workers: DDP has averaged it
            norms[norm_name] = nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], limit)
        optimizer.step()
        return norms

    def _learning_rate_factor(self) -> float:
        progress = self.step / max(self.total_steps, 1)
        match self.experiment.optimizer.schedule:
            case "drop":
                return 1.0 if progress < 0.5 else 0.1
            case "cosine":
                return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
        return 1.0

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
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


def mean_over_workers(values: Tensor) -> Tensor:
    """Mean over the batches of all workers, which are of one size, with the gradients of all their losses."""
    mean = values.mean()
    if not dist.is_initialized():
        return mean
    return all_reduce(mean) / dist.get_world_size()  # its backward pass sums the gradients of all workers
