"""What a run reports while it trains: events, and their way from the workers to the driver.

An event is a dictionary with a "kind". Those that are logged have a "step":

"start"       total_steps, workers; the worker group starts at `step`, from a checkpoint unless that is 0
"train"       epoch, losses (l1; ssim_loss if it has a weight; adversarial and discriminator if there is one), its
              real_accuracy and fake_accuracy (0 to 1, once it trains), learning_rate, seconds, samples_per_s,
              seconds_left (null for the first seconds), and as shares of the time waiting_for_data and saving; about
              once per second
"validation"  epoch, frames, psnr_db, ssim, and those of --training.metrics, seconds; of an earlier step than the latest
              if training went on meanwhile
"diverged"    losses, pairs (names): a loss is not finite, and the run ends or goes back
"rollback"    reason, skipped_step, halves_rate: the run goes back to its latest checkpoint, at `step`
"resize"      workers: the run goes on from its latest checkpoint, at `step`, with as many
"failure"     reason; the run restarts from its latest checkpoint, at `step`

These are only shown, the first by TensorBoard:

"image"       step, name, pixels ((H, W, 3) uint8): input, output and target of the first frame of a validation
"waiting"     message, seconds; no worker has started yet, or a validation has not ended
"warning"     message
"""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lsid_ray.train.heartbeat import Beat

Event = dict[str, Any]
SHOWN_ONLY = ("image", "waiting", "warning")


def scalars(event: Event) -> dict[str, float]:
    """What of an event is shown as a curve: "train/l1", "validation/psnr_db" and so on."""
    values = {f"{event['kind']}/{name}": value for name, value in event.items() if name != "time"}
    return {name: value for name, value in values.items() if isinstance(value, float)}


class EventBuffer:
    """An actor that holds the events and heartbeats of the workers until the driver takes them.

    It runs on the driver's node, so that the loss of any other node leaves it alone.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.beats: dict[int, Beat] = {}
        self.stopping = False

    def put(self, event: Event) -> None:
        """Add an event. Workers do not wait for the call, and so cannot fail in it."""
        self.events.append(event)

    def beat(self, rank: int, beat: Beat | None) -> bool:
        """Take a worker's heartbeat, None when it has ended. Returns whether the run is to end early."""
        if beat is None:
            self.beats.pop(rank, None)
        else:
            self.beats[rank] = beat
        return self.stopping

    def is_stopping(self) -> bool:
        """Whether the run is to end early."""
        return self.stopping

    def take(self, stopping: bool) -> tuple[list[Event], dict[int, Beat]]:
        """Remove and return all events; the latest heartbeat by rank. stopping: tell the workers to end early."""
        self.stopping = stopping
        events, self.events = self.events, []
        return events, self.beats


def start_buffer() -> Any:
    """Start an EventBuffer on this node; returns its actor handle."""
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(EventBuffer).options(num_cpus=0, scheduling_strategy=this_node).remote()
