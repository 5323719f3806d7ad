"""What the training loop says of its losses; complete runs are in `test_trainer.py`."""

import pytest

from lsid_ray.train.loop import MIN_JUDGED_STEPS, _Judged


@pytest.mark.parametrize(("real", "fake", "warns"), [(0.45, 0.6, True), (0.55, 0.71, False), (0.0, 1.0, True)])
def test_a_discriminator_that_is_right_as_by_chance_is_said_once(real: float, fake: float, warns: bool) -> None:
    judged = _Judged()
    losses = {"l1": 0.1, "real_accuracy": real, "fake_accuracy": fake}
    for _ in range(MIN_JUDGED_STEPS - 1):
        judged.add(losses)
    assert not judged.message(), "too few steps to say"
    for _ in range(MIN_JUDGED_STEPS):
        judged.add(losses)
        judged.add({"l1": 0.1})  # of the warm-up
    line = (
        f"the discriminator was right about {(real + fake) / 2:.0%} of the images in the last 100 steps, as by chance"
    )
    assert judged.message().startswith(line if warns else "") and bool(judged.has_warned) == warns
    for _ in range(MIN_JUDGED_STEPS):
        judged.add(losses)
    assert not judged.message()
