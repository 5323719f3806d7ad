"""One training step of the GAN. Torch only, so that it can be tuned on a single GPU without Ray."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from lsid_ray.config.schema import Experiment
from lsid_ray.data.batch import Batch
from lsid_ray.data.preprocess import training_pair
from lsid_ray.model.discriminator import Discriminator
from lsid_ray.model.losses import adversarial_weight, discriminator_loss, generator_loss, l1, ssim
from lsid_ray.train.networks import Networks


class GanStep(Networks):
    """A call with a batch updates each network once.

    The schedules are pure functions of the step; torch's have state to save.
    """

    def __init__(
        self,
        experiment: Experiment,
        total_steps: int,
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    ):
        super().__init__(experiment, device, wrap)
        self.total_steps = total_steps
        self.rate_scale = 1.0
        """Factor of both learning rates."""
        training = experiment.training
        self.part_size = -(-training.batch_size // (experiment.cluster.num_workers * training.accumulate))
        """The most samples that a worker computes at once: fewer workers than `num_workers` need no more memory."""

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Update the networks on this worker's share of a batch.

        Returns detached scalars on the device, whose means over the workers are the losses of the whole batch, without
        their weights: "l1", with `loss.ssim_weight` "ssim_loss" (1 - SSIM), and, with a discriminator, "adversarial"
        and "discriminator", which are 0 during the warm-up; after it also the discriminator's "real_accuracy" and
        "fake_accuracy" (see `DiscriminatorLoss`). With `training.clip_norm` also the norms of the gradients:
        "gradient_norm" and, with a discriminator, "discriminator_gradient_norm".
        """
        e = self.experiment
        pair = training_pair(batch, e.generator)
        planes, target = (image.contiguous(memory_format=torch.channels_last) for image in pair)
        weight = adversarial_weight(e.loss, self.step)
        share, largest = _share(len(planes), e.training.batch_size)
        self.generator.train()
        names = ["l1"]
        if self.discriminator is not None:
            norms = ["discriminator_gradient_norm"] if e.training.clip_norm else []
            names += ["adversarial", "discriminator", *norms]
        losses = dict.fromkeys(names, torch.zeros((), device=self.device))
        update = self._update if largest <= self.part_size else self._accumulate  # the same one on all workers
        losses |= update(planes, target, weight, share)
        if self.average is not None:
            self.update_average(e.optimizer.ema_decay)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def skip(self) -> None:
        """Leave out a batch."""
        self.step += 1

    def _autocast(self) -> torch.autocast:
        bf16 = self.device.type == "cuda" and self.experiment.training.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def _update(self, planes: Tensor, target: Tensor, weight: float, share: float) -> dict[str, Tensor]:
        """Update both networks on the whole local batch at once."""
        with self._autocast():
            image = self.wrapped_generator(planes)
        image = image.float()
        total, losses = self._pixel_loss(image, target, share)
        if weight > 0:
            losses |= self._update_discriminator(planes, target, image.detach(), share)
            losses["adversarial"] = self._adversarial(planes, target, image, share)
            total = total + weight * losses["adversarial"]
        self.optimizer_g.zero_grad(set_to_none=True)
        total.backward()
        return losses | self._descend_generator()

    def _pixel_loss(self, image: Tensor, target: Tensor, share: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the losses that need no discriminator, and each of them."""
        weights = self.experiment.loss
        losses = {"l1": share * l1(image, target)}
        total = weights.l1_weight * losses["l1"]
        if weights.ssim_weight:
            losses["ssim_loss"] = share * (1 - ssim(image, target))
            total = total + weights.ssim_weight * losses["ssim_loss"]
        return total, losses

    def _update_discriminator(self, planes: Tensor, target: Tensor, image: Tensor, share: float) -> dict[str, Tensor]:
        assert self.discriminator is not None
        self.discriminator.train().requires_grad_(True)
        real, fake = self._logits(self.wrapped_discriminator, planes, target, image)
        losses = self._discriminator_losses(real, fake, share)
        self.optimizer_d.zero_grad(set_to_none=True)
        losses["discriminator"].backward()
        return losses | self._descend_discriminator()

    def _logits(self, discriminator: nn.Module, planes: Tensor, target: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Of the real and the fake images."""
        with self._autocast():
            if self.experiment.discriminator.norm == "batch":  # separate batch statistics for real and fake
                real, fake = discriminator(planes, target), discriminator(planes, image)
            else:
                real, fake = discriminator(planes.repeat(2, 1, 1, 1), torch.cat([target, image])).chunk(2)
        return real.float(), fake.float()

    def _discriminator_losses(self, real: Tensor, fake: Tensor, share: float) -> dict[str, Tensor]:
        """The loss and the accuracies, whose means over the workers are those of the whole batch."""
        mean = partial(mean_over_workers, share=share)
        losses = discriminator_loss(self.experiment.loss.adversarial, real, fake, mean)
        return {
            "discriminator": share * losses.loss,
            "real_accuracy": share * losses.real_accuracy,
            "fake_accuracy": share * losses.fake_accuracy,
        }

    def _adversarial(self, planes: Tensor, target: Tensor, image: Tensor, share: float) -> Tensor:
        """The adversarial loss. Bypasses the DDP wrapper, as the discriminator's weights need no gradient here."""
        assert self.discriminator is not None
        self.discriminator.requires_grad_(False)
        kind, real = self.experiment.loss.adversarial, None
        with self._autocast():
            if kind == "relativistic":
                with torch.no_grad():
                    real = self.discriminator(planes, target).float()
            fake = self.discriminator(planes, image).float()
        return self._generator_loss(real, fake, share)

    def _generator_loss(self, real: Tensor | None, fake: Tensor, share: float) -> Tensor:
        mean = partial(mean_over_workers, share=share)
        return share * generator_loss(self.experiment.loss.adversarial, real, fake, mean)

    def _accumulate(self, planes: Tensor, target: Tensor, weight: float, share: float) -> dict[str, Tensor]:
        """The same update, computed on one part of the local batch after the other: less memory, more work.

        The relativistic loss depends on all logits of the batch. So the networks run over all parts without gradients
        first; then the loss is a function of the logits, and its gradients with respect to them are passed on part by
        part. With BatchNorm, its statistics are of each part.
        """
        size = self.part_size
        parts = list(zip(planes.split(size), target.split(size), strict=True))
        losses: dict[str, Tensor] = {}
        gradients: list[Tensor] = []
        if weight > 0:
            with torch.no_grad(), self._autocast():
                images = [self.generator(part).float() for part, _ in parts]
            losses |= self._accumulate_discriminator(parts, images, share)
            losses["adversarial"], gradients = self._adversarial_gradients(parts, images, share)
        self.optimizer_g.zero_grad(set_to_none=True)
        for number, (part, part_target) in enumerate(parts):
            with _synchronized(self.wrapped_generator, number == len(parts) - 1):
                with self._autocast():
                    image = self.wrapped_generator(part)
                image = image.float()
                total, pixel_losses = self._pixel_loss(image, part_target, share * len(part) / len(planes))
                if weight > 0:
                    with self._autocast():
                        fake = self._frozen_discriminator()(part, image)
                    total = total + weight * (fake.float() * gradients[number]).sum()
                total.backward()
            for name, loss in pixel_losses.items():
                losses[name] = losses.get(name, 0.0) + loss.detach()
        return losses | self._descend_generator()

    def _accumulate_discriminator(
        self, parts: list[tuple[Tensor, Tensor]], images: list[Tensor], share: float
    ) -> dict[str, Tensor]:
        assert self.discriminator is not None
        logits = []
        with torch.no_grad():
            for number, (part, image) in enumerate(zip(parts, images, strict=True)):
                logits.append(self._logits(self._frozen_discriminator(number > 0), *part, image))
        real, fake = (torch.cat(each).requires_grad_() for each in zip(*logits, strict=True))
        losses = self._discriminator_losses(real, fake, share)
        logit_gradients = torch.autograd.grad(losses["discriminator"], (real, fake))
        gradients = [each.split(self.part_size) for each in logit_gradients]
        self._frozen_discriminator().requires_grad_(True)
        self.optimizer_d.zero_grad(set_to_none=True)
        for number, (part, image) in enumerate(zip(parts, images, strict=True)):
            with _synchronized(self.wrapped_discriminator, number == len(parts) - 1):
                outputs = self._logits(self.wrapped_discriminator, *part, image)
                torch.autograd.backward(outputs, [each[number] for each in gradients])
        return losses | self._descend_discriminator()

    def _adversarial_gradients(
        self, parts: list[tuple[Tensor, Tensor]], images: list[Tensor], share: float
    ) -> tuple[Tensor, list[Tensor]]:
        """The adversarial loss, and its gradients with respect to the logits of each part's images."""
        assert self.discriminator is not None
        self.discriminator.requires_grad_(False)

        def all_logits(pictures: list[Tensor]) -> Tensor:
            with torch.no_grad(), self._autocast():
                logits = [
                    self._frozen_discriminator(number > 0)(planes, picture).float()
                    for number, ((planes, _), picture) in enumerate(zip(parts, pictures, strict=True))
                ]
            return torch.cat(logits)

        is_relativistic = self.experiment.loss.adversarial == "relativistic"
        real = all_logits([target for _, target in parts]) if is_relativistic else None
        fake = all_logits(images).requires_grad_()
        loss = self._generator_loss(real, fake, share)
        return loss, list(torch.autograd.grad(loss, fake)[0].split(self.part_size))

    def _frozen_discriminator(self, frozen: bool = True) -> Discriminator:
        """The discriminator, whose spectral norms take one step of their power iteration per pass unless frozen.

        So they take as many as without parts.
        """
        assert self.discriminator is not None
        return self.discriminator.train(not frozen or self.experiment.discriminator.norm == "batch")

    def _descend_generator(self) -> dict[str, Tensor]:
        return self._descend(self.optimizer_g, self.experiment.optimizer.generator_lr, "gradient_norm")

    def _descend_discriminator(self) -> dict[str, Tensor]:
        return self._descend(
            self.optimizer_d, self.experiment.optimizer.discriminator_lr, "discriminator_gradient_norm"
        )

    def _descend(self, optimizer: torch.optim.Optimizer, learning_rate: float, norm_name: str) -> dict[str, Tensor]:
        """Take a step of Adam; returns the norm of the gradient before it was clipped, under its name, if it was."""
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * self._learning_rate_factor()
        norms, limit = {}, self.experiment.training.clip_norm
        if limit:  # of the mean gradient of all workers: DDP has averaged it
            norms[norm_name] = nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], limit)
        optimizer.step()
        return norms

    def _learning_rate_factor(self) -> float:
        progress = self.step / max(self.total_steps, 1)
        match self.experiment.optimizer.schedule:
            case "drop":
                return self.rate_scale * (1.0 if progress < 0.5 else 0.1)
            case "cosine":
                return self.rate_scale * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        return self.rate_scale


def mean_over_workers(values: Tensor, share: float = 1.0) -> Tensor:
    """Mean over the batches of all workers, with the gradients of all their losses. share: of this worker's batch."""
    mean = share * values.mean()
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mean
    return all_reduce(mean) / dist.get_world_size()  # its backward pass sums the gradients of all workers


def _share(local: int, batch_size: int) -> tuple[float, int]:
    """This worker's samples of a batch relative to the mean over the workers, 1 if all have as many; and the most that
    one has.

    DDP takes the plain mean of the workers' gradients: losses times this share make it that of all samples.
    """
    if not dist.is_initialized():
        return 1.0, local
    workers = dist.get_world_size()
    return local * workers / batch_size, -(-batch_size // workers)


def _synchronized(network: nn.Module, synchronized: bool) -> AbstractContextManager[None]:
    """Whether DDP averages the gradients in this block's backward pass."""
    return nullcontext() if synchronized or not isinstance(network, DistributedDataParallel) else network.no_sync()
