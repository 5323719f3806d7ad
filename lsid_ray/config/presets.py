"""Experiments to start from, by name, each with a line of help."""

from lsid_ray.config.schema import (
    ClusterConfig,
    DataConfig,
    DiscriminatorConfig,
    Experiment,
    GeneratorConfig,
    LossConfig,
    OptimizerConfig,
    TrainingConfig,
)

EMBEDDED_ROOT = "data/demo"
CLIP_NORM = 10.0  # above the norms of the demo's steps: generator at most 1.5, discriminator 9.3; others not measured
GPU = ClusterConfig(use_gpu=True, cpus_per_worker=4, readers=4)  # 7 CPUs for one worker: most one-GPU machines have 8

PRESETS: dict[str, tuple[str, Experiment]] = {
    "demo": (
        "The embedded data set on this machine without a GPU: a few minutes on 2 cores.",
        Experiment(
            name="demo",
            data=DataConfig(root=EMBEDDED_ROOT),
            generator=GeneratorConfig(width=16, depth=3, input_curve="tone"),
            discriminator=DiscriminatorConfig(width=16, layers=2),
            loss=LossConfig(adv_weight=0.002, warmup_steps=1500, ramp_steps=150),
            optimizer=OptimizerConfig(generator_lr=2e-3, discriminator_lr=2e-4, ema_decay=0.99),
            training=TrainingConfig(
                epochs=24, batch_size=8, crop=48, crops_per_pair=40, validate_every=4, clip_norm=CLIP_NORM
            ),
            cluster=ClusterConfig(num_workers=2, cpus_per_worker=0.25),
        ),
    ),
    "sid-sony": (
        "SID's Sony set: attention U-Net GAN with residual blocks, without norm, at full resolution.",
        Experiment(
            name="sid-sony",
            generator=GeneratorConfig(residual=True, input_curve="tone"),
            loss=LossConfig(adv_weight=0.01, warmup_steps=10_000, ramp_steps=5_000),
            training=TrainingConfig(epochs=500, batch_size=16, crop=256, crops_per_pair=2, clip_norm=CLIP_NORM),
            cluster=GPU,
        ),
    ),
    "sid-fuji": (
        "SID's Fuji set: X-Trans packed to 9 planes at a third, 27 channels before the pixel shuffle.",
        Experiment(
            name="sid-fuji",
            generator=GeneratorConfig(cfa="xtrans", residual=True, input_curve="tone"),
            loss=LossConfig(adv_weight=0.01, warmup_steps=10_000, ramp_steps=5_000),
            training=TrainingConfig(epochs=500, batch_size=16, crop=192, crops_per_pair=2, clip_norm=CLIP_NORM),
            cluster=GPU,
        ),
    ),
    "thesia": (
        "The baseline's recipe (Thesia and Suthar 2021): half resolution, BatchNorm, cross entropy, 100 * L1.",
        Experiment(
            name="thesia",
            generator=GeneratorConfig(
                width=64, norm="batch", negative_slope=0, output="half", white_balance=False, color_matrix=False
            ),
            discriminator=DiscriminatorConfig(norm="batch"),
            loss=LossConfig(l1_weight=100, adv_weight=1, adversarial="bce"),
            optimizer=OptimizerConfig(betas=(0.5, 0.999), schedule="constant", ema_decay=0),
            training=TrainingConfig(flip_probability=0.2, transpose_probability=0),
            cluster=GPU,
        ),
    ),
    "chen": (
        "SID's own recipe (Chen et al. 2018): U-Net, L1, batch 1, 4000 epochs.",
        Experiment(
            name="chen",
            generator=GeneratorConfig(gates=False, upsample="transpose", white_balance=False, color_matrix=False),
            loss=LossConfig(adv_weight=0),
            optimizer=OptimizerConfig(generator_lr=1e-4, betas=(0.9, 0.999), schedule="drop", ema_decay=0),
            training=TrainingConfig(epochs=4000, batch_size=1, epoch_draw="scenes", validate_every=100),
            cluster=GPU,
        ),
    ),
}
