"""python jobs/synthesize.py --out data/demo

Makes a data set of short and long exposures, in SID's layout and names, from photographs: those bundled with
scikit-image (some seconds), or any folder of PNG, JPEG, TIFF or raw files with --photos FOLDER. Prints each
scene as it is written, and last the folder.
"""

import time

from lsid_ray.commandline import parse, run_job
from lsid_ray.data.synthesize import Scene, Synthesis, synthesize


def main() -> None:
    config = parse(Synthesis, __doc__)
    start = time.monotonic()

    def show(scene: Scene) -> None:
        print(f"{scene.name} {scene.split:10} ISO {scene.iso:5} {scene.photo}", flush=True)

    outcome = synthesize(config, on_scene=show)
    for path in outcome.ignored:
        print(f"not a photograph: {path}")
    if not outcome.made:
        print(f"{config.out} already holds this data set: nothing to do")
        return
    shorts = len(outcome.scenes) * len(config.ratios) * config.frames
    seconds = time.monotonic() - start
    print(f"{len(outcome.scenes)} scenes, {shorts} short exposures in {seconds:.1f} s: {config.out}")


if __name__ == "__main__":
    run_job(main)
