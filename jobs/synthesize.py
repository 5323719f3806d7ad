"""python jobs/synthesize.py --out data/demo

Creates a data set of short and long exposures with SID's folder layout and file names, from photographs: those bundled
with scikit-image (takes seconds), or any folder of PNG, JPEG, TIFF or raw files with --photos FOLDER. The noise is that
of SID's Sony A7S II, or with --camera FILE of the camera that `jobs/calibrate.py` has measured. Prints each scene when
it is written, and finally the number of scenes and the folder.
"""

import time

from lsid_ray.commandline import parse, run_job
from lsid_ray.synthesis.dataset import Scene, Synthesis, synthesize


def main() -> None:
    config = parse(Synthesis, __doc__)
    start = time.monotonic()

    def print_scene(scene: Scene) -> None:
        print(f"{scene.name} {scene.split:10} ISO {scene.iso:5} {scene.photo}", flush=True)

    result = synthesize(config, on_scene=print_scene)
    for path in result.ignored:
        print(f"ignored, not a photograph: {path}")
    if not result.created:
        print(f"{config.out} already holds this data set: nothing to do")
        return
    short_count = len(result.scenes) * len(config.ratios) * config.frames
    seconds = time.monotonic() - start
    print(f"{len(result.scenes)} scenes, {short_count} short exposures in {seconds:.1f} s: {config.out}")


if __name__ == "__main__":
    run_job(main)
