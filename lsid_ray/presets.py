"""Experiments that one starts from, by name."""

from lsid_ray.config import Cluster, Data, Discriminator, Experiment, Generator, Loss, Optimizer, Training

EMBEDDED_ROOT = "data/demo"

PRESETS: dict[str, tuple[str, Experiment]] = {
    "demo": (
        "The embedded data set on this machine, no GPU: a few minutes on 2 cores.",
        Experiment(
            name="demo",
            data=Data(root=EMBEDDED_ROOT),
            generator=Generator(width=16, depth=3),
            discriminator=Discriminator(width=16, layers=2),
            loss=Loss(adv_weight=0.002, warmup_steps=800, ramp_steps=200),
            optimizer=Optimizer(generator_lr=2e-3, discriminator_lr=2e-4, ema_decay=0.99),
            training=Training(epochs=20, batch_size=8, crop=48, crops_per_pair=40, validate_every=4),
            cluster=Cluster(num_workers=2, cpus_per_worker=0.25),
        ),
    ),
    "sid-sony": (
        "SID's Sony set: norm-free attention U-Net GAN at full resolution.",
        Experiment(
            name="sid-sony",
            loss=Loss(adv_weight=0.01, warmup_steps=10_000, ramp_steps=5_000),
            training=Training(epochs=500, batch_size=16, crop=256, crops_per_pair=2),
            cluster=Cluster(use_gpu=True, cpus_per_worker=4, readers=8),
        ),
    ),
    "sid-fuji": (
        "SID's Fuji set: X-Trans in nine planes at a third, 27 channels to full resolution.",
        Experiment(
            name="sid-fuji",
            generator=Generator(cfa="xtrans"),
            loss=Loss(adv_weight=0.01, warmup_steps=10_000, ramp_steps=5_000),
            training=Training(epochs=500, batch_size=16, crop=192, crops_per_pair=2),
            cluster=Cluster(use_gpu=True, cpus_per_worker=4, readers=8),
        ),
    ),
    "seed": (
        "The starting point's exact recipe: half resolution, BatchNorm, cross entropy, L1 at 100:1.",
        Experiment(
            name="seed",
            generator=Generator(
                width=64, norm="batch", negative_slope=0, output="half", white_balance=False, color_matrix=False
            ),
            discriminator=Discriminator(norm="batch"),
            loss=Loss(l1_weight=100, adv_weight=1, adversarial="bce"),
            optimizer=Optimizer(betas=(0.5, 0.999), schedule="constant", ema_decay=0),
            training=Training(flip_probability=0.2, transpose_probability=0),
            cluster=Cluster(use_gpu=True, cpus_per_worker=4, readers=8),
        ),
    ),
    "chen": (
        "SID's own recipe (Chen et al. 2018): U-Net, L1, batch 1, 4000 epochs.",
        Experiment(
            name="chen",
            generator=Generator(gates=False, upsample="transpose", white_balance=False, color_matrix=False),
            loss=Loss(adv_weight=0),
            optimizer=Optimizer(generator_lr=1e-4, betas=(0.9, 0.999), schedule="drop", ema_decay=0),
            training=Training(epochs=4000, batch_size=1, epoch_draw="scenes", validate_every=100),
            cluster=Cluster(use_gpu=True, cpus_per_worker=4, readers=8),
        ),
    ),
}
